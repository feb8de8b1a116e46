"""Which file systems count as local."""

from __future__ import annotations

from pathlib import Path

from securefed.privacy.filesystem import is_local

TABLE = r"""
22 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:40 / /home rw,relatime - nfs4 server:/home rw
41 40 252:1 / /home/scratch\040disk rw - xfs /dev/vdb rw
42 22 0:50 / /mnt rw - fuse.sshfs host:/ rw
43 22 0:51 / /tmp/over rw - nfs server:/x rw
44 22 252:3 / /tmp/over rw - tmpfs tmpfs rw
a damaged line
"""


def test_the_mount_that_holds_the_folder_decides(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    local = {
        "/": True,
        "/var/x": True,
        "/home/me": False,
        "/homes": True,
        "/home/scratch disk/x": True,
        "/mnt/a": False,
    }
    assert {path: is_local(Path(path), table) for path in local} == local
    assert is_local(Path("/tmp/over/x"), table)  # the later mount hides the earlier


def test_without_a_mount_table_nothing_counts_as_local(tmp_path: Path) -> None:
    assert not is_local(tmp_path, tmp_path / "missing")
