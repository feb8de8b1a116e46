"""What curious servers, curious clients and liars do with what they see: attacks, and their statistics.

An attack takes a `securefed.View`, exactly what one adversary saw, so that the same attack measures
leakage with and without a protection. A Byzantine attack maps the honest updates (h, d) to the f
malicious ones (f, d); a poison changes a liar's own records before it trains on them.

>>> import torch
>>> BYZANTINE["ipm"](tau=2.0)(torch.tensor([[1.0], [3.0]]), f=1)
tensor([[-4.]])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from securefed_attacks.adam_span import adam_tokens as adam_tokens
from securefed_attacks.adaptive import Optimal as Optimal
from securefed_attacks.base import Byzantine as Byzantine
from securefed_attacks.base import Knowledge as Knowledge
from securefed_attacks.base import Line as Line
from securefed_attacks.byzantine import ALIE as ALIE
from securefed_attacks.byzantine import IPM as IPM
from securefed_attacks.byzantine import Boost as Boost
from securefed_attacks.byzantine import Gaussian as Gaussian
from securefed_attacks.byzantine import Inf as Inf
from securefed_attacks.byzantine import Mimic as Mimic
from securefed_attacks.byzantine import NaN as NaN
from securefed_attacks.byzantine import SignFlip as SignFlip
from securefed_attacks.embedding_rows import embedding_tokens as embedding_tokens
from securefed_attacks.fang import FangKrum as FangKrum
from securefed_attacks.fang import FangTrimmedMean as FangTrimmedMean
from securefed_attacks.gradient_inversion import GradientInversion as GradientInversion
from securefed_attacks.imprint import Imprint as Imprint
from securefed_attacks.labels import label_counts as label_counts
from securefed_attacks.labels import label_of_one as label_of_one
from securefed_attacks.linear_inversion import invert_linear as invert_linear
from securefed_attacks.membership import CalibratedLoss as CalibratedLoss
from securefed_attacks.membership import LiRAOffline as LiRAOffline
from securefed_attacks.membership import LiRAOnline as LiRAOnline
from securefed_attacks.membership import Loss as Loss
from securefed_attacks.membership import UpdateCosine as UpdateCosine
from securefed_attacks.min_max import MinMax as MinMax
from securefed_attacks.min_max import MinSum as MinSum
from securefed_attacks.poison import BadNets as BadNets
from securefed_attacks.poison import LabelFlip as LabelFlip
from securefed_attacks.poison import Poison as Poison
from securefed_attacks.rop import ROP as ROP
from securefed_attacks.span_order import order_tokens as order_tokens
from securefed_attacks.span_tokens import token_bag as token_bag
from securefed_attacks.text_matching import TextMatching as TextMatching
from securefed_attacks.transformer_reader import open_reader as open_reader

BYZANTINE: dict[str, type[Any]] = {
    "sign_flip": SignFlip,
    "boost": Boost,
    "ipm": IPM,
    "alie": ALIE,
    "mimic": Mimic,
    "gaussian": Gaussian,
    "inf": Inf,
    "nan": NaN,
    "min_max": MinMax,
    "min_sum": MinSum,
    "rop": ROP,
    "fang_krum": FangKrum,
    "fang_trimmed_mean": FangTrimmedMean,
    "optimal": Optimal,
}
"""Name -> attack on the aggregate: honest (h, d) -> (f, d)."""

POISONS: dict[str, type[Any]] = {"label_flip": LabelFlip, "badnets": BadNets}
"""Name -> change of a liar's own records before it trains."""

RECONSTRUCTIONS: dict[str, Callable[..., Any]] = {
    "span_tokens": token_bag,
    "span_order": order_tokens,
    "adam_tokens": adam_tokens,
    "text_matching": TextMatching,
    "embedding_rows": embedding_tokens,
    "linear_inversion": invert_linear,
    "label_of_one": label_of_one,
    "label_counts": label_counts,
    "imprint": Imprint,
    "gradient_inversion": GradientInversion,
}
"""Name -> what turns an update back into records, tokens or labels; each says what it must be given."""

MEMBERSHIP: dict[str, type[Any]] = {
    "loss": Loss,
    "calibrated_loss": CalibratedLoss,
    "update_cosine": UpdateCosine,
    "lira_offline": LiRAOffline,
    "lira_online": LiRAOnline,
}
"""Name -> attack on membership: `Evidence` of n records -> scores (n,)."""

__all__ = [
    "BYZANTINE",
    "MEMBERSHIP",
    "POISONS",
    "RECONSTRUCTIONS",
    *sorted(c.__name__ for c in [*BYZANTINE.values(), *MEMBERSHIP.values(), *POISONS.values()]),
    "Byzantine",
    "Knowledge",
    "Line",
    "Poison",
    *sorted(f.__name__ for f in RECONSTRUCTIONS.values()),
    "open_reader",
]
