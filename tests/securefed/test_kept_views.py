"""What a run keeps for an audit: exactly what its server saw, bounded, private, and nothing unless it is asked for."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import securefed as sf
from securefed.kept_views import kept_views, mib_a_round

ROOT = Path(__file__).parents[2]


def played(tmp_path: Path, **more: Any) -> Path:
    job = {
        "rounds": 3,
        "output": str(tmp_path),
        "evaluate.baselines": False,
        "tracking.report": False,
        **more,
    }
    return sf.run(ROOT / "configs" / "digits.toml", overrides=job, folder=tmp_path / "run").folder


def test_nothing_is_kept_unless_it_is_asked_for(home: Path, tmp_path: Path) -> None:
    assert not (played(tmp_path) / "views").exists()


def test_every_update_of_the_newest_rounds_is_kept_readable_by_its_owner_alone(
    home: Path, tmp_path: Path
) -> None:
    folder = played(tmp_path, **{"tracking.keep_views": 2})
    found = kept_views(folder)
    assert [k.view.round for k in found] == [1, 2]
    for kept in found:
        view = kept.view
        assert view.reveals == "updates"
        assert view.clients == tuple(view.updates) == tuple(range(8))
        assert view.total is not None
        assert view.after is not None
        assert np.allclose(view.before + view.total / view.weight, view.after, atol=1e-5), "plain averaging"
    for path in (folder / "views").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        rows = len(found[0].view.clients)
        size = mib_a_round(found[0].view.before.size, found[0].view.before.size, "updates", rows)
        assert path.stat().st_size / 2**20 == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize(
    ("protection", "reveals"),
    [("masking", "sum"), ({"name": "grouped", "size": 4}, "group sums")],
)
def test_no_single_update_is_kept_where_the_protection_hides_it(
    home: Path, tmp_path: Path, protection: Any, reveals: str
) -> None:
    (kept,) = kept_views(played(tmp_path, **{"tracking.keep_views": 1, "protection": protection}))
    assert kept.view.reveals == reveals
    assert not kept.view.updates
    if reveals == "group sums":
        assert kept.view.groups is not None
        assert sorted(k for g in kept.view.groups.values() for k in g.members) == list(range(8))
        assert np.allclose(sum(g.total for g in kept.view.groups.values()), kept.view.total)


def test_a_damaged_file_says_so(home: Path, tmp_path: Path) -> None:
    folder = played(tmp_path, **{"tracking.keep_views": 1})
    (path,) = (folder / "views").iterdir()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(sf.SecureFedError, match="damaged"):
        kept_views(folder)


def test_a_number_of_rounds_below_zero_is_refused() -> None:
    with pytest.raises(sf.SecureFedError, match=r"tracking\.keep_views"):
        sf.load_config(ROOT / "configs" / "digits.toml", {"tracking.keep_views": -1})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"algorithm": "distill"}, "tables of answers"),
        ({"algorithm": "securefed.algorithms.distill:Distill"}, "tables of answers"),
        (
            {
                "algorithm": {"name": "fedbuff", "concurrency": 4},
                "clients_per_round": 2,
                "clock.seconds": 1.0,
            },
            "scaled by their staleness",
        ),
        ({"compression": "random_k"}, "other numbers than its coordinates"),
        ({"compression": "count_sketch"}, "other numbers than its coordinates"),
        (
            {
                "model": {"name": "minilm", "adapter": "lora", "rank": 4, "ranks": [2, 4]},
                "algorithm": "slices",
                "weights": "equal",
            },
            "starts from a slice",
        ),
        *(
            (
                {
                    "model": {"name": "minilm", "adapter": "lora", "merged": True},
                    "algorithm": {"name": name, "products": True},
                },
                "how much B A changed",
            )
            for name in ("flexlora", "flora")
        ),
    ],
)
def test_what_would_be_kept_as_something_else_is_refused(changed: dict[str, Any], words: str) -> None:
    """Kept so, an audit would compare updates with a model that they were not trained from, and find nothing."""
    job = {"weights": "equal", "evaluate.baselines": False, **changed}
    sf.load_config(ROOT / "configs" / "digits.toml", job)
    with pytest.raises(sf.SecureFedError, match=words):
        sf.load_config(ROOT / "configs" / "digits.toml", {**job, "tracking.keep_views": 1})


def test_rounds_that_send_nothing_do_not_push_out_the_views_of_those_that_do(
    home: Path, tmp_path: Path
) -> None:
    tuned = {"algorithm": {"name": "finetune", "tune_rounds": 2}, "tracking.keep_views": 1}
    (kept,) = kept_views(played(tmp_path, **tuned))
    assert kept.view.round == 0
    assert kept.shared
    assert kept.view.updates


def test_a_coding_is_kept_as_the_server_read_it(home: Path, tmp_path: Path) -> None:
    coded = {"compression": {"name": "top_k", "share": 0.1, "error_feedback": False}, "weights": "equal"}
    (kept,) = kept_views(played(tmp_path, **coded, **{"tracking.keep_views": 1}))
    assert all(0 < (u != 0).mean() <= 0.1 + 1e-3 for u in kept.view.updates.values())
    assert kept.view.after is not None
    moved = np.mean(list(kept.view.updates.values()), axis=0)
    np.testing.assert_allclose(kept.view.after - kept.view.before, moved, atol=1e-5)
