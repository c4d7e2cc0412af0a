"""What a map method is, and what it is given."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.decomposition import map_row
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.layout import TokenLayout
from vitscope.maps.checks import check_caught, check_drift
from vitscope.maps.functions import AttentionBackward, CaughtFunctions
from vitscope.maps.passes import Kept, Pass, Tokens, run_blocks
from vitscope.maps.references import References, tell_missing
from vitscope.maps.rules import SECANT
from vitscope.maps.targets import Target, TargetChoice
from vitscope.maps.watch import OwnPass, watch_blocks
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.memory import CPU_TOKENS
from vitscope.results.image_maps import MAP_NAME
from vitscope.results.vocabulary import MapKind
from vitscope.row_maps import RowMaps

_Made = TypeVar("_Made")


def _ignore(_: int) -> None:
    pass


@dataclass(frozen=True, eq=False, kw_only=True)
class MapInput:
    """A batch of images, the number of each that is explained, and what it is compared with.

    What several methods need is computed once.

    Attributes:
        vit: The model.
        pixels: Preprocessed images, on the model's device.
        choice: Makes the target from the images' own features.
        references: Images that the target and some maps compare with.
        layer: The layer that row maps are of; the last one if None.
        seed: Seed of methods that draw at random.
        keeps_attentions: Whether the model's own run keeps what the attention weights of all blocks
            are made of, for methods that read them.
        on_passes: Called after every batch of changed versions of an image, with their number.
        original: The images before noise was added to them, by which they are known; None if they
            are unchanged.
    """

    vit: ViTAdapter
    pixels: Pixels
    choice: TargetChoice
    references: References | None = None
    layer: int | None = None
    seed: int = 0
    keeps_attentions: bool = True
    on_passes: Callable[[int], None] = _ignore
    original: Pixels | None = None

    @property
    def identity(self) -> Pixels:
        """Pixels that tell which images these are."""
        return self.pixels if self.original is None else self.original

    @cached_property
    def own(self) -> OwnPass:
        """The model's run on the images themselves, from which maps of attention weights come."""
        keeps = self.keeps_attentions
        return watch_blocks(self.vit, self.pixels, self.layer, keeps_attentions=keeps)

    @cached_property
    def target(self) -> Target:
        """The number that is explained."""
        return self.choice(self.own.feature, self.references)

    @property
    def layout(self) -> TokenLayout:
        """Which token is what."""
        return self.vit.make_layout(self.pixels.shape[-2], self.pixels.shape[-1])

    @property
    def patches(self) -> range:
        """Positions of the patches in the residual stream."""
        return self.layout.find_patches(self.num_tokens)

    @property
    def num_tokens(self) -> int:
        """Length of the residual stream."""
        # A pooling head's layout may omit leading tokens.
        known = self.layout.query is not None
        return self.layout.num_tokens if known else self.tokens.shape[1]

    def compare(self, name: str) -> References:
        """The references, for a method that cannot do without."""
        if self.references is None:
            raise UsageError(tell_missing(name))
        return self.references

    @property
    def tokens(self) -> Tokens:
        """The images' tokens at depth 0."""
        return self.own.streams[0]

    def read_normed(self, run: Pass) -> Tokens:
        """The tokens that the analysed row reads, for a method that checks the row."""
        assert run.normed is not None
        return run.normed

    @property
    def dtype(self) -> torch.dtype:
        """Precision of maps."""
        return self.vit.parameter.dtype

    @cached_property
    def row(self) -> RowMaps:
        """Maps of the analysed row, whose ledger was verified."""
        self.vit.select_layer(self.layer)
        assert self.own.row is not None
        return map_row(self.vit, self.own.row)

    def once(self, make: Callable[["MapInput"], _Made]) -> _Made:
        """What several methods need of these images, made when the first one asks for it."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]  # type: ignore[no-any-return]

    @cached_property
    def _made(self) -> dict[Callable[["MapInput"], Any], Any]:
        return {}

    @cached_property
    def scores(self) -> Float[Tensor, " batch"]:
        """The target of the images themselves."""
        return self.target.measure(self.own.feature)

    def measure(self, tokens: Tokens) -> Float[Tensor, " batch"]:
        """The target of each image with other tokens at depth 0."""
        return self.target.measure(run_blocks(self.vit, self.pixels, tokens).feature)

    def take_patches(self, tokens: Tensor) -> Tensor:
        """The patches of a residual stream, or of a map: a view."""
        return self.layout.take_patches(tokens)

    def place(self, of_patches: Float[Tensor, "batch patch"]) -> "MapValues":
        """A map of patches; other tokens have none of it."""
        values = self._make_zeros()
        self.take_patches(values)[:] = of_patches.to(values)
        return MapValues(values=values)

    def place_row(self, values: Float[Tensor, "batch key"]) -> "MapValues":
        """A map of the tokens that the analysed row reads."""
        placed = self._make_zeros()
        placed[:, placed.shape[1] - values.shape[1] :] = values.to(placed)
        return MapValues(values=placed)

    def _make_zeros(self) -> Float[Tensor, "batch token"]:
        shape = (len(self.pixels), self.num_tokens)
        return torch.zeros(shape, dtype=self.dtype, device=self.pixels.device)

    def differentiate(
        self,
        tokens: Tokens | None = None,
        on_attention: Callable[[AttentionBackward], None] | None = None,
    ) -> tuple[Pass, Float[Tensor, "batch out"]]:
        """Run with gradients; returns the pass and the gradient of the target by the feature."""
        run = self.run_caught(CaughtFunctions(SECANT, on_attention=on_attention), tokens)
        feature = run.feature.detach()
        return run, self.target.pull(feature, feature)

    def run_caught(self, functions: CaughtFunctions, tokens: Tokens | None = None) -> Pass:
        """Run with gradients by other rules; refuses a model whose operations go unseen."""
        run = run_blocks(self.vit, self.pixels, tokens, functions=functions)
        check_caught(functions.calls, self.vit)
        if tokens is None:
            check_drift(run.feature, self.own.feature, self.vit)
        return run

    def measure_sets(
        self,
        image: int,
        tokens: Tokens | None = None,
        kept: Kept | None = None,
        pixels: Pixels | None = None,
    ) -> Float[Tensor, " sets"]:
        """The target of one image with other tokens at depth 0, `kept` patches or other pixels."""
        (given,) = (each for each in (tokens, kept, pixels) if each is not None)
        target, found, length = self.target.select(image), list[Tensor](), self.num_tokens
        if kept is not None:
            length -= len(self.patches) - kept.shape[1]
        size = max(1, CPU_TOKENS // max(1, length)) if given.device.type == "cpu" else 64
        for part in torch.split(given, size):
            own = self.pixels[image].expand(len(part), -1, -1, -1)
            if pixels is not None:
                run = run_blocks(self.vit, part)
            elif tokens is not None:
                run = run_blocks(self.vit, own, part)
            else:
                stream = self.tokens[image].expand(len(part), -1, -1)
                run = run_blocks(self.vit, own, stream, kept=part)
            found.append(target.measure(run.feature))
            self.on_passes(len(part))
        return torch.cat(found)

    def make_generator(self, image: int) -> torch.Generator:
        """A generator that depends on the image and the seed, not on its place in the batch."""
        digest = zlib.crc32(self.identity[image].contiguous().cpu().numpy().tobytes())
        return torch.Generator().manual_seed(digest ^ self.seed)


@dataclass(frozen=True, eq=False, kw_only=True)
class MapValues:
    """A map of a batch of images.

    Attributes:
        values: One number for each token of the residual stream, signed where the method is, as
            the method defines them: never clamped or rescaled.
        total: What the values should sum to; None if the method does not claim a sum.
        error: Standard error of each value; None if the method has none.
    """

    values: Float[Tensor, "batch token"]
    total: Float[Tensor, " batch"] | None = None
    error: Float[Tensor, "batch token"] | None = None


@dataclass(frozen=True, kw_only=True)
class MapMethod(MapKind):
    """A way to say how much each patch matters; `title` and `unit` are what a person reads of it.

    Attributes:
        name: Its name in results and options: lower-case letters, digits and underscores.
        compute: Makes the map.
        targeted: Whether the map depends on the target.
        compares: Whether it needs references, whatever the target.
        differentiates: Whether it follows the target's gradient at the image itself.
        reads_attentions: Whether it reads the attention weights of all blocks, which are kept only
            for methods that do.
        check: Refuses a model that the map does not exist for; None if it exists for every model.
        cost: Forward passes per image, for P patches, in words.
        source: The publication.
    """

    name: str
    compute: Callable[[MapInput], MapValues]
    targeted: bool
    compares: bool = False
    differentiates: bool = False
    reads_attentions: bool = False
    check: Callable[[ViTAdapter], None] | None = None
    cost: str
    source: str

    def __post_init__(self) -> None:
        if not MAP_NAME.fullmatch(self.name):
            raise UsageError(
                f"a map is called {self.name!r}: expected lower-case letters, digits and "
                "underscores, with a letter first"
            )


def check_row(vit: ViTAdapter) -> None:
    """Refuse a model without an attention row that makes its global feature."""
    if not vit.blocks:
        raise UnsupportedModelError(
            f"no attention row makes the global feature of {vit.info.id}, an average of its "
            "tokens: choose maps that need none, such as traced"
        )
