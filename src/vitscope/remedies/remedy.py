"""What a remedy is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import Field, dataclass, fields, replace
from hashlib import blake2b
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from torch import Tensor

from vitscope.errors import UsageError
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.edits import Edit
from vitscope.models.identity import hash_tensor
from vitscope.remedies.editor import Editor


class Measured(Protocol):
    """What a remedy measures on images before its edit."""

    def save(self) -> dict[str, Tensor]:
        """All that was measured."""
        ...

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Restore what was saved."""
        ...

    def tell(self) -> str:
        """What was measured, in words."""
        ...


ReadImages = Callable[[], Iterable[Pixels]]
"""Gives the images, in batches on the model's device; it may be called more than once."""


class Origin(NamedTuple):
    """What measurements belong to."""

    model: str  # digest of the model that was measured, by `hash_backbone`
    settings: str  # label of the remedy that measured it


class _UnmeasuredError(UsageError):
    """The edit needs what was not measured yet."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Remedy(ABC):
    """An edit of a model that lasts as long as a context.

    Settings are the fields of its class. What is measured on images before the edit is a field too,
    None until `fitted` has filled it in; a copy with other settings is measured anew.

    Attributes:
        measured_on: The model and settings that were measured; None if none were.
    """

    name: ClassVar[str]
    named_by: ClassVar[str] = ""
    """The setting whose value is the name in place of `name`."""
    is_of_row: ClassVar[bool] = False
    """See `Edit`."""
    is_affine: ClassVar[bool] = False
    """Whether the edit is the same affine map for every image."""
    measured_on: Origin | None = None

    def __post_init__(self) -> None:
        """Forget what was measured under other settings, which `dataclasses.replace` copies."""
        if self.measured_on is not None and self.measured_on.settings != self.label:
            for name in ("measured_on", *self.list_measured()):
                object.__setattr__(self, name, None)

    @property
    def is_traced(self) -> bool:
        """Whether a trace goes through the edit."""
        return self.is_affine

    @property
    def implied(self) -> tuple[str, ...]:
        """Settings that the name implies."""
        return ()

    def fitted(self, vit: ViTAdapter, read: ReadImages) -> Self:
        """Measure on images what the edit needs.

        Args:
            vit: The model to be edited.
            read: Gives preprocessed images in batches, on the model's device.

        Returns:
            A copy with the measurements; the remedy itself if it needs none or has them.

        Raises:
            UsageError: If the images do not have what the edit needs, such as high-norm tokens.
        """
        if self.measured_on is not None:
            return self
        measured = self.measure(vit, read)
        if not measured.list_measured():
            return measured
        return replace(measured, measured_on=Origin(hash_backbone(vit), self.label))

    def measure(self, vit: ViTAdapter, read: ReadImages) -> Self:
        """A copy with what was measured; the remedy itself if it measures nothing."""
        del vit, read
        return self

    def examine(self, vit: ViTAdapter, read: ReadImages) -> str:
        """What images show of a fitted remedy besides, in lines of text; empty for most."""
        del vit, read
        return ""

    @contextmanager
    def applied(self, vit: ViTAdapter) -> Iterator[ViTAdapter]:
        """Edit a model for the duration of the context.

        Args:
            vit: The model; its module is edited in place, by hooks.

        Yields:
            The adapter of the edited model, for `audit`, `judge`, `explain` and all else. When the
            context ends, also by an exception, the hooks are gone and the module is as it was.
            Until then other threads wait for the model, and the adapter `vit` refuses to run.

        Raises:
            UsageError: If the remedy needs measurements and was not fitted, or to another model.
            UnsupportedModelError: If the edit does not apply to the model.
        """
        with self._declare(vit).applied() as edited:
            yield edited

    def check(self, vit: ViTAdapter) -> None:
        """Refuse a model that cannot be edited so, as far as is known without images."""
        with suppress(_UnmeasuredError):
            self._declare(vit)

    def _declare(self, vit: ViTAdapter) -> Editor:
        if self.measured_on is not None and self.measured_on.model != hash_backbone(vit):
            raise UsageError(
                f"the remedy {self.label} was measured on another model than {vit.info.id}, or "
                "under other weights or edits: measure it on this one"
            )
        edit = Edit(self.describe(), is_traced=self.is_traced, is_of_row=self.is_of_row)
        editor = Editor(vit, self.label, edit)
        self.edit(editor)
        return editor

    @abstractmethod
    def edit(self, editor: Editor) -> None:
        """Declare the edits."""

    @property
    def label(self) -> str:
        """Name and settings, such as "shuffle:tokens=cls"."""
        told = [
            f"{field.name}={tell_value(value)}"
            for field, value in self._list_changed()
            if field.name not in {self.named_by, "measured_on", *self.implied}
            and not hasattr(value, "save")
        ]
        name = str(getattr(self, self.named_by)) if self.named_by else self.name
        return f"{name}:{','.join(told)}" if told else name

    def describe(self) -> str:
        """The remedy in words that tell it from any other: its label and what was measured.

        Returns:
            Such as "shuffle:tokens=cls (measured: 1f0cab52)".
        """
        digest, measured = blake2b(digest_size=4), self.list_measured()
        for name, each in measured.items():
            for key, tensor in each.save().items():
                digest.update(f"{name} {key} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().double().numpy().tobytes())
        return f"{self.label} (measured: {digest.hexdigest()})" if measured else self.label

    def list_measured(self) -> dict[str, Measured]:
        """What was measured, by the names of its fields."""
        return {f.name: value for f, value in self._list_changed() if hasattr(value, "save")}

    def _list_changed(self) -> Iterator[tuple[Field[Any], Any]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                yield field, value

    def require(self, measured: Any) -> Any:
        """Refuse to edit without measurements."""
        if measured is None:
            raise _UnmeasuredError(
                f"the remedy {self.describe()} is measured on images first: call fitted(vit, "
                "read), or compare_remedies, which does so"
            )
        return measured


def hash_backbone(vit: ViTAdapter) -> str:
    """Digest of a model's weights and edits that is the same wherever `placed` puts it."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(vit.module.state_dict().items()):
        digest.update(f"{name} {hash_tensor(tensor.float())}\n".encode())
    for edit in vit.edits:
        digest.update(f"edit {edit.words}\n".encode())
    return digest.hexdigest()


def tell_value(value: object) -> str:
    """A setting as it is typed."""
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
