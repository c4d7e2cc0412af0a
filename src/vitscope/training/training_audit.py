"""Audits of a model in training, with the numbers of `vitscope.audit` and without side effects."""

import warnings
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from vitscope.adapters.registry import open_model
from vitscope.config import AuditConfig, combine
from vitscope.errors import UsageError, VitscopeError
from vitscope.files.storage import scratch_folder
from vitscope.images.addresses import Images
from vitscope.images.image_set import ImageBatch, ImageSet
from vitscope.images.preprocessing import Preprocessing
from vitscope.models.base import ViTAdapter
from vitscope.models.running import check_whole
from vitscope.results.audit_result import AuditResult
from vitscope.runs.audit_run import AuditRun
from vitscope.runs.model_run import ModelRun, make_image_set
from vitscope.training.curves import list_numbers

OnError = Literal["raise", "warn"]


class TrainingAudit:
    """Audits a model in training on a fixed set of images, which are decoded only once.

    The preprocessed images stay in memory: 0.6 MB each at 224 x 224 px.
    """

    def __init__(
        self,
        images: ImageSet | Images,
        config: AuditConfig | None = None,
        *,
        submodule: str = "",
        preprocessing: Preprocessing | None = None,
        **settings: Any,
    ) -> None:
        """Prepare the audit; the images are decoded at the first run.

        Args:
            images: Images as for `vitscope.audit`.
            config: Settings; by default those of `AuditConfig` without a gallery. The device `auto`
                is that of the model.
            submodule: Dotted name of the Vision Transformer within the trained model, such as
                "backbone" or "teacher.backbone"; empty if it is the model itself.
            preprocessing: Preprocessing of the images; the library's default for the model if None.
            **settings: Settings of `AuditConfig` by name, in addition to or instead of `config`.

        Raises:
            UsageError: If a setting is unknown, invalid or given twice, or `shard` is set.
        """
        self._images = images
        if config is None:
            settings = {"gallery": 0} | settings
        self._config = combine(AuditConfig, config, settings)
        if self._config.shard is not None:
            raise UsageError(
                f"shard {self._config.shard}: a model in training is audited on all of its images; "
                "leave it out, or set a limit"
            )
        self._submodule = submodule
        self._preprocessing = preprocessing
        self._decoded: tuple[ImageSet, list[ImageBatch]] | None = None

    def run(self, model: nn.Module) -> AuditResult:
        """Audit the model as it is now.

        Args:
            model: The model in training.

        Returns:
            The result in a temporary folder; `save` it to keep it.

        Raises:
            UsageError: If the model has no such submodule or is not complete in this process, or
                images or settings do not fit.
            UnsupportedModelError: If the Vision Transformer is not supported.
            ImageReadError: If no image can be read.
            ImbalanceError: If a ledger does not balance.
            NonFiniteError: If an activation is not finite.
            VitscopeError: If the result cannot be written to the disk.
        """
        tower = self._find_tower(model)
        device = next(tower.parameters()).device
        # The user's hooks may draw random numbers.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            vit = open_model(tower, self._preprocessing)
            config = self._config
            if config.device == "auto":
                config = replace(config, device=str(vit.parameter.device))
            images, batches = self._decode(vit, config)
            with scratch_folder() as folder:
                AuditRun(vit, images, config).execute(folder, batches)
        return AuditResult.own(folder)

    def _find_tower(self, model: nn.Module) -> nn.Module:
        try:
            tower = model.get_submodule(self._submodule)
        except AttributeError:
            names = ", ".join(name for name, _ in model.named_children()) or "none"
            raise UsageError(
                f"{type(model).__name__} has no submodule {self._submodule!r}: expected the dotted "
                f"name of its Vision Transformer; its own submodules are {names}"
            ) from None
        check_whole(tower)
        return tower

    def _decode(self, vit: ViTAdapter, config: AuditConfig) -> tuple[ImageSet, list[ImageBatch]]:
        if self._decoded is None:
            images = make_image_set(vit, self._images, config).without_copies()
            self._decoded = images, list(ModelRun(vit, images, config).read_batches())
        return self._decoded


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
