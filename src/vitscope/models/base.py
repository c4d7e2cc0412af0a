"""The adapter: one interface to any library's ViT, which hands over attention rows as it runs."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
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
from vitscope.models.blocks import BlockParts, BlockRecorder, StopForward, make_changed
from vitscope.models.classifier import Classifier
from vitscope.models.edits import Edit
from vitscope.models.identity import Behaviour, describe_behaviour, hash_weights
from vitscope.models.info import ModelInfo
from vitscope.models.running import (
    HALF_PRECISIONS,
    Autocast,
    Hooks,
    moved,
    one_forward,
    undisturbed,
)
from vitscope.models.stream import StreamRecorder
from vitscope.trace import ClsTrace, StreamTrace

Pixels = Float[Tensor, "batch channel height width"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ViTAdapter:
    """One interface to the Vision Transformers of all libraries.

    Attributes:
        module: The vision tower.
        info: Description of the model.
        preprocessing: Preprocessing of its images.
        blocks: The analysable blocks by layer index: every block of a model with a [CLS] token,
            only the pooling head (index = depth) of a model with attention pooling, none of a
            model that averages its tokens.
        make_layout: Function from input height and width in pixels to the token layout.
        run: The model's own forward, from pixels to the global feature.
        embed_row: Final norm and projection, applied to rows of the last block's output.
        encoder: All encoder blocks in order; may be empty if `blocks` has them.
        position_biases: Modules whose output is added to the query-key products of all pairs of
            tokens.
        classifier: The model with its own classifier; None if it came without one.
        weights_hash: Digest of the weights if `hashed` has computed it; otherwise every run
            computes its own.
        edits: What changes the module while a context lasts (`vitscope.remedies`).
        autocast: Whether the module currently runs under autocast; shared by all adapters of the
            module.
    """

    module: nn.Module
    info: ModelInfo
    preprocessing: Preprocessing
    blocks: Mapping[int, BlockParts]
    make_layout: Callable[[int, int], TokenLayout]
    run: Callable[[Pixels], Float[Tensor, "batch out"]]
    embed_row: Callable[[Float[Tensor, "batch dim"]], Float[Tensor, "batch out"]]
    encoder: tuple[nn.Module, ...] = ()
    position_biases: tuple[nn.Module, ...] = ()
    classifier: Classifier | None = None
    weights_hash: str | None = None
    edits: tuple[Edit, ...] = ()
    autocast: Autocast = field(default_factory=Autocast, repr=False)

    def __repr__(self) -> str:
        return f"ViTAdapter({self.info.id!r}, {self.info.family}, {self.info.depth} blocks)"

    def __post_init__(self) -> None:
        different = len({id(block) for block in self.encoder_blocks})
        if different < self.info.depth:
            raise UnsupportedModelError(
                f"of the {self.info.depth} blocks of {self.info.id} only {different} are different "
                "modules, so its layers cannot be distinguished: give each place a block of "
                "its own, as copy.deepcopy makes it"
            )

    @property
    def last_layer(self) -> int:
        """Index of the layer that produces the global feature.

        Raises:
            UnsupportedModelError: If the feature is an average, which no single row produces.
        """
        if not self.blocks:
            raise UnsupportedModelError(
                f"the global feature of {self.info.id} is an average of its tokens, so there is no "
                "attention row to decompose or to draw: choose a map that needs none, such as "
                "'traced', or a model with a [CLS] token or an attention-pooling head"
            )
        return max(self.blocks)

    @property
    def parameter(self) -> Tensor:
        """A floating-point parameter; its device and dtype stand for those of all weights."""
        return next(p for p in self.module.parameters() if p.is_floating_point())

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the computation: that of the weights, or of autocast if it is on."""
        return self.autocast.half or self.parameter.dtype

    def undisturbed(self) -> AbstractContextManager[None]:
        """Hold the model exclusively, in evaluation mode, without outer modes of torch or compiler.

        Every method that runs or moves the model does this itself. Other threads that need the
        model or a part of it wait until the context ends.

        Returns:
            A reentrant context: the same thread may enter it several times.
        """
        return undisturbed(self.module, self.edits)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "ViTAdapter":
        """Move and cast the model permanently, in place, with its classifier.

        Args:
            device: Device to run on.
            dtype: Precision of the weights.

        Returns:
            This adapter.
        """
        with self.undisturbed():
            whole = self.module if self.classifier is None else self.classifier.module
            whole.to(device=device, dtype=dtype)
        return self

    @contextmanager
    def placed(self, device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
        """Run the model temporarily on another device and in another precision.

        Args:
            device: Device to run on.
            dtype: Precision to run in. Weights are cast to float32 or float64; for a half precision
                they are float32 and the model runs under autocast.

        Yields:
            Nothing; when the context ends, the model is back on its device with its own weights.
        """
        weights = torch.float32 if dtype in HALF_PRECISIONS else dtype
        with (
            self.undisturbed(),
            moved(self.module, device, weights),
            self.autocast.switched(device, dtype),
        ):
            yield

    def named(self, model_id: str, source: str) -> "ViTAdapter":
        """Give the model another id.

        Args:
            model_id: Id of the model in results.
            source: Where the weights came from.

        Returns:
            A copy that shares the module.
        """
        return replace(self, info=replace(self.info, id=model_id, source=source))

    def hashed(self) -> "ViTAdapter":
        """Compute the digest of the weights once, for several runs to reuse.

        Returns:
            A copy that shares the module, whose weights must not change afterwards.
        """
        with self.undisturbed():
            return replace(self, weights_hash=hash_weights(self.module))

    def describe_behaviour(self) -> Behaviour:
        """Describe everything besides the weights that determines the model's numbers.

        Returns:
            Its digest, and what cannot be compared.
        """
        with self.undisturbed():
            return describe_behaviour(self.module)

    def labelled(self, recipe: str, size: str | None) -> "ViTAdapter":
        """Set the model's training recipe and size.

        Args:
            recipe: Its training recipe.
            size: Label of its size.

        Returns:
            A copy that shares the module.
        """
        return replace(self, info=replace(self.info, recipe=recipe, size=size))

    def preprocess(self, image: Images) -> Float[Tensor, "channel height width"]:
        """Preprocess one image as an audit does.

        Args:
            image: A path, a URL, a PIL image, an array or a tensor of uint8 (docs/data.md).

        Returns:
            Its pixels; `torch.stack` makes a batch of several.

        Raises:
            UsageError: If it is of another type, or several images.
            ImageReadError: If it cannot be read.
        """
        return load_pixels(image, self.preprocessing)

    def select_layers(self, layers: Literal["last", "all"] | Collection[int]) -> tuple[int, ...]:
        """Convert a choice of layers to indices.

        Args:
            layers: "last", "all", or a collection of indices; negative ones count from the last.

        Returns:
            Sorted indices from 0; the last layer is always among them, because the headline is
            computed there.

        Raises:
            UsageError: If an index is not that of a layer with an analysable row.
            UnsupportedModelError: If no layer of the model has one.
        """
        last = self.last_layer
        if layers == "last":
            return (last,)
        chosen = self.blocks if layers == "all" else map(self._find_layer, layers)
        return tuple(sorted({*chosen, last}))

    def select_layer(self, layer: int | None) -> int:
        """Convert a choice of one layer to its index.

        Args:
            layer: An index, which may be a numpy integer and counts from the last if negative; the
                last layer if None.

        Returns:
            The index, from 0.

        Raises:
            UsageError: If it is not the index of a layer with an analysable row.
            UnsupportedModelError: If no layer of the model has one.
        """
        return self.last_layer if layer is None else self._find_layer(layer)

    def _find_layer(self, layer: int) -> int:
        last = self.last_layer
        try:
            if isinstance(layer, bool):
                raise TypeError
            number = index(layer)
        except TypeError:
            raise UsageError(
                f"layer was given as {type(layer).__name__}: expected one block number such as "
                f"{last}, or -1 for the last"
            ) from None
        found = number if number >= 0 else last + 1 + number
        if found in self.blocks:
            return found
        if len(self.blocks) == 1:
            choice = f"its only one is {last}"
        else:
            choice = f"choose from {min(self.blocks)} to {last}, or {-len(self.blocks)} to -1"
        raise UsageError(f"{self.info.id} has no layer {number} to analyse: {choice}")

    def trace(
        self,
        pixels: Pixels,
        layers: Collection[int],
        on_trace: Callable[[ClsTrace], None],
        on_stream: Callable[[StreamTrace], None] | None = None,
        *,
        verified: bool = True,
    ) -> Float[Tensor, "batch out"] | None:
        """Run the model on a batch and hand over the row of each chosen layer as it is reached.

        Args:
            pixels: Preprocessed images, on the model's device.
            layers: Indices into `blocks`.
            on_trace: Called once per layer during the forward, so that the values of only one layer
                are in memory at a time.
            on_stream: Called once after the forward, with the residual stream at every depth
                reached; if None, the stream is not recorded.
            verified: Whether to run the model to its end. If not, the forward stops at the
                attention of the last block, if that layer is chosen: its trace then lacks the
                model's own rows, and the stream its last depth. An attention-pooling head always
                runs in full.

        Returns:
            The model's own global feature; None if the forward stopped before it.
        """
        layout = self.make_layout(pixels.shape[-2], pixels.shape[-1])
        # transformers keeps the index of relative positions for later forwards; one that was made
        # in inference mode could not be trained with.
        plain = torch.no_grad() if self.position_biases else self.autocast.without_gradients()
        output = None
        with self.undisturbed(), plain, one_forward(), Hooks() as hooks:
            recorders = {
                layer: BlockRecorder(self, layer, layout, on_trace, leave=not verified)
                for layer in layers
            }
            for recorder in recorders.values():
                recorder.attach(hooks)
            stream = StreamRecorder(self.encoder_blocks, layout)
            if on_stream is not None:
                stream.attach(hooks)
            with suppress(StopForward), self.autocast.applied(pixels.device):
                output = self.run(pixels.to(self.parameter.dtype))
            for layer, recorder in recorders.items():
                if recorder.times_run != 1:
                    words = f"layer {layer} of {self.info.id} was run {recorder.times_run} times"
                    raise make_changed(f"{words} in one forward, expected once")
            if on_stream is not None:
                depth, num_run = len(self.encoder_blocks), stream.num_passed - (output is not None)
                if num_run != depth:
                    raise make_changed(f"{num_run} of {depth} blocks of {self.info.id} were run")
                on_stream(stream.finish())
            return output

    @property
    def encoder_blocks(self) -> Sequence[nn.Module]:
        """All encoder blocks in order."""
        return self.encoder or [parts.block for parts in self.blocks.values()]

    def finish_block(
        self, layer: int, rows: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Apply a block's MLP half to rows of the residual stream, in the model's own precision.

        Args:
            layer: Index of the block.
            rows: Residual stream after the attention branch.

        Returns:
            The block's output, on the device and in the precision of `rows`.
        """
        with self._applied() as parameter:
            return self.blocks[layer].finish(rows.to(parameter)).to(rows)

    def embed(self, rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
        """Apply the final norm and projection to rows of the last block's output.

        Args:
            rows: The last block's output on the row.

        Returns:
            The global feature, on the device and in the precision of `rows`.
        """
        with self._applied() as parameter:
            return self.embed_row(rows.to(parameter)).to(rows)

    @contextmanager
    def _applied(self) -> Iterator[Tensor]:
        with self.undisturbed():
            parameter = self.parameter
            with self.autocast.without_gradients(), self.autocast.applied(parameter.device):
                yield parameter
