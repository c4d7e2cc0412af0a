"""What a remedy is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any, ClassVar, Self

from vitscope.errors import UsageError
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.remedies.editor import Editor

ReadImages = Callable[[], Iterable[Pixels]]
"""Gives the images, in batches on the model's device; it may be called more than once."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Remedy(ABC):
    """An edit of a model that lasts as long as a context.

    Settings are the fields of its class. What is measured on images before the edit is a field too,
    None until `fitted` has filled it in.
    """

    name: ClassVar[str]
    named_by: ClassVar[str] = ""
    """The setting whose value is the name in place of `name`."""

    def fitted(self, vit: ViTAdapter, read: ReadImages) -> Self:
        """Measure on images what the edit needs.

        Args:
            vit: The model to be edited.
            read: Gives preprocessed images in batches, on the model's device.

        Returns:
            A copy with the measurements; the remedy itself if it needs none.

        Raises:
            UsageError: If the images do not have what the edit needs, such as high-norm tokens.
        """
        del vit, read
        return self

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
            UsageError: If the remedy needs measurements and was not fitted.
            UnsupportedModelError: If the edit does not apply to the model.
        """
        editor = Editor(vit, self.describe())
        self.edit(editor)
        with editor.applied() as edited:
            yield edited

    @abstractmethod
    def edit(self, editor: Editor) -> None:
        """Declare the edits."""

    def describe(self) -> str:
        """The remedy in words that tell it from any other: its name, settings and measurements.

        Returns:
            Such as "shuffle:tokens=cls,statistics=1f0c".
        """
        told = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name != self.named_by:
                told.append(f"{field.name}={_tell(value)}")
        name = str(getattr(self, self.named_by)) if self.named_by else self.name
        return f"{name}:{','.join(told)}" if told else name

    def require(self, measured: Any) -> Any:
        """Refuse to edit without measurements."""
        if measured is None:
            raise UsageError(
                f"the remedy {self.describe()} is measured on images first: call fitted(vit, "
                "read), or compare_remedies, which does so"
            )
        return measured


def _tell(value: object) -> str:
    if hasattr(value, "tensors"):
        digest = blake2b(digest_size=4)
        for tensor in value.tensors():
            digest.update(tensor.detach().cpu().double().numpy().tobytes())
        return digest.hexdigest()
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return str(value)
