"""When to audit a model in training, and how to handle failed audits."""

import warnings
from typing import Literal, get_args

from torch import nn

from vitscope.errors import UsageError, VitscopeError
from vitscope.training.curves import list_numbers
from vitscope.training.training_audit import TrainingAudit

OnError = Literal["raise", "warn"]


class AuditWarning(UserWarning):
    """Warns of a failed audit; training continues without its numbers."""


class AuditSchedule:
    """Schedules an audit before the first step, and then at regular intervals."""

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
        """Audit the model if it is due."""
        # With gradient accumulation a trainer may call this more than once per step.
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
