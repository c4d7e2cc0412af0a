"""A block as a linear map of each token, in any library.

Its parts are found by running the block on chosen tensors, so nothing needs to be known of how a
library keeps its weights.

Source: SINDER (Wang et al., ECCV 2024).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn.functional import pad

from vitscope.errors import UnsupportedModelError
from vitscope.maps.attention_calls import BlockAttentions
from vitscope.maps.functions import read_fused
from vitscope.maps.passes import RunningPass, run_blocks
from vitscope.models.base import ViTAdapter
from vitscope.models.running import Hooks
from vitscope.models.stream import replace_input, take_input, take_stream
from vitscope.remedies.editor import find_neurons

Matrix = Float64[Tensor, "dim dim"]
Rows = Float[Tensor, "row _"]

_NUM_SAMPLES = 100_000
_ROWS_AT_ONCE = 4096
_NODES = torch.linspace(-9, 9, 513, dtype=torch.float64).unsqueeze(1)
"""Nodes of an integral over a standard normal variable. On equal steps it converges exponentially,
also where Gauss-Hermite nodes would be too far apart for the bend of an activation."""
_DENSITY = (-_NODES.square() / 2).softmax(dim=0)


@dataclass(frozen=True, eq=False)
class LinearBlock:
    """The linear part of a block, x ↦ (M N₂ + I)(V N₁ + I) x, without biases."""

    # V = γ₁ ∘ W_O W_V, all heads together: what attention adds for a token that is read with weight
    # 1
    values: Matrix
    # N₁ = diag(w) C with C = I − 11ᵀ/d: the first norm, but for the token's scale; an RMS norm has
    # C = I
    attention_norm: Matrix
    # M = γ₂ ∘ W₂ W, where W is the linear map nearest to the MLP's neurons on normal tokens
    mlp: Matrix
    mlp_norm: Matrix  # N₂

    def multiply(self) -> Matrix:
        """The map as one matrix."""
        same = torch.eye(len(self.values), dtype=torch.float64)
        return (self.mlp @ self.mlp_norm + same) @ (self.values @ self.attention_norm + same)


def linearise_blocks(vit: ViTAdapter) -> Iterator[LinearBlock]:
    """The linear part of each block in order, on the CPU, in float64."""
    # W is E[∂n/∂x] over x ~ N(0, I) for neurons n(x). For n = φ(a) and n = φ(a) ∘ c, with a and c
    # affine in x, Stein's lemma makes it one integral over a normal variable for each neuron. For
    # other MLPs it is the least squares of n(x) on seeded samples of x.
    for block in list_row_blocks(vit):
        with vit.undisturbed(), torch.no_grad():
            linear = _linearise(block)
        yield linear


class _OwnToken(BlockAttentions):
    """Each token reads itself alone: attention weights are the identity."""

    def fused(self, call: Callable[..., Tensor], *given: Any, **named: Any) -> Tensor:
        del call
        self.num_seen += 1
        return read_fused(*given, **named).value

    def read(self, call: Callable[..., Tensor], weights: Tensor, values: Tensor) -> Tensor:
        del call, weights
        self.num_seen += 1
        return values


class _Call(NamedTuple):
    module: nn.Module
    given: Any
    output: Any


class RowBlock:
    """Runs a block on rows, each a token by itself, with chosen tensors inside."""

    def __init__(
        self, vit: ViTAdapter, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Find the parts of a block that was called with these arguments."""
        module, last = vit.encoder_blocks[layer], find_neurons(vit, layer)
        self._layer, self._module, self._last = layer, module, last
        self._args, self._kwargs = args, kwargs
        self._stream = take_stream(take_input(args, kwargs))
        self.dim, self.num_neurons = last.out_features, last.in_features
        calls = self._list_calls()
        norms = [call for call in calls if "norm" in type(call.module).__name__.lower()]
        linears = [call for call in calls if isinstance(call.module, nn.Linear)]
        read = linears[-2].given if len(linears) > 1 else None
        mlp_norm = next((call.module for call in norms if call.output is read), None)
        shape = self._stream.shape
        first = next((c for c in calls if getattr(c.given, "shape", None) == shape), None)
        if mlp_norm is None or norms[0] is not first:
            raise UnsupportedModelError(
                f"{type(module).__name__} does not compute r = x + attention(norm(x)), then r + "
                "mlp(norm(r)): it has no linear part to take directions from"
            )
        # A gate and what it gates are one layer, or two with the same input.
        self._first: list[Any] = [call.module for call in linears[:-1] if call.given is read]
        self.attention_norm, self.mlp_norm = norms[0].module, mlp_norm

    def run(self, outputs: Mapping[nn.Module, Rows], *, neurons: Rows) -> Rows:
        """What the block adds to tokens of 0, given outputs of modules and the MLP's neurons."""
        return self._execute(outputs, neurons)[0]

    def preactivate(self, tokens: Rows) -> Rows:
        """What the MLP's first layers make of normed tokens, in one row."""
        return torch.cat([layer(tokens.to(self._stream)) for layer in self._first], dim=1).cpu()

    def activate(self, preactivations: Rows) -> Rows:
        """The neurons that the MLP makes of such rows."""
        widths = [layer.out_features for layer in self._first]
        parts = torch.split(preactivations, widths, dim=1)
        return self._execute(dict(zip(self._first, parts, strict=True)), None)[1]

    def _execute(
        self, outputs: Mapping[nn.Module, Rows], neurons: Rows | None
    ) -> tuple[Rows, Rows]:
        count = len(next(iter(outputs.values())) if neurons is None else neurons)
        num_tokens = self._stream.shape[1]
        seen: list[Tensor] = []

        def fill(rows: Rows, like: Tensor) -> Tensor:
            padded = pad(rows, (0, 0, 0, -count % num_tokens))
            return padded.reshape(*like.shape[:-1], -1).to(like)

        def change(rows: Rows, _: nn.Module, __: object, output: Tensor) -> Tensor:
            return fill(rows, output)

        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            seen.append(take_input(args, kwargs))
            return None if neurons is None else ((fill(neurons, seen[0]),), {})

        with Hooks() as hooks:
            for module, rows in outputs.items():
                hooks.after(module, partial(change, rows))
            hooks.before(self._last, see)
            output = self._forward(-(-count // num_tokens))
        added, found = (t.reshape(-1, t.shape[-1])[:count].double().cpu() for t in (output, *seen))
        return added, found

    def _forward(self, batch: int) -> Tensor:
        stream = self._stream.new_zeros(batch, *self._stream.shape[1:])
        args, kwargs = replace_input(self._args, self._kwargs, stream)
        with _OwnToken() as attention:
            attention.enter(self._layer)
            output = take_stream(self._module(*args, **kwargs))
            attention.leave()
        return output

    def _list_calls(self) -> list[_Call]:
        calls: list[_Call] = []

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls.append(_Call(module, args[0] if args else None, output))

        with Hooks() as hooks:
            for part in self._module.modules():
                if not any(part.children()):
                    hooks.after(part, keep)
            self._forward(1)
        return calls


def list_row_blocks(vit: ViTAdapter) -> Sequence[RowBlock]:
    """The blocks of a model, as they are called in its forward."""
    # Blocks are called with more than the stream, such as rotary positions.
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    def watch(running: RunningPass) -> None:
        for block in vit.encoder_blocks:
            running.before(block, keep)

    pixels = vit.parameter.new_zeros(1, 3, *vit.preprocessing.size)
    run_blocks(vit, pixels, watch=watch)
    return [RowBlock(vit, layer, *call) for layer, call in enumerate(calls)]


def _linearise(block: RowBlock) -> LinearBlock:
    zero, same = torch.zeros(1, block.dim), torch.eye(block.dim)
    silent = torch.zeros(1, block.num_neurons)
    values = block.run(
        {block.attention_norm: torch.cat([same, zero])}, neurons=silent.expand(len(same) + 1, -1)
    )
    nearest = integrate_neurons(block)
    if nearest is None:
        nearest = fit_neurons(block, _NUM_SAMPLES, seed=0)
    mlp = block.run({}, neurons=torch.cat([nearest.T, silent]))
    return LinearBlock(
        values=(values[:-1] - values[-1]).T,
        attention_norm=_linearise_norm(block.attention_norm, block.dim),
        mlp=(mlp[:-1] - mlp[-1]).T,
        mlp_norm=_linearise_norm(block.mlp_norm, block.dim),
    )


def _linearise_norm(norm: Any, dim: int) -> Matrix:
    matrix = torch.eye(dim, dtype=torch.float64)
    if "rms" not in type(norm).__name__.lower():
        matrix -= 1 / dim
    weight = getattr(norm, "weight", None)
    return matrix if weight is None else weight.double().cpu().unsqueeze(1) * matrix


def integrate_neurons(block: RowBlock) -> Float64[Tensor, "neuron dim"] | None:
    """E[∂n/∂x] over normal tokens x; None if the neurons are of no known form."""
    rows = block.preactivate(torch.cat([torch.eye(block.dim), torch.zeros(1, block.dim)])).double()
    weights, biases = (rows[:-1] - rows[-1]).T, rows[-1]
    size = block.num_neurons
    if not _act_alone(block, len(weights)):
        return None
    lengths = torch.linalg.vector_norm(weights, dim=1).clamp(min=torch.finfo(torch.double).tiny)
    if len(weights) == size:
        # E[φ'(b + sz)] = E[φ(b + sz) z] / s.
        neurons = block.activate(biases + lengths * _NODES)
        of_all: Tensor = _average(neurons * _NODES) / lengths
        return of_all.unsqueeze(1) * weights
    gate = _find_gate(block)
    if gate is None:
        return None
    gated = slice(size, None) if gate.start == 0 else slice(0, size)
    # Given a = b + sz, the mean of c is p + qz; and E[φ'(a)(p + qz)] = E[φ(a)(z (p + qz) − q)] / s.
    slope: Tensor = (weights[gate] * weights[gated]).sum(dim=1) / lengths[gate]
    given = torch.ones(len(_NODES), 2 * size, dtype=torch.float64)
    given[:, gate] = biases[gate] + lengths[gate] * _NODES
    activated = block.activate(given)
    mean = _average(activated)
    product = activated * (biases[gated] + slope * _NODES)
    of_gate: Tensor = (_average(product * _NODES) - slope * mean) / lengths[gate]
    return of_gate.unsqueeze(1) * weights[gate] + mean.unsqueeze(1) * weights[gated]


def _average(values: Float64[Tensor, "node neuron"]) -> Float64[Tensor, " neuron"]:
    return (values * _DENSITY).sum(dim=0)


def _act_alone(block: RowBlock, width: int) -> bool:
    # Neuron k depends on row k of the first layer, or rows k and K + k, and on no other.
    if width % block.num_neurons or width > 2 * block.num_neurons:
        return False
    half = block.num_neurons // 2
    given = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    for start in range(0, width, block.num_neurons):
        given[1, start : start + half] = given[0, start : start + half]
    first, second = block.activate(given)[:, :half]
    return torch.equal(first, second)


def _find_gate(block: RowBlock) -> slice | None:
    # n = φ(a) ∘ c doubles with c, not with a.
    size = block.num_neurons
    given = torch.randn(1, 2 * size, generator=torch.Generator().manual_seed(0)).expand(3, -1)
    doubled = given.clone()
    doubled[1, :size] *= 2
    doubled[2, size:] *= 2
    plain, first, second = block.activate(doubled)
    if torch.allclose(second, 2 * plain, rtol=1e-5, atol=1e-7):
        return slice(0, size)
    if torch.allclose(first, 2 * plain, rtol=1e-5, atol=1e-7):
        return slice(size, 2 * size)
    return None


def fit_neurons(block: RowBlock, num_samples: int, seed: int) -> Float64[Tensor, "neuron dim"]:
    """Least squares of the neurons on normal tokens, without a constant."""
    generator = torch.Generator().manual_seed(seed)
    gram = torch.zeros(block.dim, block.dim, dtype=torch.float64)
    products = torch.zeros(block.dim, block.num_neurons, dtype=torch.float64)
    for start in range(0, num_samples, _ROWS_AT_ONCE):
        size = (min(_ROWS_AT_ONCE, num_samples - start), block.dim)
        tokens = torch.randn(size, generator=generator, dtype=torch.float64)
        gram += tokens.T @ tokens
        products += tokens.T @ block.activate(block.preactivate(tokens))
    solution: Tensor = torch.linalg.solve(gram, products)
    return solution.T
