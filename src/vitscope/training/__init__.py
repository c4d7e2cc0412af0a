"""Audits while a model is trained: a core that knows no trainer, and a callback for each library.

`lightning_callback` and `trainer_callback` are imported by whoever trains with one of them; neither
is imported here.
"""

from vitscope.training.curves import list_numbers
from vitscope.training.training_audit import TrainingAudit

__all__ = ["TrainingAudit", "list_numbers"]
