"""When a model in training is audited, and what becomes of an audit that fails."""

import warnings
from typing import Literal, get_args

from torch import nn

from vitscope.errors import UsageError, VitscopeError
from vitscope.training.curves import list_numbers
from vitscope.training.training_audit import TrainingAudit

OnError = Literal["raise", "warn"]


class AuditWarning(UserWarning):
    """An audit failed, and training went on without its numbers."""


class AuditSchedule:
    """An audit before the first step, and then after every so many."""

    def __init__(self, audit: TrainingAudit, every: int, on_error: OnError) -> None:
        if every < 1:
            raise UsageError(f"every {every} steps: expected 1 or more")
        if on_error not in get_args(OnError):
            raise UsageError(f"on_error {on_error!r}: expected raise or warn")
        self._audit = audit
        self._every = every
        self._on_error = on_error
        self._last_step: int | None = None

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Audit the model if it is time."""
        # With accumulated gradients a trainer may ask more than once in a step.
        if step % self._every or step == self._last_step:
            return {}
        self._last_step = step
        try:
            return list_numbers(self._audit.run(model).summary)
        except VitscopeError as error:
            if self._on_error == "raise":
                raise
            warnings.warn(f"the audit at step {step} failed: {error}", AuditWarning, stacklevel=2)
            return {}
