"""The attention that a model's code calls, fused, packed or step by step, in any library."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vitscope.errors import UnsupportedModelError
from vitscope.maps.functions import MATMULS, SOFTMAXES, split_packed


class AttentionCalls(TorchFunctionMode):
    """Hands on every attention that runs in its context; this one changes nothing."""

    @property
    def is_inside(self) -> bool:
        """Whether calls are of interest now."""
        return True

    def fused(self, call: Callable[..., Tensor], *given: Any, **named: Any) -> Tensor:
        """Run fused attention: softmax(κ Q Kᵀ + bias) V."""
        return call(*given, **named)

    def edit_logits(self, logits: Tensor) -> Tensor:
        """Logits of an attention that the model's code computes step by step."""
        return logits

    def read(self, call: Callable[..., Tensor], weights: Tensor, values: Tensor) -> Tensor:
        """Multiply the weights of such an attention by the values."""
        return call(weights, values)

    def packed(
        self, call: Callable[..., Any], *given: Any, attn_mask: Tensor | None = None, **_: Any
    ) -> Any:
        """Run packed attention, whose inner attention torch does not show to a mode."""
        heads, join = split_packed(*given)
        del call
        attend = functional.scaled_dot_product_attention
        return join(self.fused(attend, *heads, attn_mask=attn_mask)), None

    def __torch_function__(
        self, function: Callable[..., Any], _: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Called by torch for every function while the context lasts."""
        named = dict(kwargs or {})
        if not self.is_inside:
            return function(*args, **named)
        if function is functional.scaled_dot_product_attention:
            return self.fused(function, *args, **named)
        if function is functional.multi_head_attention_forward:
            return self.packed(function, *args, **named)
        if function in SOFTMAXES and _is_attention(args, named):
            logits, *others = args or (named.pop("input"),)
            weights = function(self.edit_logits(logits), *others, **named)
            weights._is_attention = True
            return weights
        if function in MATMULS:
            first = [named.pop("input")] if "input" in named else []
            factors = [*first, *args, *named.values()]  # the last may be "other" or "mat2"
            if getattr(factors[0], "_is_attention", False):
                return self.read(function, *factors)
            return function(*first, *args, **named)
        return function(*args, **named)


class BlockAttentions(AttentionCalls):
    """Those of the block that is running, which must have one."""

    advice: ClassVar[str] = (
        "call set_attn_implementation('sdpa') on a model of transformers, or choose another model"
    )

    def __init__(self) -> None:
        super().__init__()
        self.layer: int | None = None
        self.num_seen = 0

    @property
    def is_inside(self) -> bool:
        """Whether a block is running."""
        return self.layer is not None

    def enter(self, layer: int, *_: object) -> None:
        """Start a block."""
        self.layer, self.num_seen = layer, 0

    def leave(self, *_: object) -> None:
        """End a block, whose attention must have been seen."""
        layer, self.layer = self.layer, None
        if self.num_seen != 1:
            raise UnsupportedModelError(
                f"{self.num_seen} attentions were found in block {layer}, expected 1: {self.advice}"
            )


def _is_attention(args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    logits = args[0] if args else named["input"]
    return bool(logits.ndim == 4)
