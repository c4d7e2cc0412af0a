"""Catching a model's nonlinear operations while it runs, to replace what they hand backward.

torch's function mode sees every call of a torch function, whatever library made it. Values stay the
model's own. Weights are frozen meanwhile, so that a tensor that requires a gradient is one that
depends on the tokens; other calls are left alone. One exception: a float64 pass is not rounded to
float32 on its way.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vitscope.errors import UnsupportedModelError
from vitscope.maps.rules import Pair, Rules, apply_to_both, attend

_ELEMENTWISE: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    name: names[0]
    for names in (
        (functional.gelu,),
        (functional.silu,),
        (functional.relu, torch.relu, Tensor.relu),
        (functional.hardswish,),
        (functional.mish,),
        (torch.sigmoid, functional.sigmoid, Tensor.sigmoid),
        (torch.tanh, functional.tanh, Tensor.tanh),
        (torch.erf, Tensor.erf),
        (torch.exp, Tensor.exp),
        (torch.pow, Tensor.pow, Tensor.__pow__),
        (torch.square, Tensor.square),
        (torch.rsqrt, Tensor.rsqrt),
    )
    for name in names
}
_PRODUCTS = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
SOFTMAXES = (functional.softmax, torch.softmax, Tensor.softmax)
_CASTS = (Tensor.to, Tensor.float)

Inputs = list[tuple[Tensor, ...]]
"""Inputs of every call that was caught, in order, when the model ran on the reference."""


class Call(NamedTuple):
    """A call that was caught."""

    kind: str  # "norm", "activation", "product", "matmul", "softmax", "read" or "attention"
    block: int | None  # index of the block that was running; None outside the blocks


class AttentionBackward(NamedTuple):
    """One attention in a backward pass."""

    block: int | None  # index of its block; None outside the blocks
    weights: Float[Tensor, "batch head query key"]  # A, at the image
    of_weights: Float[Tensor, "batch head query key"]  # the multiplier of A
    # ⟨m_V, V − V'⟩ of each image: what came through what was read
    through_values: Float[Tensor, " batch"]
    through_routing: Float[Tensor, " batch"]  # ⟨m_A, A − A'⟩: what came through where it was read


@dataclass(eq=False)
class CaughtFunctions(TorchFunctionMode):
    """Catches the nonlinear operations of one forward pass and gives them backward rules."""

    rules: Rules
    references: Inputs | None = None
    _: KW_ONLY
    keep: bool = False
    on_attention: Callable[[AttentionBackward], None] | None = None
    # index of the block that is running, set by hooks; None outside the blocks
    block: int | None = None
    calls: list[Call] = field(default_factory=list)  # what was caught, in order
    # the inputs of every call, if they are kept to be the references of another pass
    kept: Inputs = field(default_factory=list)
    # the items of the references that the next backward pass compares with
    reference: slice = field(default_factory=lambda: slice(0, 1))

    def __post_init__(self) -> None:
        super().__init__()
        self._handlers: dict[Callable[..., Any], Callable[..., Any]] = {
            functional.scaled_dot_product_attention: self._catch_attention,
            functional.multi_head_attention_forward: self._catch_packed_attention,
            functional.layer_norm: partial(self._catch_norm, functional.layer_norm),
            functional.rms_norm: partial(self._catch_norm, functional.rms_norm),
            **{name: partial(self._catch_elementwise, name) for name in _ELEMENTWISE},
            **{name: partial(self._catch_product, name) for name in _PRODUCTS},
            **{name: partial(self._catch_matmul, name) for name in MATMULS},
            **{name: partial(self._catch_softmax, name) for name in SOFTMAXES},
            **{name: partial(_cast_unrounded, name) for name in _CASTS},
        }

    def __torch_function__(
        self, function: Callable[..., Any], _: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        handler = self._handlers.get(function)
        if "input" in named:
            args = (named.pop("input"), *args)
        depends = any(map(_depends, (*args, *named.values())))
        # Without gradients a call is part of a larger operation that brings its own backward.
        if handler is None or not depends or not torch.is_grad_enabled():
            return function(*args, **named)
        return handler(*args, **named)

    def _apply(
        self,
        kind: str,
        forward: Callable[..., Tensor],
        pull: Callable[..., tuple[Tensor, ...]],
        *inputs: Tensor,
    ) -> Tensor:
        index = len(self.calls)
        self.calls.append(Call(kind, self.block))
        if self.keep:
            self.kept.append(tuple(each.detach() for each in inputs))
            return forward(*inputs)

        def pull_pairs(m: Tensor, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            others: Iterable[Tensor] = images
            if self.references is not None:
                others = (each[self.reference] for each in self.references[index])
            # Where an input was broadcast, autograd takes the sum.
            return pull(m, *map(Pair, images, others))

        output: Tensor = _Pulled.apply(forward, pull_pairs, *inputs)
        return output

    def _catch_elementwise(
        self, name: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        if not _depends(x) or any(map(_depends, (*args, *kwargs.values()))):
            return name(x, *args, **kwargs)  # type: ignore[no-any-return]  # x to a varying power
        kwargs.pop("inplace", None)

        def function(x: Tensor) -> Tensor:
            return _ELEMENTWISE[name](x, *args, **kwargs)

        output = self._apply(
            "activation", function, lambda m, x: (self.rules.elementwise(m, function, x),), x
        )
        if _ELEMENTWISE[name] is torch.rsqrt:
            output._is_scale = True  # type: ignore[attr-defined]
        return output

    def _catch_product(self, name: Callable[..., Any], a: Any, other: Any) -> Tensor:
        if not (_depends(a) and _depends(other)):
            return name(a, other)  # type: ignore[no-any-return]  # linear in the one that does
        is_norm = getattr(other, "_is_scale", False)
        rule = self.rules.scale if is_norm else self.rules.product
        return self._apply("norm" if is_norm else "product", torch.mul, rule, a, other)

    def _catch_matmul(
        self, name: Callable[..., Any], a: Tensor, *args: Tensor, **kwargs: Tensor
    ) -> Tensor:
        (b,) = (*args, *kwargs.values())  # "other" or "mat2"
        if not (_depends(a) and _depends(b)):
            return name(a, b)  # type: ignore[no-any-return]  # linear in the one that does
        if getattr(a, "_is_attention", False):
            return self._apply("read", torch.matmul, partial(self._pull_read, self.block), a, b)
        return self._apply("matmul", torch.matmul, self.rules.matmul, a, b)

    def _pull_read(
        self, block: int | None, m: Tensor, weights: Pair, values: Pair
    ) -> tuple[Tensor, Tensor]:
        of_weights, of_values = self.rules.read(m, weights, values)
        if self.on_attention is not None:
            item = AttentionBackward(
                block=block,
                weights=weights.image,
                of_weights=of_weights,
                through_values=_multiply_difference(of_values, values),
                through_routing=_multiply_difference(of_weights, weights),
            )
            self.on_attention(item)
        return of_weights, of_values

    def _catch_softmax(
        self, name: Callable[..., Any], logits: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        kwargs.pop("_stacklevel", None)
        dim = kwargs.get("dim", args[0] if args else None)
        if dim not in {-1, logits.ndim - 1}:
            return name(logits, *args, **kwargs)  # type: ignore[no-any-return]  # not attention

        def pull(m: Tensor, logits: Pair) -> tuple[Tensor]:
            logs = apply_to_both(partial(torch.log_softmax, dim=-1), logits)
            return (self.rules.softmax(m, logs),)

        weights = self._apply("softmax", partial(torch.softmax, dim=-1), pull, logits)
        weights._is_attention = True  # type: ignore[attr-defined]
        return weights

    def _catch_norm(
        self, name: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        given = signature(name).bind(x, *args, **kwargs)
        given.apply_defaults()
        weight, eps = given.arguments["weight"], given.arguments["eps"]

        def pull(m: Tensor, x: Pair) -> tuple[Tensor]:
            if name is functional.layer_norm:
                return (self.rules.layer_norm(m, x, weight, eps),)
            epsilon = torch.finfo(x.image.dtype).eps if eps is None else eps
            scaled = m if weight is None else m * weight
            return (self.rules.rms_norm(scaled, x, x.image.shape[-1], epsilon),)

        return self._apply("norm", lambda x: name(x, *args, **kwargs), pull, x)

    def _catch_attention(self, *args: Any, **kwargs: Any) -> Tensor:
        call = read_fused(*args, **kwargs)
        pull = partial(
            self.rules.attention,
            bias=call.bias,
            scale=call.scale,
            read=partial(self._pull_read, self.block),
        )
        forward = partial(
            functional.scaled_dot_product_attention, attn_mask=call.mask, scale=call.factor
        )
        return self._apply("attention", forward, pull, call.query, call.key, call.value)

    def _catch_packed_attention(
        self,
        query: Float[Tensor, "query batch dim"],
        key: Float[Tensor, "key batch dim"],
        value: Float[Tensor, "key batch dim"],
        *args: Any,
        attn_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        heads, join = split_packed(query, key, value, *args)
        return join(self._catch_attention(*heads, attn_mask)), None


def split_packed(
    query: Float[Tensor, "query batch dim"],
    key: Float[Tensor, "key batch dim"],
    value: Float[Tensor, "key batch dim"],
    *args: Any,
) -> tuple[tuple[Tensor, Tensor, Tensor], Callable[[Tensor], Tensor]]:
    """Queries, keys and values of `multi_head_attention_forward` in heads, and how to join them.

    torch does not show the inner attention of `nn.MultiheadAttention` to a mode. Adapters refuse
    everything but its packed form.
    """
    _, num_heads, in_proj_weight, in_proj_bias, _, _, _, _, out_weight, out_bias = args[:10]
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    weights = in_proj_weight.chunk(3)
    queries, keys, values = (
        functional.linear(tokens, weight, bias)
        .view(*tokens.shape[:2], num_heads, -1)
        .permute(1, 2, 0, 3)
        for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )

    def join(read: Tensor) -> Tensor:
        return functional.linear(read.permute(2, 0, 1, 3).flatten(2), out_weight, out_bias)

    return (queries, keys, values), join


class FusedAttention(NamedTuple):
    """A call of fused attention: softmax(κ Q Kᵀ + bias) V."""

    query: Float[Tensor, "batch head query head_dim"]
    key: Float[Tensor, "batch head key head_dim"]
    value: Float[Tensor, "batch head key head_dim"]
    mask: Tensor | None  # as it was given
    factor: float | None  # likewise

    @property
    def bias(self) -> Tensor | None:
        """What is added to the logits."""
        return None if self.mask is None else as_bias(self.mask, self.query)

    @property
    def scale(self) -> float:
        """κ."""
        return float(self.query.shape[-1] ** -0.5) if self.factor is None else self.factor

    def weigh(self) -> Float[Tensor, "batch head query key"]:
        """Attention weights, computed anew."""
        return attend(self.query, self.key, self.bias, self.scale).exp()


def read_fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 - models run in evaluation mode
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> FusedAttention:
    """Read the arguments of torch's function."""
    if is_causal:
        raise UnsupportedModelError(
            "the model's attention is causal: expected every token to see all others"
        )
    if enable_gqa:
        group = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(group, dim=-3) for each in (key, value))
    return FusedAttention(query, key, value, attn_mask, scale)


def as_bias(mask: Tensor, query: Tensor) -> Tensor:
    """What is added to logits, of a mask that is this already or is true where tokens are seen."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)


class _Pulled(torch.autograd.Function):
    """An operation with a backward rule of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        forward: Callable[..., Tensor],
        pull: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
        *inputs: Tensor,
    ) -> Tensor:
        ctx.pull = pull
        ctx.save_for_backward(*inputs)
        return forward(*inputs)

    @staticmethod
    def backward(ctx: Any, m: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.pull(m, ctx.saved_tensors)


def _depends(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _cast_unrounded(name: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # Norms written for half precision round float64 to float32 too, which has no slope.
    cast: Tensor = name(x, *args, **kwargs)
    return x if _depends(x) and cast.dtype.itemsize < x.dtype.itemsize else cast


def _multiply_difference(m: Tensor, pair: Pair) -> Float[Tensor, " batch"]:
    return (m * (pair.image - pair.reference)).flatten(1).sum(dim=1)
