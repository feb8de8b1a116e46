"""Rules that turn n updates into one, (n, d) -> (d,), and what they tolerate.

`AGGREGATORS` and `PRE_AGGREGATORS` map a name to a frozen dataclass whose fields are its parameters. A job
names a rule as `aggregator = { name = "krum", f = 2 }`; the registry of `securefed` looks here by string.

>>> import torch
>>> AGGREGATORS["trimmed_mean"](f=1)(torch.tensor([[1.0], [2.0], [3.0], [1e9]]))
tensor([2.5000])
"""

from __future__ import annotations

from typing import Any

from securefed.aggregation import Mean as Mean
from securefed_defenses.base import GramRule as GramRule
from securefed_defenses.base import PreAggregator as PreAggregator
from securefed_defenses.base import Rule as Rule
from securefed_defenses.clipping import CenteredClipping as CenteredClipping
from securefed_defenses.clipping import NormBound as NormBound
from securefed_defenses.coordinatewise import MeaMed as MeaMed
from securefed_defenses.coordinatewise import Median as Median
from securefed_defenses.coordinatewise import TrimmedMean as TrimmedMean
from securefed_defenses.flame import FLAME as FLAME
from securefed_defenses.geometric import GeometricMedian as GeometricMedian
from securefed_defenses.krum import Bulyan as Bulyan
from securefed_defenses.krum import Krum as Krum
from securefed_defenses.krum import MultiKrum as MultiKrum
from securefed_defenses.mixing import ARC as ARC
from securefed_defenses.mixing import NNM as NNM
from securefed_defenses.mixing import Bucketing as Bucketing
from securefed_defenses.mixing import Clip as Clip
from securefed_defenses.pipeline import Pipeline as Pipeline
from securefed_defenses.sign_guard import SignGuard as SignGuard
from securefed_defenses.signs import RLR as RLR
from securefed_defenses.signs import SignMajority as SignMajority
from securefed_defenses.similarity import FLTrust as FLTrust
from securefed_defenses.similarity import FoolsGold as FoolsGold
from securefed_defenses.spectral import CAF as CAF
from securefed_defenses.spectral import DnC as DnC
from securefed_defenses.subset import MDA as MDA
from securefed_defenses.subset import MoNNA as MoNNA

AGGREGATORS: dict[str, type[Any]] = {
    "mean": Mean,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "mea_med": MeaMed,
    "sign_majority": SignMajority,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "bulyan": Bulyan,
    "mda": MDA,
    "monna": MoNNA,
    "geometric_median": GeometricMedian,
    "centered_clipping": CenteredClipping,
    "caf": CAF,
    "dnc": DnC,
    "sign_guard": SignGuard,
    "fools_gold": FoolsGold,
    "flame": FLAME,
    "norm_bound": NormBound,
    "rlr": RLR,
    "fl_trust": FLTrust,
    "pipeline": Pipeline,
}
"""Name -> rule, (n, d) -> (d,)."""

PRE_AGGREGATORS: dict[str, type[Any]] = {"nnm": NNM, "bucketing": Bucketing, "clip": Clip, "arc": ARC}
"""Name -> linear map (n, d) -> (m, d) that is put before a rule."""

__all__ = [
    "AGGREGATORS",
    "PRE_AGGREGATORS",
    *sorted({c.__name__ for c in [*AGGREGATORS.values(), *PRE_AGGREGATORS.values()]}),
    "GramRule",
    "PreAggregator",
    "Rule",
]
