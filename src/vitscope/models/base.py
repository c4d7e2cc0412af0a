"""The adapter: any library's ViT behind one face, handing over attention rows as it runs."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from operator import index
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.images.addresses import Images
from vitscope.images.image_set import load_pixels
from vitscope.images.preprocessing import Preprocessing
from vitscope.layout import TokenLayout
from vitscope.models.blocks import BlockParts, BlockRecorder, StopForward
from vitscope.models.identity import Behaviour, describe_behaviour, hash_weights
from vitscope.models.running import HALF_PRECISIONS, Autocast, moved, one_forward, undisturbed
from vitscope.models.stream import StreamRecorder
from vitscope.trace import ClsTrace, StreamTrace

Pixels = Float[Tensor, "batch channel height width"]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a result says about the model it came from.

    Attributes:
        id: The id it was loaded by, or the class name of a wrapped module.
        family: Library and architecture, such as "transformers/dinov2".
        num_params: Parameters of the vision tower.
        depth: Number of blocks.
        embed_dim: Width of the residual stream.
        num_heads: Attention heads of the analysed block.
        patch_size: Patch (height, width) in pixels.
        num_registers: Register tokens.
        global_feature: "cls" or "attention pooling".
        source: Where the weights came from.
        notes: What a reader of the numbers should know about this model.
        recipe: Its training recipe, the same for models that differ in size alone; empty where it
            is not known.
        size: Label of its size within the recipe; None where it is not known.
    """

    id: str
    family: str
    num_params: int
    depth: int
    embed_dim: int
    num_heads: int
    patch_size: tuple[int, int]
    num_registers: int
    global_feature: str = "cls"
    source: str = "given by the caller"
    notes: tuple[str, ...] = ()
    recipe: str = ""
    size: str | None = None


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ViTAdapter:
    """Any library's Vision Transformer behind one face.

    Attributes:
        module: The vision tower.
        info: What it is.
        preprocessing: How it wants its images.
        blocks: The analysable blocks by layer index: every block of a model with a [CLS] token,
            the pooling head alone (index = depth) of one with attention pooling.
        make_layout: From input height and width in pixels to the token layout.
        run: The model's own forward, from pixels to the global feature it hands its users.
        embed_row: Final norm and projection on rows of the last block's output.
        encoder: All blocks of the encoder, in order, of a model whose analysable block is a pooling
            head; empty where `blocks` are they.
        weights_hash: Digest of its weights where `hashed` has taken it; every run takes its own
            otherwise.
        autocast: Whether its module runs under autocast at the moment; copies share it, as they
            share the module.
    """

    module: nn.Module
    info: ModelInfo
    preprocessing: Preprocessing
    blocks: Mapping[int, BlockParts]
    make_layout: Callable[[int, int], TokenLayout]
    run: Callable[[Pixels], Float[Tensor, "batch out"]]
    embed_row: Callable[[Float[Tensor, "batch dim"]], Float[Tensor, "batch out"]]
    encoder: tuple[nn.Module, ...] = ()
    weights_hash: str | None = None
    autocast: Autocast = field(default_factory=Autocast, repr=False)

    def __repr__(self) -> str:
        return f"ViTAdapter({self.info.id!r}, {self.info.family}, {self.info.depth} blocks)"

    def __post_init__(self) -> None:
        different = len({id(block) for block in self._all_blocks})
        if different < self.info.depth:
            raise UnsupportedModelError(
                f"of the {self.info.depth} blocks of {self.info.id} only {different} are different "
                "modules, so its layers cannot be distinguished: give each place a block of "
                "its own, as copy.deepcopy makes it"
            )

    @property
    def last_layer(self) -> int:
        """Index of the layer that the global feature comes out of."""
        return max(self.blocks)

    @property
    def parameter(self) -> Tensor:
        """A floating-point parameter; its device and dtype stand for those of all weights."""
        return next(p for p in self.module.parameters() if p.is_floating_point())

    @property
    def dtype(self) -> torch.dtype:
        """Precision the model computes in: that of its weights, or of autocast where it is on."""
        return self.autocast.half or self.parameter.dtype

    def undisturbed(self) -> AbstractContextManager[None]:
        """Have the model alone, in evaluation mode and without a caller's autocast or compiler.

        Every method that runs or moves the model does so by itself. Another thread that would use
        the model, or a part of it, waits until the context ends.

        Returns:
            A context, which a thread may enter several times.
        """
        return undisturbed(self.module)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "ViTAdapter":
        """Move the model, in place and for good.

        Args:
            device: Where to run.
            dtype: Precision to run in; weights are cast.

        Returns:
            This adapter.
        """
        with self.undisturbed():
            self.module.to(device=device, dtype=dtype)
        return self

    @contextmanager
    def placed(self, device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
        """Run the model on a device and in a precision, and leave it as it was found.

        Args:
            device: Where to run.
            dtype: Precision to run in. Weights are cast to float32 or float64; in a half precision
                they are float32 and the model runs under autocast.

        Yields:
            Nothing; the model is back where it was, with its own weights, when the context ends.
        """
        weights = torch.float32 if dtype in HALF_PRECISIONS else dtype
        with (
            self.undisturbed(),
            moved(self.module, device, weights),
            self.autocast.switched(device, dtype),
        ):
            yield

    def named(self, model_id: str, source: str) -> "ViTAdapter":
        """The same model under another id.

        Args:
            model_id: The id a result shall carry.
            source: Where the weights came from.

        Returns:
            A copy that shares the module.
        """
        return replace(self, info=replace(self.info, id=model_id, source=source))

    def hashed(self) -> "ViTAdapter":
        """The same model with the digest of its weights, for several runs to take it once.

        Returns:
            A copy that shares the module, whose weights must not change from now on.
        """
        with self.undisturbed():
            return replace(self, weights_hash=hash_weights(self.module))

    def describe_behaviour(self) -> Behaviour:
        """What beside its weights decides on the model's numbers.

        Returns:
            Its digest, and what of it cannot be compared.
        """
        with self.undisturbed():
            return describe_behaviour(self.module)

    def labelled(self, recipe: str, size: str | None) -> "ViTAdapter":
        """The same model with its place among others.

        Args:
            recipe: Its training recipe.
            size: Label of its size.

        Returns:
            A copy that shares the module.
        """
        return replace(self, info=replace(self.info, recipe=recipe, size=size))

    def preprocess(self, image: Images) -> Float[Tensor, "channel height width"]:
        """One image as the model is given it: what an audit does to each.

        Args:
            image: A path, a URL, a PIL image, an array or a tensor of uint8 (docs/data.md).

        Returns:
            Its pixels; `torch.stack` makes a batch of several.

        Raises:
            UsageError: If it is something else, or several images.
            ImageReadError: If it cannot be read.
        """
        return load_pixels(image, self.preprocessing)

    def select_layers(self, layers: Literal["last", "all"] | Collection[int]) -> tuple[int, ...]:
        """Turn a choice of layers into indices.

        Args:
            layers: "last", "all", or a collection of indices.

        Returns:
            Sorted indices; the last layer is always among them, for the headline comes from it.

        Raises:
            UsageError: If an index is not a layer with an analysable row.
        """
        if layers == "last":
            return (self.last_layer,)
        chosen = set(self.blocks) if layers == "all" else {int(layer) for layer in layers}
        if unknown := sorted(chosen - set(self.blocks)):
            raise UsageError(
                f"layer {unknown[0]} of {self.info.id} has no row to analyse: choose from "
                f"{min(self.blocks)} to {max(self.blocks)} ({self.info.global_feature})"
            )
        return tuple(sorted(chosen | {self.last_layer}))

    def select_layer(self, layer: int | None) -> int:
        """Turn a choice of one layer into its index.

        Args:
            layer: An index, also of numpy; the last layer if None.

        Returns:
            The index.

        Raises:
            UsageError: If it is not the index of a layer with an analysable row.
        """
        try:
            if isinstance(layer, bool):
                raise TypeError
            found = self.last_layer if layer is None else index(layer)
        except TypeError:
            raise UsageError(
                f"layer was given as {type(layer).__name__}: expected one block number such as "
                f"{self.last_layer}, or None for the last"
            ) from None
        self.select_layers([found])
        return found

    def trace(
        self,
        pixels: Pixels,
        layers: Collection[int],
        on_trace: Callable[[ClsTrace], None],
        on_stream: Callable[[StreamTrace], None] | None = None,
        *,
        verified: bool = True,
    ) -> Float[Tensor, "batch out"] | None:
        """Run the model on a batch and hand over the row of each chosen layer as it is passed.

        Args:
            pixels: Preprocessed images, on the model's device.
            layers: Indices into `blocks`.
            on_trace: Called once per layer while the forward goes on, so that one layer's values
                are alive at a time.
            on_stream: Called once when the forward is over, with what the residual stream was at
                every depth passed; left out, nothing of it is read.
            verified: Whether the model runs to its end. If not, it is left at the attention of its
                last block, where that is among the layers: the trace has nothing to be verified by,
                and the stream no last depth. An attention-pooling head always runs in full.

        Returns:
            The model's own global feature; None where the forward was left before it.
        """
        layout = self.make_layout(pixels.shape[-2], pixels.shape[-1])
        with ExitStack() as stack:
            stack.enter_context(self.undisturbed())
            stack.enter_context(self.autocast.without_gradients())
            stack.enter_context(one_forward())
            recorders = {
                layer: BlockRecorder(
                    layer,
                    self.blocks[layer],
                    layout,
                    on_trace,
                    last=layer == self.last_layer,
                    leave=not verified,
                    autocast=self.autocast.half is not None,
                )
                for layer in layers
            }
            for recorder in recorders.values():
                stack.enter_context(recorder.attached())
            stream = StreamRecorder(self._all_blocks, layout)
            if on_stream is not None:
                stack.enter_context(stream.attached())
            output = self._run_until_left(pixels)
            self._check_run_once({k: recorder.times_run for k, recorder in recorders.items()})
            if on_stream is not None:
                self._check_passed(stream.num_passed + (output is None))
                on_stream(stream.finish())
            return output

    @property
    def _all_blocks(self) -> Sequence[nn.Module]:
        return self.encoder or [parts.block for parts in self.blocks.values()]

    def _check_run_once(self, times_run: Mapping[int, int]) -> None:
        for layer, times in times_run.items():
            if times != 1:
                raise UnsupportedModelError(
                    f"layer {layer} of {self.info.id} was run {times} times in one forward, "
                    "expected once: blocks were replaced or repeated after it was wrapped; wrap "
                    "the model as it is now"
                )

    def _check_passed(self, num_passed: int) -> None:
        if num_passed != len(self._all_blocks) + 1:
            raise UnsupportedModelError(
                f"{num_passed - 1} of {len(self._all_blocks)} blocks of {self.info.id} were run: "
                "blocks were replaced or repeated after it was wrapped; wrap the model as it is now"
            )

    def _run_until_left(self, pixels: Pixels) -> Float[Tensor, "batch out"] | None:
        try:
            with self.autocast.applied(pixels.device):
                return self.run(pixels.to(self.parameter.dtype))
        except StopForward:
            return None

    def finish_block(
        self, layer: int, rows: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch dim"]:
        """A block's MLP half on rows of the residual stream, in the model's own precision.

        Args:
            layer: Index of the block.
            rows: Residual stream after the attention branch.

        Returns:
            The block's output, where and in the precision that `rows` are.
        """
        with self._applied() as parameter:
            return self.blocks[layer].finish(rows.to(parameter)).to(rows)

    def embed(self, rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
        """Final norm and projection of rows of the last block's output.

        Args:
            rows: The last block's output on the row.

        Returns:
            The global feature, where and in the precision that `rows` are.
        """
        with self._applied() as parameter:
            return self.embed_row(rows.to(parameter)).to(rows)

    @contextmanager
    def _applied(self) -> Iterator[Tensor]:
        with self.undisturbed():
            parameter = self.parameter
            with self.autocast.without_gradients(), self.autocast.applied(parameter.device):
                yield parameter

    def find_non_finite(self, pixels: Pixels) -> tuple[int, int] | None:
        """Where NaN or infinity first enters the analysed row.

        Args:
            pixels: The batch in which it was noticed.

        Returns:
            (layer, image within the batch) of the first layer whose output row is not finite,
            or None where every layer's is.
        """
        found: list[tuple[int, int]] = []

        def look(trace: ClsTrace) -> None:
            assert trace.output is not None
            bad = ~trace.output.isfinite().all(dim=-1)
            if bad.any() and not found:
                found.append((trace.layer, int(bad.nonzero()[0, 0])))

        self.trace(pixels, sorted(self.blocks), look)
        return found[0] if found else None


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
