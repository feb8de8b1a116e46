"""What a private loop is asked for, checked: the plan, the mechanism with its noise, the tensors it trains."""

from __future__ import annotations

import hashlib
import logging
import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from securefed.errors import ModelError, PrivacyError
from securefed.privacy.budget import Budget
from securefed.privacy.calibration import calibrate_noise, max_steps
from securefed.privacy.events import SampledGaussian
from securefed.privacy.policy import Asked, load_policy
from securefed.privacy.records import ShardKey
from securefed.wrapping.account import Terms
from securefed.wrapping.fingerprint import fingerprint

if TYPE_CHECKING:
    from securefed.privacy.events import Accountant

logger = logging.getLogger(__name__)
PORTIONS = 50
"""A plan is reserved in about this many portions: what a crash can overstate is one of them."""


def check_arguments(accountant: str, mode: str, physical_batch: object, **numbers: object) -> None:
    """Raises PrivacyError for a word that is none of those it may be, or what is no number.

    What is mistyped must not wait for the first question after training.
    """
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise PrivacyError(f"{name} must be a number, found {value!r}")
    for name, word, known in (
        ("accountant", accountant, ("pld", "prv", "rdp")),
        ("grad_sample_mode", mode, ("hooks", "functorch")),
    ):
        if word not in known:
            raise PrivacyError(f"{name} is one of {', '.join(known)}, found {word!r}")
    if isinstance(physical_batch, bool) or not isinstance(physical_batch, Integral) or physical_batch < 0:
        raise PrivacyError(
            f"physical_batch must be a whole number, 0 (no bound) or more, found {physical_batch!r}"
        )


def plan_steps(epochs: int | None, steps: int | None, steps_per_epoch: int) -> int:
    """Steps of the plan. Raises PrivacyError unless exactly one is given, and is at least 1."""
    if (epochs is None) == (steps is None):
        raise PrivacyError(
            f"give epochs or steps, one of them, so that the noise is known before the first step; got epochs={epochs}, steps={steps}"
        )
    planned = steps if epochs is None else epochs * steps_per_epoch
    assert planned is not None
    if isinstance(planned, bool) or not isinstance(planned, Integral) or planned < 1:
        raise PrivacyError(f"epochs and steps are whole numbers >= 1, got epochs={epochs}, steps={steps}")
    return int(planned)


def make_terms(
    dataset: Any,
    records: int,
    rate: float,
    steps: int,
    *,
    epsilon: float | None,
    noise_multiplier: float | None,
    delta: float,
    site_epsilon: float,
    accountant: Accountant,
    data_id: str | None,
) -> Terms:
    """The mechanism that was asked for, with its noise.

    Raises:
        PrivacyError: both or none of epsilon and noise_multiplier, delta too large for so many records,
            or a target that no noise reaches.
        PolicyRefusal: this site's policy forbids it.
    """
    if epsilon is not None and noise_multiplier == 0:
        raise PrivacyError(
            "noise_multiplier=0 adds no noise, so no finite epsilon holds; give epsilon alone and noise is calibrated"
        )
    if (epsilon is None) == (noise_multiplier is None):
        raise PrivacyError(
            f"give epsilon (noise is calibrated) or noise_multiplier (epsilon follows), one of them; got epsilon={epsilon}, "
            f"noise_multiplier={noise_multiplier}"
        )
    if not 0 < delta < 1 / records:
        raise PrivacyError(
            f"delta={delta:g} must lie above 0 and below 1/records = 1/{records} = {1 / records:.3g}; a larger one allows "
            "the release of whole records"
        )
    if noise_multiplier is None:
        assert epsilon is not None
        noise_multiplier = calibrate_noise(epsilon, delta, rate, steps, accountant)
    SampledGaussian(noise_multiplier, rate, steps)  # its ranges
    if noise_multiplier == 0:
        logger.warning("noise_multiplier=0: the ledger will say epsilon = infinity for this data set")
    budget = Budget(math.inf if epsilon is None else epsilon, delta, site_epsilon, accountant)
    policy = load_policy()
    policy.check(Asked(budget.epsilon, delta, noise_multiplier))
    budget = policy.tighten(budget)
    cap = budget.site_epsilon
    if cap and max_steps(noise_multiplier, rate, cap, delta, accountant) < 1:
        raise PrivacyError(
            f"one step with noise_multiplier={noise_multiplier:g} already spends more than this site's cap of epsilon={cap:g}; add noise"
        )
    if data_id is not None and not (isinstance(data_id, str) and data_id):
        raise PrivacyError(f"data_id is the data set's name in the ledger, a text, found {data_id!r}")
    if data_id is None:
        data_id = fingerprint(dataset)[:32]
        logger.warning(
            "data_id=%r names this data set in the privacy ledger (a fingerprint of its records)", data_id
        )
    key = ShardKey(hashlib.sha256(data_id.encode()).hexdigest(), records)
    return Terms(data_id, key, noise_multiplier, rate, steps, budget, max(1, steps // PORTIONS))


def trained_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Name -> tensor of what is trained; model and optimizer must agree on it.

    Raises:
        ModelError: nothing is trained, the optimizer holds tensors of another model, or leaves out
            trainable ones, which would never learn.
    """
    kind = type(model).__name__
    if kind in ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel"):
        raise ModelError(
            f"{kind} divides a batch over processes or devices; give the model itself, in one process"
        )
    held = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if not held:
        raise ModelError("the optimizer holds no trainable tensor")
    if len({id(p) for p in held}) < len(held):
        raise ModelError("the optimizer holds a tensor twice; name it in one parameter group")
    names = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    strangers = sum(id(p) not in names for p in held)
    if strangers:
        raise ModelError(
            f"{strangers} of the optimizer's {len(held)} tensors are not the model's; make the optimizer after the adapter is put in"
        )
    left_out = sorted(set(names.values()) - {names[id(p)] for p in held})
    if left_out:
        raise ModelError(
            f"{left_out[0]} and {len(left_out) - 1} other trainable tensors are not in the optimizer, so they would never learn; "
            "give them to it or freeze them (requires_grad_(False))"
        )
    return {names[id(p)]: p for p in held}
