"""A learning-rate schedule that counts private steps, whatever the loop sees of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from securefed.wrapping.steps import PrivateSteps


class PrivateSchedule:
    """Any scheduler of `torch.optim.lr_scheduler`, stepped once a private step; all else goes through."""

    def __init__(self, scheduler: Any, steps: PrivateSteps) -> None:
        self.inner, self._steps = scheduler, steps
        steps.on_empty.append(scheduler.step)

    def step(self, *arguments: Any) -> None:
        """One step of the schedule, if the last `optimizer.step()` ended a step."""
        if self._steps.released:
            self.inner.step(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
