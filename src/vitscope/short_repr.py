"""A short repr for objects that hold tensors: shapes, not numbers."""

from dataclasses import fields
from typing import Any


class ShortRepr:
    """Mixin for dataclasses with `repr=False`: shows arrays and tensors by their shapes."""

    def __repr__(self) -> str:
        told = (f"{field.name}={_show(getattr(self, field.name))}" for field in fields(self))  # type: ignore[arg-type]  # whoever inherits is a dataclass
        return f"{type(self).__name__}({', '.join(told)})"


def _show(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value) if shape is None else str(tuple(shape))
