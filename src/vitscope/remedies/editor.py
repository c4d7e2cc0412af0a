"""Editing a model: hooks on its blocks while a context lasts, and the same edits in its adapter.

The adapter of the edited model reads the module's own tensors, so its ledgers balance only if the
hooks and the adapter's account agree.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import blake2b
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.layout import TokenLayout
from vitscope.maps.passes import find_patches, take_patches
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.blocks import AttentionCall, BlockParts, Heads, HeadsFunction, return_rows
from vitscope.models.edits import Edit, EditHook, make_ended
from vitscope.models.stream import replace_input, replace_output, take_input, take_stream
from vitscope.remedies.attention import HiddenTokens, Hiding
from vitscope.remedies.new_tokens import find_prenorm, lay_out_more, prefix_raised

Tokens = Float[Tensor, "batch token dim"]
Places = Bool[Tensor, "batch token"]
"""Which tokens of each image."""


@dataclass(frozen=True, eq=False)
class Running:
    """The images that an edited model is running on."""

    layout: TokenLayout  # which token is what, inserted tokens included
    pixels: Pixels

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """A number of each image, made of its pixels alone: the same in any batch."""
        images = self.pixels.detach().float().cpu().contiguous().numpy()
        digests = (blake2b(image.tobytes(), digest_size=7).digest() for image in images)
        return tuple(int.from_bytes(digest, "big") for digest in digests)

    def find_patches(self, tokens: Tokens) -> range:
        """Positions of the patches in a residual stream."""
        return find_patches(self.layout, tokens.shape[1])

    def take_patches(self, tokens: Tensor) -> Tensor:
        """The patches of a residual stream: a view."""
        return take_patches(self.layout, tokens)

    def find_group(self, group: str, tokens: Tokens) -> Places:
        """Places of a group of tokens, the same in every image."""
        shift = self.find_patches(tokens).start - self.layout.groups["patches"].start
        places = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        for position in self.layout.groups[group]:
            places[:, position + shift] = True
        return places


TokenEdit = Callable[[Tokens, Running], Tokens]
PlaceFinder = Callable[[Tokens, Running], Bool[Tensor, "batch *head token"]]
"""Finds places that are the same for all heads, or those of each head."""
RowEdit = Callable[[Float[Tensor, "batch dim"]], Float[Tensor, "batch dim"]]


class _State:
    """What the hooks and the adapter of an edited model share."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.is_applied = False
        self.running: Running | None = None
        self.hidden = HiddenTokens()

    @property
    def now(self) -> Running:
        if self.running is None:
            raise UsageError(
                "the edited model was run directly: run it through the adapter that `applied` gave"
            )
        return self.running


class Editor:
    """Collects the edits of one model, then applies them."""

    def __init__(self, vit: ViTAdapter, label: str, edit: Edit | None = None) -> None:
        """Start without edits; `edit` tells them from any other, `label` is for people."""
        self.vit = vit
        self._label = label
        self._edit = Edit(label, is_traced=False, is_of_row=False) if edit is None else edit
        self._state = _State(self._edit)
        self._blocks: dict[int, BlockParts] = dict(vit.blocks)
        self._num_inserted = 0
        self._hooks: list[tuple[nn.Module, Literal["input", "output"], Callable[..., Any]]] = []

    def select_layers(self, layers: Literal["last", "all"] | tuple[int, ...]) -> tuple[int, ...]:
        """Indices of the encoder blocks that are chosen, in order."""
        depth = len(self.vit.encoder_blocks)
        if layers == "all":
            return tuple(range(depth))
        chosen = (-1,) if layers == "last" else layers
        for layer in chosen:
            if not -depth <= layer < depth:
                raise UsageError(
                    f"{self.vit.info.id} has no block {layer}: choose from 0 to {depth - 1}, or "
                    f"from {-depth} to -1"
                )
        return tuple(sorted({layer % depth for layer in chosen}))

    def insert_registers(self, count: int) -> None:
        """Insert tokens of zeros after the registers, or before the patches without any."""
        vit = self.vit
        if vit.position_biases:
            raise UnsupportedModelError(
                f"{vit.info.id} adds position biases to all pairs of tokens, and a new token has "
                "none: no registers can be inserted"
            )
        if vit.info.global_feature == "average":
            raise UnsupportedModelError(
                f"the global feature of {vit.info.id} is an average of its tokens, which would "
                "change with new tokens: no registers can be inserted"
            )
        if vit.edits:
            raise UsageError(
                "registers cannot be inserted into a model that is being edited "
                f"({vit.edits[0].words}), whose edits know its own tokens alone: insert them "
                "first, and edit that model"
            )
        self._num_inserted += count
        encoder, state = vit.encoder_blocks, self._state
        insert = partial(_insert, count, find_prenorm(vit.module))
        self._hooks.append((encoder[0], "input", partial(_edit_input, state, insert)))
        if vit.info.global_feature != "cls":  # a pooling head reads the model's own tokens
            remove = partial(_remove, count)
            self._hooks.append((encoder[-1], "output", partial(_edit_output, state, remove)))

    def edit_stream(self, layer: int, function: TokenEdit) -> None:
        """Edit the residual stream at the input of a block."""
        block = self.vit.encoder_blocks[layer]
        self._hooks.append((block, "input", partial(_edit_input, self._state, function)))

    def edit_neurons(self, layer: int, function: TokenEdit) -> None:
        """Edit the neurons of a block's MLP: the input of its last linear layer."""
        linear = find_neurons(self.vit, layer)
        self._hooks.append((linear, "input", partial(_edit_input, self._state, function)))

    def edit_skip(self, layer: int, function: RowEdit) -> None:
        """Edit the row that the attention branch is added to, for [CLS] alone."""
        parts = self._take_parts(layer)
        kept: dict[str, Tensor] = {}
        if parts.branch_scale is not None and not bool(parts.branch_scale.all()):
            raise UnsupportedModelError(
                f"a layer scale in block {layer} of {self.vit.info.id} is 0: its skip connection "
                "cannot be edited through the attention branch"
            )
        assert parts.attention_norm is not None
        earlier = parts.skip or return_rows
        change = partial(_change_branch, kept, earlier, function, parts.branch_scale, self._state)
        # The norm's input is the block's, after all edits of it.
        self._hooks.append((parts.attention_norm, "input", partial(_keep_skip, kept)))
        self._hooks.append((parts.branch, "output", change))
        self._blocks[layer] = replace(parts, skip=partial(_apply_both, earlier, function))

    def hide_tokens(self, layer: int, find: PlaceFinder, hiding: Hiding) -> None:
        """Hide tokens from the attention of a block."""
        if hiding.rows == "cls":
            self.require_cls()
        block, hidden = self.vit.encoder_blocks[layer], self._state.hidden
        self._hooks.append((block, "input", partial(_find_hidden, self._state, layer, find)))
        self._hooks.append((block, "output", hidden.leave))
        hidden.by_layer[layer] = hiding
        if layer in self._blocks:
            parts = self._blocks[layer]
            project = parts.project_heads
            self._blocks[layer] = replace(
                parts,
                make_heads=partial(_hide_heads, hidden, layer, parts.make_heads),
                project_heads=project and partial(_hide_heads, hidden, layer, project),
            )

    def require_cls(self) -> None:
        """Refuse a model without a [CLS] token."""
        if self.vit.info.global_feature != "cls":
            raise UnsupportedModelError(
                f"the global feature of {self.vit.info.id} is by {self.vit.info.global_feature}: "
                "this edit is one of the [CLS] row; choose a model with a [CLS] token"
            )

    @contextmanager
    def applied(self) -> Iterator[ViTAdapter]:
        """Edit the model for the duration of the context.

        Yields:
            The adapter of the edited model, over the same module.

        Raises:
            UsageError: If the same edit is applied already.
        """
        vit, inserted, state = self.vit, self._num_inserted, self._state
        if self._edit in vit.edits:
            raise UsageError(f"the edit {self._edit.words} is being applied already: apply it once")
        with vit.undisturbed(), ExitStack() as stack:
            if inserted:
                stack.enter_context(prefix_raised(vit, inserted))
            # An edit without hooks still has a name by which the module is known to be edited.
            hooks = self._hooks or [(vit.module, "input", _change_nothing)]
            for module, where, function in hooks:
                hook = EditHook(self._edit, function)
                if where == "input":
                    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                else:
                    handle = module.register_forward_hook(hook)
                stack.callback(handle.remove)
            stack.callback(setattr, state, "is_applied", False)
            state.is_applied = True
            yield self._adapt()

    def _adapt(self) -> ViTAdapter:
        vit, state = self.vit, self._state
        lay_out = vit.make_layout
        if self._num_inserted and vit.info.global_feature == "cls":
            lay_out = partial(lay_out_more, vit.make_layout, self._num_inserted)
        run = partial(_run, state, lay_out)
        classifier = vit.classifier
        if classifier is not None:
            pools_inserted = self._num_inserted > 0 and not classifier.reads_feature
            classifier = (
                None if pools_inserted else replace(classifier, run=partial(run, classifier.run))
            )
        info = replace(
            vit.info,
            id=f"{vit.info.id}+{self._label}",
            recipe=f"{vit.info.recipe or vit.info.family}+{self._label}",
            num_registers=vit.info.num_registers + self._num_inserted,
            notes=(*vit.info.notes, f"edited: {self._edit.words}"),
        )
        return replace(
            vit,
            info=info,
            blocks=self._blocks,
            make_layout=lay_out,
            run=partial(run, vit.run),
            classifier=classifier,
            edits=(*vit.edits, self._edit),
        )

    def _take_parts(self, layer: int) -> BlockParts:
        self.require_cls()
        if layer not in self._blocks:
            known = ", ".join(map(str, sorted(self._blocks)))
            told = f"in block {layer} the [CLS] row is not read: choose from the layers {known}"
            raise UnsupportedModelError(told)
        return self._blocks[layer]


def find_neurons(vit: ViTAdapter, layer: int) -> nn.Linear:
    """The last linear layer of a block's MLP, whose input are the MLP's neurons."""
    # In the blocks of all libraries the MLP comes after the attention, and this layer last.
    linears = [part for part in vit.encoder_blocks[layer].modules() if isinstance(part, nn.Linear)]
    if not linears or linears[-1].out_features != vit.info.embed_dim:
        raise UnsupportedModelError(
            f"block {layer} of {vit.info.id} does not end in a plain linear layer: its neurons "
            "cannot be edited; merge adapters and undo quantisation first"
        )
    return linears[-1]


def _run(
    state: _State,
    lay_out: Callable[[int, int], TokenLayout],
    run: Callable[[Pixels], Tensor],
    pixels: Pixels,
) -> Tensor:
    if not state.is_applied:
        raise make_ended(state.edit)
    outer = state.running
    state.running = Running(lay_out(pixels.shape[-2], pixels.shape[-1]), pixels)
    try:
        with state.hidden.applied():
            return run(pixels)
    finally:
        state.running = outer


def _insert(
    count: int, prenorm: nn.Module | None, tokens: Tokens, running: Running
) -> Float[Tensor, "batch more dim"]:
    # `running` has the layout with the inserted tokens, except for a pooling head.
    registers = running.layout.groups.get("registers")
    if running.layout.query is None or registers is None:
        at = running.find_patches(tokens).start
    else:
        at = registers.stop - count
    new = tokens.new_zeros(len(tokens), count, tokens.shape[-1])
    if prenorm is not None:
        new = prenorm(new)
    return torch.cat([tokens[:, :at], new, tokens[:, at:]], dim=1)


def _remove(count: int, tokens: Tokens, running: Running) -> Float[Tensor, "batch fewer dim"]:
    start = running.find_patches(tokens).start
    return torch.cat([tokens[:, : start - count], tokens[:, start:]], dim=1)


def _edit_input(
    state: _State,
    function: TokenEdit,
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    stream = take_stream(take_input(args, kwargs))
    if stream.ndim == 2:  # rows of [CLS], which adapters continue through the MLP
        return None
    return replace_input(args, kwargs, function(stream, state.now))


def _edit_output(
    state: _State, function: TokenEdit, _: nn.Module, __: object, output: object
) -> Any:
    return replace_output(output, function(take_stream(output), state.now))


def _keep_skip(
    kept: dict[str, Tensor], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    kept["stream"] = take_stream(take_input(args, kwargs))


def _change_branch(
    kept: dict[str, Tensor],
    earlier: RowEdit,
    function: RowEdit,
    scale: Float[Tensor, " dim"] | None,
    state: _State,
    _: nn.Module,
    __: object,
    output: object,
) -> Any:
    # x + t becomes skip(x) + t if t becomes t + skip(x) − x.
    query = state.now.layout.query
    assert query is not None
    row = earlier(kept.pop("stream")[:, query])
    change = function(row) - row
    # In the precision of the stream, in which x is not rounded as autocast rounds a branch.
    own = take_stream(output)
    branch = own.to(torch.promote_types(own.dtype, row.dtype), copy=True)
    branch[:, query] += change if scale is None else change / scale
    return replace_output(output, branch)


def _apply_both(
    first: RowEdit, second: RowEdit, row: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch dim"]:
    return second(first(row))


def _find_hidden(
    state: _State,
    layer: int,
    find: PlaceFinder,
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    running = state.now
    places = find(take_stream(take_input(args, kwargs)), running)
    state.hidden.place(layer, places, running.layout.query)


def _hide_heads(
    hidden: HiddenTokens, layer: int, make: HeadsFunction, call: AttentionCall, row: int
) -> Heads:
    return hidden.edit_heads(layer, make(call, row))


def _change_nothing(*_: object) -> None:
    return None
