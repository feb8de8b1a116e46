"""Labels from the last layer's gradient, before anything else is attacked.

Under cross-entropy dL/db_c = mean over the batch of (p_c - y_c): negative only where class c was present. For one
record that is the label itself (Zhao, Mopuri and Bilen, "iDLG", 2020, arXiv 2001.02610, section 3.1). For a batch the
counts follow once the average of p is known or estimated from the model the server sent (after Wainakh et al., "User-level
label leakage from gradients in federated learning", PoPETs 2022, section 4; rounding here is to whole records that add up).

Adversary: sees the gradient of one client, or of a sum, whose total number of records is public.
"""

from __future__ import annotations

import torch


def label_of_one(last: torch.Tensor) -> int:
    """The label of a batch of one.

    Args:
        last: gradient of the last layer's bias (c,), or of its weight (c, h) where inputs are not negative
            (after ReLU or sigmoid) or there is no bias.

    Raises:
        ValueError: no class has a falling loss: the gradient is no single record's, or a change was given, whose sign is opposite.
    """
    _check(last)
    if last.ndim == 1:
        falling = (last < 0).nonzero().flatten()
        if len(falling) != 1:
            raise ValueError(
                f"one record's bias gradient is negative in exactly one class, found {len(falling)} of {len(last)}; "
                "for batches use label_counts, and negate changes (new minus old)"
            )
        return int(falling)
    # rows are (p_c - y_c) h: the label's points the other way than all others
    towards = last.double() @ last.double().T
    opposed = (towards < 0).sum(1)
    if int(opposed.max()) < len(last) - 1:
        raise ValueError("no class opposes all others: not the gradient of one record")
    return int(opposed.argmax())


def label_counts(bias: torch.Tensor, records: int, mean_probability: torch.Tensor) -> torch.Tensor:
    """How many records of each class a batch held, (c,) int64, adding up to `records`.

    Args:
        bias: gradient of the last layer's bias, of the mean loss, (c,). records: in the batch.
        mean_probability: (c,), the model's average output on the batch. An adversary takes the average on data of
            its own or on noise; at a fresh head it is close to uniform.

    Raises:
        ValueError: shapes that differ, or fewer than one record.
    """
    _check(bias)
    if bias.ndim != 1 or mean_probability.shape != bias.shape or records < 1:
        raise ValueError(
            f"needs bias and mean_probability (c,) and records >= 1; got {tuple(bias.shape)}, "
            f"{tuple(mean_probability.shape)} and {records}"
        )
    expected = (records * (mean_probability.double() - bias.double())).clamp_min(0)
    expected *= records / float(expected.sum()) if bool(expected.any()) else 1.0
    counts = expected.floor().long()
    missing = records - int(counts.sum())
    counts[(expected - counts).topk(missing).indices] += 1  # largest remainders
    return counts


def count_error(found: torch.Tensor, true: torch.Tensor) -> float:
    """Share of records whose label was counted wrong: half the L1 distance over the batch."""
    return float((found - true).abs().sum()) / 2 / float(true.sum())


def _check(last: torch.Tensor) -> None:
    if last.ndim not in (1, 2) or len(last) < 2:
        raise ValueError(
            f"needs a bias (c,) or a weight (c, h) of at least 2 classes, got {tuple(last.shape)}"
        )
    if not bool(last.isfinite().all()):
        raise ValueError("the gradient holds a value that is not finite")
