"""`make_private`: a plain PyTorch loop keeps its shape and carries example-level differential privacy.

Unit: one record of the data set; neighbours: one record blanked out in its place (zero-out). Holds against
everyone who sees the weights at any step, or anything computed from them. Losses and gradients that the
loop itself looks at are private and outside the bound. DP-SGD: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1, with Poisson
sampling and the public denominator sample_rate x records.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.errors import CheckpointError, PrivacyError
from securefed.privacy.chain import Head
from securefed.privacy.ledger import Ledger
from securefed.training.dp import DPWork, check_mechanism, per_sample_gradients
from securefed.wrapping.account import Account, Terms
from securefed.wrapping.loader import PrivateLoader, check_loader
from securefed.wrapping.schedule import PrivateSchedule
from securefed.wrapping.steps import PrivateOptimizer, PrivateSteps
from securefed.wrapping.terms import check_arguments, make_terms, plan_steps, trained_tensors

if TYPE_CHECKING:
    from securefed.privacy.events import Accountant
    from securefed.privacy.statement import Statement


class Private:
    """A model, an optimizer and a loader that train privately together; made by `make_private`.

    Attributes:
        model: the one given; only hooks are on it until `close`, so it is saved and called as before.
        optimizer, loader: in place of yours.
        noise_multiplier, sample_rate, steps: the mechanism, public.
        data_id: the data set's name in the ledger. run: this run's.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: PrivateSteps,
        loader: PrivateLoader,
        hooks: ExitStack,
        delta: float,
        ledger: Ledger,
    ) -> None:
        self.model, self.loader, self.ledger = model, loader, ledger
        self.delta = delta
        self._steps, self._hooks = steps, hooks
        self._schedules: list[PrivateSchedule] = []

    @property
    def optimizer(self) -> PrivateOptimizer:
        """Your optimizer, private."""
        return self._steps.optimizer

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Name -> trained tensor."""
        return self._steps.parameters

    @property
    def account(self) -> Account:
        """What is reserved and taken."""
        return self._steps.account

    @property
    def run(self) -> str:
        """The run's name in the ledger: `securefed epsilon RUN` prints its statement."""
        return self.account.run

    @property
    def data_id(self) -> str:
        """The data set's name in the ledger."""
        return self.account.terms.dataset

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over max_grad_norm."""
        return self.account.terms.noise_multiplier

    @property
    def sample_rate(self) -> float:
        """Probability with which each record joins a batch."""
        return self.account.terms.sample_rate

    @property
    def steps(self) -> int:
        """Steps of the whole plan."""
        return self.account.terms.steps

    @property
    def steps_taken(self) -> int:
        """Steps taken so far, over all resumptions."""
        return self.account.taken

    def epsilon(self, delta: float | None = None) -> float:
        """Spent so far by this run at delta (its own by default), everything reserved included."""
        return self.account.epsilon(self.delta if delta is None else delta)

    def statement(self, delta: float | None = None) -> Statement:
        """The epsilon with everything a reader must know beside it; `.text()` is for people."""
        self.epsilon()  # makes the run known, so that one without a step has a statement too
        return self.ledger.statement(
            self.delta if delta is None else delta, self.run, self.account.terms.budget.accountant
        )

    def schedule(self, scheduler: Any) -> PrivateSchedule:
        """A learning-rate scheduler that is stepped once a batch, kept in time with private steps.

        It passes over calls after a part of a batch, and steps by itself after an empty batch. One that is
        stepped once an epoch needs none of this.
        """
        made = PrivateSchedule(scheduler, self._steps)
        self._schedules.append(made)
        return made

    def save(self, folder: str | Path) -> Path:
        """Writes trained tensors, optimizer, schedules and the count of steps; no noise state, no pickle."""
        from securefed.wrapping.checkpoint import save

        return save(Path(folder), self, self._schedules)

    def resume(self, folder: str | Path) -> Private:
        """Goes on from the newest whole checkpoint, before the first step; gives itself back.

        The run keeps its name in the ledger: whatever it had reserved stays charged.

        Raises:
            CheckpointError: nothing there, or it was made with another model, data set or mechanism.
        """
        from securefed.wrapping.checkpoint import load

        load(Path(folder), self, self._schedules)
        return self

    @property
    def machine(self) -> PrivateSteps:
        """The steps, for code that drives them itself (the Trainer)."""
        return self._steps

    def position(self) -> dict[str, Any]:
        """Which run this is, how far it has come, and what must be equal to go on; plain data."""
        return {
            "run": self.run,
            "version": 1,
            "unit": "example",
            "delta": self.delta,
            "accountant": self.account.terms.budget.accountant,
            "taken": self.steps_taken,
            "charges": self.account.charges(),
            "ledger": str(self.ledger.head()),
            "identity": identity(self),
        }

    def write_position(self, path: Path) -> None:
        """Stores `position` as JSON."""
        path.write_text(json.dumps(self.position()), encoding="utf-8")

    def read_position(self, facts: Mapping[str, Any]) -> None:
        """Goes on in the account of the run that wrote `facts`, before the first step.

        Raises:
            CheckpointError: of another training, or steps were taken already.
            PrivacyError: the ledger does not hold what that run had spent.
        """
        if self.steps_taken or self.account.started:
            raise CheckpointError("resume before the first step; this run has already spent")
        for key, value in identity(self).items():
            found = facts["identity"].get(key)
            if found != value:
                raise CheckpointError(
                    f"the checkpoint has another {key} ({found}, now {value}); resume with the arguments it was started with"
                )
        seen = Head.parse(facts["ledger"]) if "ledger" in facts else None  # none before there was a chain
        self.ledger.require(str(facts["run"]), int(facts["charges"]), seen)
        self._steps.account = Account(self.ledger, str(facts["run"]), self.account.terms, int(facts["taken"]))

    def close(self) -> None:
        """Settles the account and takes the hooks off; the model is plain again. Twice is once."""
        self.account.close()
        self.optimizer.clear()
        self.optimizer.give_back()
        self._hooks.close()

    def __enter__(self) -> Private:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Private(run={self.run!r}, data_id={self.data_id!r}, noise_multiplier={self.noise_multiplier:.4g}, "
            f"sample_rate={self.sample_rate:.4g}, steps={self.steps_taken}/{self.steps})"
        )


def make_private(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Any,
    *,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    delta: float,
    max_grad_norm: float,
    epochs: int | None = None,
    steps: int | None = None,
    ledger: Ledger | None = None,
    data_id: str | None = None,
    physical_batch: int = 0,
    site_epsilon: float = 0.0,
    accountant: Accountant = "pld",
    grad_sample_mode: Literal["hooks", "functorch"] = "hooks",
    entropy: Entropy | None = None,
) -> Private:
    """Model, optimizer and loader of a training loop, made private; the loop keeps its shape.

    The loss must be the mean of the records' own losses; the first batch is preceded by one of its
    records alone, on which that is checked. After the plan's last step, or the last that the run's or the
    site's budget allows, the loader ends; asked again, it raises `BudgetExceeded`.

    Args:
        model: any module whose layers Opacus can follow, LoRA or whole; frozen parts need nothing.
        optimizer: over the model's trainable tensors, fresh; SGD, Adam and their kin.
        loader: a DataLoader with batch_size and shuffle=True; replaced by Poisson sampling at rate
            batch_size / records over the same data set and collate_fn.
        epsilon: the target at delta for the whole plan; noise is calibrated. Or
        noise_multiplier: the noise itself; epsilon follows.
        delta: in (0, 1 / records). max_grad_norm: each record's gradient is clipped to this L2 norm, > 0.
        epochs, steps: the plan, one of them; an epoch is ceil(records / batch_size) steps.
        ledger: the site's own by default.
        data_id: the data set's name there; by default a fingerprint, for which every record is read once.
        physical_batch: records at most in one backward pass (gradient accumulation); 0 = no bound.
        site_epsilon: cap on all runs of this site on this data set; 0 = none.
        entropy: the system's; a seeded one is for tests only and voids the guarantee.

    torch's global generator is seeded from secret randomness for every batch: dropout masks under a known
    seed would tie the records of a batch together.

    Raises:
        PrivacyError: arguments or a loader that cannot carry the guarantee; the reason and the way out.
        ModelError: a model whose records are not separate, or an optimizer that does not fit it.

    Example:
        >>> import torch, securefed as sf
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 3), torch.zeros(64, 1))
        >>> loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with sf.make_private(
        ...     model, optimizer, loader, epsilon=3.0, delta=1e-3, max_grad_norm=1.0, epochs=1, data_id="doctest"
        ... ) as private:
        ...     for x, y in private.loader:
        ...         private.optimizer.zero_grad()
        ...         torch.nn.functional.mse_loss(private.model(x), y).backward()
        ...         private.optimizer.step()
        >>> private.epsilon() <= 3.0
        True
    """
    check_arguments(
        accountant,
        grad_sample_mode,
        physical_batch,
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        delta=delta,
        max_grad_norm=max_grad_norm,
        site_epsilon=site_epsilon,
    )
    batch = check_loader(loader)
    records = len(loader.dataset)
    rate = min(1.0, batch / records)
    planned = plan_steps(epochs, steps, -(-records // batch))
    terms = make_terms(
        loader.dataset,
        records,
        rate,
        planned,
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        delta=delta,
        site_epsilon=site_epsilon,
        accountant=accountant,
        data_id=data_id,
    )
    return open_private(
        model,
        optimizer,
        loader,
        terms,
        max_grad_norm=max_grad_norm,
        ledger=ledger,
        physical_batch=physical_batch,
        mode=grad_sample_mode,
        entropy=entropy,
    )


def identity(private: Private) -> dict[str, Any]:
    """What must be equal when a run goes on: data set, mechanism, plan, and the trained tensors' shapes."""
    terms = private.account.terms
    shapes = sorted((n, list(p.shape)) for n, p in private.parameters.items())
    return {
        "data set": terms.dataset,
        "records": terms.shard.records,
        "noise multiplier": terms.noise_multiplier,
        "sample rate": terms.sample_rate,
        "clipping norm": private.optimizer.max_grad_norm,
        "plan": terms.steps,
        "model": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
    }


def open_private(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Any,
    terms: Terms,
    *,
    max_grad_norm: float,
    ledger: Ledger | None,
    physical_batch: int,
    mode: str,
    entropy: Entropy | None,
) -> Private:
    """Puts the hooks on and the parts together.

    Raises:
        ModelError, PrivacyError: see `make_private`.
    """
    dp = DPWork(
        terms.noise_multiplier,
        max_grad_norm,
        terms.sample_rate,
        terms.sample_rate * terms.shard.records,
        mode,
    )
    check_mechanism(dp)
    if physical_batch < 0:
        raise PrivacyError(f"physical_batch must be 0 (no bound) or more, got {physical_batch}")
    parameters = trained_tensors(model, optimizer)
    secret = entropy or SystemEntropy()
    run = secrets.token_hex(8)
    own = ledger or Ledger.site()
    hooks = ExitStack()
    hooks.enter_context(per_sample_gradients(model, mode))  # may refuse; nothing else is changed before it
    steps = PrivateSteps(
        model,
        parameters,
        optimizer,
        dp,
        Account(own, run, terms),
        secret.stream("noise", "loop"),
        secret.stream("masks", "loop"),
        physical_batch=physical_batch,
    )
    private_loader = PrivateLoader(loader, steps, secret.stream("sampling", "loop"))
    return Private(model, steps, private_loader, hooks, terms.budget.delta, own)
