"""Audits during training: a core independent of any trainer, and one callback per library.

Import `lightning_callback` or `trainer_callback` to train with one of them; this package imports
neither.
"""

from vitscope.training.curves import list_numbers
from vitscope.training.training_audit import TrainingAudit

__all__ = ["TrainingAudit", "list_numbers"]
