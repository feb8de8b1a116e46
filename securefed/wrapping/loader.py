"""Your loader, replaced by one that draws Poisson batches from the same data set with the same collate.

Every record joins each batch independently with probability batch_size / records. So batches differ in
size, some are empty, and an epoch is ceil(records / batch_size) of them: what the accountant assumes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from securefed.errors import BudgetExceeded, DataError, PrivacyError
from securefed.training.dp import draw

if TYPE_CHECKING:
    from securefed.crypto.entropy import Stream
    from securefed.wrapping.steps import PrivateSteps

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """One physical batch: how many records, whether the step is complete with it, whether it is the check's."""

    rows: int
    last: bool = True
    probe: bool = False


def check_loader(loader: Any) -> int:
    """The loader's batch size, if Poisson sampling can stand in for what it does.

    Raises:
        DataError: not a DataLoader over a map-style data set with a batch size.
        PrivacyError: an order or a weighting of its own, which Poisson batches do not have.
    """
    if not isinstance(loader, DataLoader):
        raise DataError(f"loader must be a torch DataLoader, found {type(loader).__name__}")
    if isinstance(loader.dataset, IterableDataset):
        raise PrivacyError(
            "an IterableDataset cannot be Poisson sampled: every record must be reachable by its number; "
            "give a map-style data set (len and [i])"
        )
    if isinstance(loader.sampler, SequentialSampler) and loader.batch_size is not None:
        raise PrivacyError(
            "the loader reads in a fixed order (shuffle=False), and the accounting holds for Poisson batches only; "
            "set shuffle=True: its batches are then drawn by Poisson sampling"
        )
    if loader.batch_size is None or type(loader.sampler) is not RandomSampler:
        raise PrivacyError(
            f"the loader's own sampler ({type(loader.sampler).__name__}, batch_sampler {type(loader.batch_sampler).__name__}) "
            "would be replaced by Poisson sampling, so its order or weights would be lost; use batch_size and shuffle=True"
        )
    if loader.sampler.replacement or loader.sampler.num_samples != len(loader.dataset):  # type: ignore[arg-type]  # map-style, so it has a length
        raise PrivacyError(
            "the loader draws with replacement or a part of the data set; Poisson sampling does neither: use shuffle=True"
        )
    return int(loader.batch_size)


class PoissonBatches:
    """A batch sampler: the records of each physical batch, with what they mean beside in `pieces`."""

    def __init__(self, stream: Stream, records: int, rate: float, count: int, steps: PrivateSteps) -> None:
        self._stream, self._records, self._rate, self._count, self._steps = (
            stream,
            records,
            rate,
            count,
            steps,
        )
        self.pieces: deque[Piece] = deque()

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self._count):
            rows = [int(i) for i in draw(self._stream, self._records, self._rate)]
            if not rows:
                self.pieces.append(Piece(0))
                continue
            size = self._steps.physical_batch or len(rows)
            if len(rows) > 1 and self._steps.wants_probe:
                self.pieces.append(Piece(1, last=False, probe=True))
                yield rows[:1]
            for i in range(0, len(rows), size):
                part = rows[i : i + size]
                self.pieces.append(Piece(len(part), last=i + size >= len(rows)))
                yield part


class PrivateLoader:
    """Iterates over Poisson batches; each must be followed by one backward pass and one `optimizer.step()`.

    An iteration is an epoch. It ends early with the last step that plan and budget allow. An empty batch is not shown: its
    step, noise alone, is taken here. Batches larger than `physical_batch` come in parts, and the first
    batch is preceded by one of its records alone, on which the step-one check is made.
    """

    def __init__(self, base: DataLoader[Any], steps: PrivateSteps, sampling: Stream) -> None:
        self._base, self._steps, self._sampling = base, steps, sampling
        self.dataset, self.collate_fn = base.dataset, base.collate_fn
        self.records = len(base.dataset)  # type: ignore[arg-type]  # map-style, so it has a length
        self.batch_size = int(base.batch_size or 1)
        self.sample_rate = min(1.0, self.batch_size / self.records)

    def __len__(self) -> int:
        """Steps of an epoch."""
        return -(-self.records // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """The batches of one epoch, as `collate_fn` makes them.

        Raises:
            BudgetExceeded: the plan's steps are taken, or not one more fits the budget.
            PrivacyError: a batch was asked for while the last one has had no `optimizer.step()`.
        """
        self._steps.begin_epoch()
        first = self._steps.account.taken
        try:
            yield from self._epoch()
        except BudgetExceeded as end:
            if self._steps.account.taken == first:
                raise
            logger.warning("the epoch ends here: %s", end)

    def _epoch(self) -> Iterator[Any]:
        for piece, batch in self.parts():
            if piece.rows == 0:
                self._steps.empty()
                continue
            self._steps.hand_out(piece)
            yield batch
            self._steps.require_used()

    def parts(self) -> Iterator[tuple[Piece, Any]]:
        """The parts of one epoch's batches in order, empty batches as (Piece(0), None); nothing is charged."""
        left = min(len(self), self._steps.account.left)
        sampler = PoissonBatches(self._sampling, self.records, self.sample_rate, left, self._steps)
        for batch in self._loader(sampler):
            yield from _empty(sampler.pieces)
            yield sampler.pieces.popleft(), batch
        yield from _empty(sampler.pieces)

    def _loader(self, sampler: PoissonBatches) -> DataLoader[Any]:
        base = self._base
        extra: dict[str, Any] = {"prefetch_factor": base.prefetch_factor} if base.num_workers else {}
        return DataLoader(
            base.dataset,
            batch_sampler=sampler,
            collate_fn=base.collate_fn,
            num_workers=base.num_workers,
            pin_memory=base.pin_memory,
            timeout=base.timeout,
            worker_init_fn=base.worker_init_fn,
            multiprocessing_context=base.multiprocessing_context,
            **extra,
        )


def _empty(pieces: deque[Piece]) -> Iterator[tuple[Piece, None]]:
    while pieces and pieces[0].rows == 0:
        yield pieces.popleft(), None
