"""The settings of an audit: the same for the library, the command line and the saved provenance."""

from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, Literal

from vitscope.errors import UsageError

if TYPE_CHECKING:
    import torch

DTypeName = Literal["float32", "float64", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """How an audit is run.

    Attributes:
        limit: Look at this many pictures, drawn at random; all of them by default.
        batch_size: Pictures per forward pass; the numbers do not depend on it.
        device: Where to run: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        dtype: Precision the model runs in; sums are always float64.
        layers: Layers to audit: last, all, or block numbers from 0 such as 3,7.
        size: Input size in pixels, such as 518, or HEIGHTxWIDTH as in 224x336; the model's own by
            default.
        num_workers: Processes that decode pictures beside the model; 0 decodes in line.
        seed: Seed of the draw that a limit makes.
        renormalize: Divide restricted outputs by the kept attention mass, as if the softmax ran
            over the kept tokens alone; the paper keeps the weights as they are.
        features: Keep every picture's features beside the sums, or drop them and with them the
            per-picture centred cosines.
    """

    limit: int | None = None
    batch_size: int = 32
    device: str = "auto"
    dtype: DTypeName = "float32"
    layers: str = "last"
    size: str | None = None
    num_workers: int = 0
    seed: int = 0
    renormalize: bool = False
    features: Literal["keep", "drop"] = "keep"

    def __post_init__(self) -> None:
        """Refuse settings that cannot be.

        Raises:
            UsageError: Naming the setting.
        """
        for name, least in (("limit", 1), ("batch_size", 1), ("num_workers", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name.replace('_', '-')} {value}: expected {least} or more")
        if self.dtype not in {"float32", "float64", "bfloat16", "float16"}:
            raise UsageError(
                f"dtype {self.dtype!r}: expected float32, float64, bfloat16 or float16"
            )
        if self.features not in {"keep", "drop"}:
            raise UsageError(f"features {self.features!r}: expected keep or drop")
        if self.size is not None:
            parse_size(self.size)
        parse_layers(self.layers)

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The precision as torch's own name."""
        import torch  # here, so that the command line can teach without it

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Input (height, width) in pixels; None for the model's own."""
        return None if self.size is None else parse_size(self.size)

    def resolve_device(self) -> "torch.device":
        """Where to run.

        Returns:
            The device, which exists on this machine.

        Raises:
            UsageError: If it does not.
        """
        import torch

        if self.device == "auto":
            accelerator = torch.accelerator.current_accelerator(check_available=True)
            return torch.device("cpu") if accelerator is None else accelerator
        try:
            device = torch.device(self.device)
            # Reading a number back proves that the device computes ("meta" does not).
            torch.ones(1, device=device).item()
        except (RuntimeError, AssertionError) as error:
            reason = shorten(str(error), width=100, placeholder=" …")
            raise UsageError(
                f"device {self.device!r} is not available here ({reason}): use auto or cpu"
            ) from None
        return device


def parse_size(text: str) -> tuple[int, int]:
    """Read an input size.

    Args:
        text: One number for a square, or HEIGHTxWIDTH, in pixels.

    Returns:
        (height, width).

    Raises:
        UsageError: If it is neither.
    """
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(
            f"size {text!r}: expected pixels such as 518, or HEIGHTxWIDTH as in 224x336"
        )
    height, width = int(parts[0]), int(parts[-1])
    return height, width


def parse_layers(text: str) -> Literal["last", "all"] | tuple[int, ...]:
    """Read a choice of layers.

    Args:
        text: "last", "all", or block numbers separated by commas.

    Returns:
        The word, or the numbers.

    Raises:
        UsageError: If it is something else.
    """
    if text == "last":
        return "last"
    if text == "all":
        return "all"
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"layers {text!r}: expected last, all, or block numbers such as 3,7"
        ) from None
