"""The settings of an audit: the same for the library, the command line and the saved provenance."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vitscope.errors import UsageError

if TYPE_CHECKING:
    import torch

DTypeName = Literal["float32", "float64", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """How an audit is run.

    Attributes:
        limit: Look at this many pictures, drawn at random; None for all.
        batch_size: Pictures per forward pass; the numbers do not depend on it.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps".
        dtype: Precision the model runs in; sums are always float64.
        layers: "last", "all", or block numbers from 0, separated by commas.
        size: Input (height, width) in pixels; None for the model's own.
        num_workers: Processes that decode pictures beside the model; 0 decodes in line.
        seed: Seed of the draw that `limit` makes.
        renormalize: Divide restricted outputs by the kept attention mass, as if the softmax ran
            over the kept tokens alone; the paper keeps the weights as they are.
        features: "keep" the features of every picture beside the sums, or "drop" them and with
            them the per-picture centred cosines.
    """

    limit: int | None = None
    batch_size: int = 32
    device: str = "auto"
    dtype: DTypeName = "float32"
    layers: str = "last"
    size: tuple[int, int] | None = None
    num_workers: int = 0
    seed: int = 0
    renormalize: bool = False
    features: Literal["keep", "drop"] = "keep"

    def __post_init__(self) -> None:
        """Refuse settings that cannot be.

        Raises:
            UsageError: Naming the setting.
        """
        for name, least in (("limit", 1), ("batch_size", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name.replace('_', '-')} {value}: expected {least} or more")
        if self.dtype not in {"float32", "float64", "bfloat16", "float16"}:
            raise UsageError(
                f"dtype {self.dtype!r}: expected float32, float64, bfloat16 or float16"
            )
        if self.features not in {"keep", "drop"}:
            raise UsageError(f"features {self.features!r}: expected keep or drop")

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The precision as torch's own name."""
        import torch  # here, so that the command line can teach without it

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

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
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
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
