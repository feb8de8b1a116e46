"""Rated sentences of four domains, the ground truth behind VADER.

C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text", ICWSM 2014. Snippets of film reviews, product reviews, newspaper editorials and tweets,
each with the mean of twenty ratings from -4 (extremely negative) to 4.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from securefed.data.records import Examples
from securefed.data.text import normalise
from securefed.errors import DataError

DOMAINS = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
"""Natural client -> its file, in the order in which the first copy of a duplicate is looked for."""

CLASSES = ("negative", "positive")
NEUTRAL_BELOW = 0.5
"""Sentences rated nearer to 0 than this are left out: the judges called them neutral."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One rated line; `document` names the review or article it was cut from."""

    domain: str
    document: str
    rating: float
    text: str = field(repr=False)


def read_sentiment(folder: Path) -> Examples:
    """The sentences as examples: label 1 where the rating is above 0, groups are domains.

    Copies (`text.normalise`) are one record with the mean of their ratings, at the place of the first;
    lines without a word and neutral ones are left out.

    Raises:
        DataError: a line that is not id, rating, text.
    """
    copies: dict[str, list[Sentence]] = {}
    for sentence in _sentences(folder):
        key = normalise(sentence.text)
        if key:
            copies.setdefault(key, []).append(sentence)
    kept, labels = [], []
    for same in copies.values():
        rating = sum(s.rating for s in same) / len(same)
        if abs(rating) >= NEUTRAL_BELOW:
            kept.append(same[0])
            labels.append(int(rating > 0))
    return Examples(
        texts=tuple(s.text for s in kept),
        labels=np.array(labels, np.int64),
        groups=tuple(s.domain for s in kept),
        documents=tuple(s.document for s in kept),
    )


def _sentences(folder: Path) -> Iterator[Sentence]:
    for domain, name in DOMAINS.items():
        # split at "\n" only: str.splitlines would also cut at characters that occur inside sentences
        for number, line in enumerate((folder / name).read_text("utf-8", "replace").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                identity, rating, text = line.rstrip("\r").split("\t", 2)
                value = float(rating)
                if not -4 <= value <= 4:  # also refuses what is no number
                    raise ValueError
            except ValueError:
                raise DataError(
                    f"{name}, line {number}: expected id, rating (-4 to 4) and text between tabs; "
                    "refetch it with `securefed data get sentiment --force`"
                ) from None
            # `document_sentence` in products and news; films and tweets are documents of one sentence
            document = f"{domain}/{identity.partition('_')[0]}"
            words = html.unescape(html.unescape(text)).strip()  # some of the news was escaped twice
            yield Sentence(domain, document, value, words)
