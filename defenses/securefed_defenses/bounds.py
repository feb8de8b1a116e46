"""Upper bounds on kappa that hold for every attack: from the papers, and where they leave a rule out, proved here.

h = n - f honest rows, V their variance (mean squared distance to their mean).

**Krum and Multi-Krum** as we define them, k = n - f - 2 neighbours. The published bound, 6 (1 + f / (n - 2f)), is for a
Krum that counts more of them. The same steps with k: an honest row's score is at most the sum over k honest rows
drawn at random, so over the honest rows the mean score is at most s = 2 h k / (h - 1) V, and so is the mean of the m
smallest scores for every m <= h. Of a picked row's neighbours at least a = k - f are honest; by the triangle
inequality for root mean squares over them, |x - mean| <= sqrt(score / a) + sqrt(h V / a). Squared and averaged over
the picked rows (Cauchy-Schwarz for the mixed term, Jensen for the mean of the rows):
kappa <= (h / a) (1 + sqrt(2 k / (h - 1)))^2.

**MDA**: its subset S and the honest rows H have n - f rows each and share one at least, so the f rows (at most) by
which they differ can be paired, and a pair is at most diam S + diam H <= 2 diam H apart. diam(H)^2 <= 2 h V, as two
rows' squared distances to the mean sum to at least half their squared distance. So kappa <= 8 f^2 / h.

**MeaMed**: per coordinate, its n - f values S are the nearest to the median y. The values by which S and H differ can
be paired as above, and the one in S is the nearer to y, so |mean S - mean H| <= (2 / h) sum over f honest values of
|x - y|, squared at most (4 f / h) (V + (y - mean)^2). With the median's own bound:
kappa <= (4 f / h) (1 + 4 (1 + f / (n - 2f))^2).

**CAF**, q = n - 2f > 0, and L <= V the largest eigenvalue of the honest covariance (the bound holds against L too).
Call w the rows' weights at a step, a the liars' share of them, m the honest mean, s the spread (the largest
variance), and t the first step whose spread is no more the liars' than the honest rows' (along its direction). Until
then liars lose more weight than honest rows do, and before the last step less than 2f is lost in all: so t is reached
(or a spread of zero), and up to t a <= f / n, and the honest rows have lost less than f.
(1) Along any direction s >= a (1 - a) (liars' mean - honest mean)^2, so w's mean is within sqrt(s a / (1 - a)) of its
honest part's; and a mean moves by at most sqrt((b - 1) variance) under weights at most b times as large, so that part is within sqrt(L f / q)
of m. (2) At t, s <= 2 (honest share of s), which with (1) gives s <= 2 C / ((C + B) (C - B)) h L for the weights C of
honest rows and B of liars; C - B >= q, hence s <= 2 h L / q. From both, up to t: |mean - m| <= (1 + sqrt 2) sqrt(L f / q).
(3) The weights that are returned have a spread of at most t's. Those before t obey (1) with it. Those after t are at
most (C + B) / q times t's, so their mean is within sqrt(((C + B) / q - 1) s) of t's, at most 2 (h / q) sqrt(L f / n)
(the largest value is at C = h, B = f). In all: kappa <= ((1 + sqrt 2) sqrt(f / q) + 2 (h / q) sqrt(f / n))^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from securefed.types import Aggregator
from securefed_defenses.coordinatewise import MeaMed, Median, TrimmedMean
from securefed_defenses.geometric import GeometricMedian
from securefed_defenses.krum import Krum, MultiKrum
from securefed_defenses.mixing import ARC, NNM
from securefed_defenses.pipeline import Pipeline
from securefed_defenses.spectral import CAF
from securefed_defenses.subset import MDA

Source = Literal["published", "proved here"]


@dataclass(frozen=True)
class Bound:
    """An upper bound on kappa for every f lies among n rows, and whose it is."""

    kappa: float
    source: Source


def bound(rule: Aggregator, n: int, f: int) -> Bound | None:
    """The best bound that we can stand for; None where there is none.

    None also for a rule that was told another f than the one asked about, that measures in product space, and at
    n <= 2f, where none exists.

    Sources: Allouah et al., "Fixing by mixing", AISTATS 2023 (arXiv 2302.01772), Table 1 and Lemma 1 (trimmed
    mean, median, geometric median, NNM); Allouah et al., "Adaptive gradient clipping for robust federated
    learning", ICLR 2025 (arXiv 2405.14432): ARC adds 2f / (n - 2f).
    """
    if n <= 2 * f or getattr(rule, "f", f) != f or getattr(rule, "space", "factor") != "factor":
        return None
    if isinstance(rule, Pipeline):
        return _behind(rule, n, f)
    ratio = f / (n - 2 * f)
    if isinstance(rule, TrimmedMean):
        return Bound(6 * ratio * (1 + ratio), "published")
    if isinstance(rule, Median | GeometricMedian):
        return Bound(4 * (1 + ratio) ** 2, "published")
    if isinstance(rule, Krum | MultiKrum) and n >= rule.least(f):
        return Bound(_krum(n, f), "proved here")
    if isinstance(rule, MDA):
        return Bound(8 * f**2 / (n - f), "proved here")
    if isinstance(rule, MeaMed):
        return Bound(4 * f / (n - f) * (1 + 4 * (1 + ratio) ** 2), "proved here")
    if isinstance(rule, CAF):
        return Bound(_caf(n, f), "proved here")
    return None


def _krum(n: int, f: int) -> float:
    h, k = n - f, n - f - 2
    return h / (k - f) * (1 + math.sqrt(2 * k / (h - 1))) ** 2


def _caf(n: int, f: int) -> float:
    h, q = n - f, n - 2 * f
    return ((1 + math.sqrt(2)) * math.sqrt(f / q) + 2 * h / q * math.sqrt(f / n)) ** 2


def _behind(line: Pipeline, n: int, f: int) -> Bound | None:
    """From the rule outwards; only maps that keep all n rows and were told this f."""
    found = bound(line.rule, n, f)
    for part in reversed(line.pre):
        if found is None or getattr(part, "f", None) != f or part.space != "factor":
            return None
        if isinstance(part, NNM):
            found = Bound(8 * f / (n - f) * (found.kappa + 1), found.source)
        elif isinstance(part, ARC):
            found = Bound(found.kappa + 2 * f / (n - 2 * f), found.source)
        else:
            return None
    return found
