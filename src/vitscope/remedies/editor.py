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
from vitscope.layout import GROUPS, TokenLayout
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.blocks import AttentionCall, BlockParts, Heads, HeadsFunction, return_rows
from vitscope.models.edits import Edit, EditHook, make_ended
from vitscope.models.stream import replace_input, replace_output, take_input, take_stream
from vitscope.remedies.attention import HiddenTokens, Hiding

_PRENORMS = ("norm_pre", "ln_pre", "pre_layrnorm")
"""Norms before the first block, by the names of timm, open_clip and transformers."""

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

    def find_group(self, group: str, tokens: Tokens) -> Places:
        """Places of a group of tokens, the same in every image."""
        patches, own = self.layout.find_patches(tokens.shape[1]), self.layout.groups
        shift, at = patches.start - own["patches"].start, own[group]
        places = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        places[:, at.start + shift : at.stop + shift] = True
        return places


TokenEdit = Callable[[Tokens, Running], Tokens]
PlaceFinder = Callable[[Tokens, Running], Bool[Tensor, "batch *head token"]]
"""Finds places that are the same for all heads, or those of each head."""
RowEdit = Callable[[Float[Tensor, "batch dim"]], Float[Tensor, "batch dim"]]


class _State:
    """What the hooks and the adapter of an edited model share, to be pickled with the module."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.is_applied = False
        self.hidden = HiddenTokens()
        self._running: Running | None = None

    @property
    def now(self) -> Running:
        if self._running is None:
            raise UsageError(
                "the edited model was run directly: run it through the adapter that `applied` gave"
            )
        return self._running

    def run(
        self,
        lay_out: Callable[[int, int], TokenLayout],
        run: Callable[[Pixels], Tensor],
        pixels: Pixels,
    ) -> Tensor:
        if not self.is_applied:
            raise make_ended(self.edit)
        outer = self._running
        self._running = Running(lay_out(pixels.shape[-2], pixels.shape[-1]), pixels)
        try:
            with self.hidden.applied():
                return run(pixels)
        finally:
            self._running = outer

    def edit_input(
        self, function: TokenEdit, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        stream = take_stream(take_input(args, kwargs))
        if stream.ndim == 2:  # rows of [CLS], which adapters continue through the MLP
            return None
        return replace_input(args, kwargs, function(stream, self.now))

    def edit_output(self, function: TokenEdit, _: nn.Module, __: object, output: object) -> Any:
        return replace_output(output, function(take_stream(output), self.now))

    def find_hidden(
        self,
        layer: int,
        find: PlaceFinder,
        _: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        places = find(take_stream(take_input(args, kwargs)), self.now)
        self.hidden.place(layer, places, self.now.layout.query)

    def hide_heads(self, layer: int, make: HeadsFunction, call: AttentionCall, row: int) -> Heads:
        return self.hidden.edit_heads(layer, make(call, row))


@dataclass(eq=False)
class _SkipEdit:
    """An edit of the row that the attention branch is added to."""

    state: _State
    earlier: RowEdit
    function: RowEdit
    branch_scale: Float[Tensor, " dim"] | None
    stream: Tensor | None = None

    def apply(self, row: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        return self.function(self.earlier(row))

    def keep(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.stream = take_stream(take_input(args, kwargs))

    def change_branch(self, _: nn.Module, __: object, output: object) -> Any:
        # x + t becomes skip(x) + t if t becomes t + skip(x) − x.
        stream, query = self.stream, self.state.now.layout.query
        assert stream is not None
        assert query is not None
        self.stream, row = None, self.earlier(stream[:, query])
        change = self.function(row) - row
        # In the precision of the stream, in which x is not rounded as autocast rounds a branch.
        own = take_stream(output)
        branch = own.to(torch.promote_types(own.dtype, row.dtype), copy=True)
        branch[:, query] += change if self.branch_scale is None else change / self.branch_scale
        return replace_output(output, branch)


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
        insert = partial(_insert, count, _find_prenorm(vit.module))
        self._edit_input(vit.encoder_blocks[0], insert)
        if vit.info.global_feature != "cls":  # a pooling head reads the model's own tokens
            remove = partial(self._state.edit_output, partial(_remove, count))
            self._hooks.append((vit.encoder_blocks[-1], "output", remove))

    def edit_stream(self, layer: int, function: TokenEdit) -> None:
        """Edit the residual stream at the input of a block."""
        self._edit_input(self.vit.encoder_blocks[layer], function)

    def edit_neurons(self, layer: int, function: TokenEdit) -> None:
        """Edit the neurons of a block's MLP: the input of its last linear layer."""
        self._edit_input(find_neurons(self.vit, layer), function)

    def _edit_input(self, module: nn.Module, function: TokenEdit) -> None:
        self._hooks.append((module, "input", partial(self._state.edit_input, function)))

    def edit_skip(self, layer: int, function: RowEdit) -> None:
        """Edit the row that the attention branch is added to, for [CLS] alone."""
        parts = self._take_parts(layer)
        if parts.branch_scale is not None and not bool(parts.branch_scale.all()):
            raise UnsupportedModelError(
                f"a layer scale in block {layer} of {self.vit.info.id} is 0: its skip connection "
                "cannot be edited through the attention branch"
            )
        assert parts.attention_norm is not None
        edit = _SkipEdit(self._state, parts.skip or return_rows, function, parts.branch_scale)
        # The norm's input is the block's, after all edits of it.
        self._hooks.append((parts.attention_norm, "input", edit.keep))
        self._hooks.append((parts.branch, "output", edit.change_branch))
        self._blocks[layer] = replace(parts, skip=edit.apply)

    def hide_tokens(self, layer: int, find: PlaceFinder, hiding: Hiding) -> None:
        """Hide tokens from the attention of a block."""
        if hiding.rows == "cls":
            self.require_cls()
        block, state = self.vit.encoder_blocks[layer], self._state
        self._hooks.append((block, "input", partial(state.find_hidden, layer, find)))
        self._hooks.append((block, "output", state.hidden.leave))
        state.hidden.by_layer[layer] = hiding
        if layer in self._blocks:
            parts = self._blocks[layer]
            project = parts.project_heads
            self._blocks[layer] = replace(
                parts,
                make_heads=partial(state.hide_heads, layer, parts.make_heads),
                project_heads=project and partial(state.hide_heads, layer, project),
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
        vit, inserted = self.vit, self._num_inserted
        if self._edit in vit.edits:
            raise UsageError(f"the edit {self._edit.words} is being applied already: apply it once")
        with vit.undisturbed(), ExitStack() as stack:
            if inserted:
                stack.enter_context(_prefix_raised(vit, inserted))
            # An edit without hooks still has a name by which the module is known to be edited.
            for module, where, function in self._hooks or [(vit.module, "input", _change_nothing)]:
                hook = EditHook(self._edit, function)
                if where == "input":
                    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                else:
                    handle = module.register_forward_hook(hook)
                stack.callback(handle.remove)
            stack.callback(setattr, self._state, "is_applied", False)
            self._state.is_applied = True
            yield self._adapt()

    def _adapt(self) -> ViTAdapter:
        vit = self.vit
        lay_out = vit.make_layout
        if self._num_inserted and vit.info.global_feature == "cls":
            lay_out = partial(_lay_out_more, vit.make_layout, self._num_inserted)
        run = partial(self._state.run, lay_out)
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


def _insert(
    count: int, prenorm: nn.Module | None, tokens: Tokens, running: Running
) -> Float[Tensor, "batch more dim"]:
    # `running` has the layout with the inserted tokens, except for a pooling head.
    if running.layout.query is None:
        at = running.layout.find_patches(tokens.shape[1]).start
    else:
        at = running.layout.groups["registers"].stop - count
    new = tokens.new_zeros(len(tokens), count, tokens.shape[-1])
    if prenorm is not None:
        new = prenorm(new)
    return torch.cat([tokens[:, :at], new, tokens[:, at:]], dim=1)


def _remove(count: int, tokens: Tokens, running: Running) -> Float[Tensor, "batch fewer dim"]:
    start = running.layout.find_patches(tokens.shape[1]).start
    return torch.cat([tokens[:, : start - count], tokens[:, start:]], dim=1)


def _lay_out_more(
    lay_out: Callable[[int, int], TokenLayout], count: int, height: int, width: int
) -> TokenLayout:
    # With new tokens after the registers or before the patches.
    own = lay_out(height, width)
    at = own.groups["patches"].start  # rotary positions count from here
    registers = own.groups.get("registers", range(at, at))
    at = registers.stop
    groups = {
        name: range(p.start + count, p.stop + count) if p.start >= at else p
        for name, p in own.groups.items()
    }
    groups["registers"] = range(registers.start, at + count)
    query = own.query
    if query is not None and query >= at:
        query += count
    return replace(own, groups={k: groups[k] for k in GROUPS if k in groups}, query=query)


def _find_prenorm(module: nn.Module) -> nn.Module | None:
    # CLIP's norm of the embeddings, which a zero vector would also have passed.
    parts = module.named_modules()
    named = (part for name, part in parts if name.rpartition(".")[2] in _PRENORMS)
    return next((part for part in named if not isinstance(part, nn.Identity)), None)


@contextmanager
def _prefix_raised(vit: ViTAdapter, count: int) -> Iterator[None]:
    # More tokens that are not rotated: timm's rotary attention rotates all after so many.
    parts = [
        vars(part)
        for block in vit.encoder_blocks
        for part in block.modules()
        if "num_prefix_tokens" in vars(part)
    ]
    try:
        for own in parts:
            own["num_prefix_tokens"] += count
        yield
    finally:
        for own in parts:
            own["num_prefix_tokens"] -= count


def _change_nothing(*_: object) -> None:
    return None
