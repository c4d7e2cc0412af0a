"""Half precision by autocast: products in 16 bits, weights and the residual stream in 32.

Requirements met here:

- What a model adds up over its blocks stays in float32, so that no rounding piles up there; save
  where a library's own code casts it, as open_clip's does.
- Only the model's own code runs in half precision; a ledger made of it does not.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

HALF_PRECISIONS = (torch.bfloat16, torch.float16)


class Autocast:
    """Whether a model runs under autocast at the moment; shared by all adapters of its module."""

    def __init__(self) -> None:
        """Begin without: the model computes in the precision of its weights."""
        self._half: torch.dtype | None = None

    @property
    def half(self) -> torch.dtype | None:
        """The half precision that the model runs in; None where it runs in that of its weights."""
        return self._half

    @contextmanager
    def switched(self, device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
        """Let `applied` mean a precision for a while."""
        before, self._half = self._half, dtype if dtype in HALF_PRECISIONS else None
        try:
            # No autocast of the caller's. And weights that are cast are kept until the outermost
            # context ends: until this one, not for each batch anew. The caller's own context may
            # be further out. What is kept in it may be cast from weights before the last step of a
            # training, or, left by this one, to another precision than the caller's.
            torch.clear_autocast_cache()
            with torch.autocast(torch.device(device).type, enabled=False):
                yield
        finally:
            torch.clear_autocast_cache()
            self._half = before

    def without_gradients(self) -> AbstractContextManager[object]:
        """Keep no record for gradients."""
        return torch.inference_mode() if self._half is None else torch.no_grad()

    def applied(self, device: torch.device) -> AbstractContextManager[object]:
        """Run the model's own code as it is to be run."""
        return nullcontext() if self._half is None else torch.autocast(device.type, self._half)


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return False
