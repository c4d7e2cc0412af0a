"""Settings of a run, shared by the library, the command line and the saved provenance."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from textwrap import shorten
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vitscope.errors import UsageError

Auto = Literal["auto"]
DTypeName = Literal["float32", "float64", "bfloat16", "float16", "auto"]
ClsTerm = Literal["own", "registers", "patches"]

if TYPE_CHECKING:
    import torch

    Device = str | torch.device
    DType = DTypeName | torch.dtype
else:  # so that the command line can show its help without importing torch
    Device, DType = str, DTypeName

Config = TypeVar("Config", bound="RunConfig")

_EXPECTED = {
    "device": "'auto', or a device of torch such as 'cpu' or 'cuda:1'",
    "dtype": f"{', '.join(map(repr, get_args(DTypeName)))}, or a dtype of torch",
    "size": "pixels such as 518, or (height, width) such as (224, 336)",
    "layers": "'last', 'all' or block numbers such as [3, 7]",
    "maps": "names such as ['attention', 'traced']",
    "masks": "the path of a folder",
    "metrics": "names such as ['my_metric']",
    "name": "a few words",
    "removals": "names such as ['shuffle', 'drop']",
    "shard": "one of (1, N) to (N, N), such as (3, 16)",
}
_WORDS = {int: "a whole number", float: "a number", bool: "True or False"}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings that every run of a model over images has.

    Attributes:
        batch_size: Images per batch; auto chooses by device and memory.
        device: Where to run: auto (a GPU if there is one), cpu, cuda:1, mps.
        dtype: Precision of the model; auto is bfloat16 where that is exact enough, else float32.
        size: Input size in pixels, or height and width as in 224x336; the model's own by default.
        num_workers: Processes that decode images; 0 is this one.
        draft: Decode large JPEG files at a smaller size: faster, but pixels change visibly.
        seed: Seed of all random draws.
        renormalize: Divide restricted outputs by the kept attention mass, unlike the paper.
        cls_term: Group that [CLS]'s attention to itself is counted in.
        name: Name of the run; by default the folder of the images and the date.
    """

    batch_size: int | Auto = "auto"
    device: Device = "auto"
    dtype: DType = "float32"
    size: int | tuple[int, int] | None = None
    num_workers: int | Auto = "auto"
    draft: bool = False
    seed: int = 0
    renormalize: bool = False
    cls_term: ClsTerm = "own"
    name: str | None = None

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = _as_python(getattr(self, name))
            object.__setattr__(self, name, value)
            if not _takes(kind, value):
                given = shorten(repr(value), width=60, placeholder=" …")
                expected = _EXPECTED.get(name) or _describe_kind(kind)
                raise UsageError(f"{name} {given}: expected {expected}")
        self._check_least(batch_size=1, num_workers=0, seed=0)
        if self.name is not None and not self.name.strip():
            raise UsageError(f"name {self.name!r}: expected {_EXPECTED['name']}")

    def _check_least(self, **least: int) -> None:
        for name, bound in least.items():
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not value >= bound:
                raise UsageError(f"{name} {value}: expected {bound} or more")

    def check_of_maps(self) -> None:
        """Refuse settings that have no effect on maps."""
        for name in ("renormalize", "cls_term"):
            if getattr(self, name) != getattr(RunConfig, name):
                raise UsageError(f"{name} is set, which has no effect on maps: leave it out")

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The precision as a torch dtype."""
        import torch  # here, so that the command line can show its help without it

        dtype: torch.dtype = getattr(torch, str(self.dtype))
        return dtype

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Input (height, width) in pixels; None for the model's own."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def resolve_device(self) -> "torch.device":
        """Resolve the device to run on.

        Returns:
            A device that is available on this machine.

        Raises:
            UsageError: If the requested device is not available.
        """
        import torch

        if self.device == "auto":
            accelerator = torch.accelerator.current_accelerator(check_available=True)
            return torch.device("cpu") if accelerator is None else accelerator
        try:
            device = torch.device(self.device)
            # Reading a number back proves that the device computes ("meta" does not).
            torch.ones(1, device=device).item()
        except (RuntimeError, AssertionError) as error:
            reason = shorten(str(error), width=100, placeholder=" …")
            raise UsageError(
                f"device {self.device!r} is not available here ({reason}): use auto or cpu"
            ) from None
        return device


@dataclass(frozen=True, kw_only=True)
class AuditConfig(RunConfig):
    """Settings of an audit.

    Attributes:
        limit: Number of images, drawn at random; all by default.
        masks: Folder of panoptic masks, for covariates (PNG files named like the images, segment id
            = R + 256 G + 65536 B).
        layers: Layers to audit: last, all, or block numbers; 0 is the first, -1 the last.
        features: Whether every image's features are saved; the per-image centred numbers need them.
        gallery: Number of images saved with their maps, for the report; 0 for none.
        maps: Maps of these images, by name (docs/recipes/maps.md); attention, contribution_norm and
            share by default.
        verified: Fraction of batches, besides the first, whose last block is verified in all
            tokens.
        shard: One part of the images, such as 3/16, for `vitscope merge`.
        metrics: Metrics of other packages to measure as well, by name.
        trace: Number of images traced back through all blocks; each takes about ten forward passes.
        shard_size: Images per shard, the unit that --resume keeps; auto is 32 batches, at least
            512.
    """

    limit: int | None = None
    masks: str | Path | None = None
    layers: Literal["last", "all"] | Sequence[int] = "last"
    features: Literal["keep", "drop"] = "keep"
    gallery: int = 48
    maps: Sequence[str] | None = None
    verified: float = 0.05
    shard: tuple[int, int] | None = None
    metrics: Sequence[str] | None = None
    trace: int = 0
    shard_size: int | Auto = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(limit=1, gallery=0, trace=0, shard_size=1)
        if not 0 <= self.verified <= 1:
            raise UsageError(f"verified {self.verified}: expected a fraction from 0 to 1")
        _check_shard(self.shard)
        self._check_trace()

    def _check_trace(self) -> None:
        if self.trace == 1:
            raise UsageError("trace 1: expected 0 or at least 2, for images are compared")
        if self.trace and self.dtype in {"bfloat16", "float16"}:
            raise UsageError(
                f"trace is set, but {self.dtype} rounds away the differences between images that "
                "are traced: use float32"
            )
        if self.trace and self.dtype == "auto":
            object.__setattr__(self, "dtype", "float32")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(RunConfig):
    """Settings of judging maps.

    Attributes:
        limit: Number of images, drawn at random.
        maps: Maps to judge, by name, besides attention, centre and edges; by default all that take
            few passes.
        removals: Ways to remove patches; the first decides. shuffle replaces a patch's token by
            that of another image, drop takes it out of the sequence, mean replaces it by the mean
            token; blur, black and linear change pixels.
        masks: Folder of object masks (PNG files named like the images, 0 outside the object), for
            scores of plausibility.
        layer: Block whose attention row is explained: 0 is the first, -1 the last, as by default.
        sanity: Also compare maps with those of random weights, of another target and under noise;
            many more passes.
        gallery: Number of images saved with their maps, for the report; 0 for none.
        shard: One part of the images, such as 3/16 for the third of sixteen; `vitscope merge`
            combines the results. Maps are compared with all images, if there are no references.
    """

    limit: int | None = 50
    maps: Sequence[str] | None = None
    removals: Sequence[str] = ("shuffle",)
    masks: str | Path | None = None
    layer: int | None = None
    sanity: bool = False
    gallery: int = 12
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(limit=1, gallery=0)
        _check_shard(self.shard)
        if self.dtype == "auto":  # half precision rounds away small differences
            object.__setattr__(self, "dtype", "float32")
        self.check_of_maps()


@dataclass(frozen=True, kw_only=True)
class OneShotConfig(RunConfig):
    """Settings of one-shot classification.

    Attributes:
        draws: Number of times a training and a test image of every class are drawn.
        classifier: nearest training feature by cosine, logistic regression, or both.
        limit: Number of classes, drawn at random; all by default.
    """

    draws: int = 100
    classifier: Literal["nearest", "logistic", "both"] = "nearest"
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(draws=2, limit=2)


@dataclass(frozen=True, kw_only=True)
class ReproductionConfig(OneShotConfig):
    """Settings of a reproduction of the paper, including the choices it leaves open.

    Attributes:
        num_images: Number of images of each set, drawn at random; all by default.
        limit: Number of classes for one-shot classification, drawn at random; all by default.
        masks: Folder of panoptic masks of the main set, as of an audit.
        layers: Layers to audit: last, block numbers, or all, to correlate shares over layers.
        examples: Number of images, drawn at random, whose maps are shown (Fig. 4).
        readout: Readout for the claims of Fig. 3: attention is after the output projection, values
            before it.
        size: Input size in pixels, or height and width as in 224x336, rounded to whole patches; the
            model's own by default.
    """

    num_images: int | None = None
    masks: str | Path | None = None
    layers: Literal["last", "all"] | Sequence[int] = "last"
    examples: int = 3
    readout: Literal["attention", "values"] = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(num_images=1, examples=1)


def combine(kind: type[Config], config: Config | None, settings: Mapping[str, Any]) -> Config:
    """Combine a config, or the defaults, with settings given as keyword arguments."""
    config = kind() if config is None else config
    if not isinstance(config, kind):
        raise UsageError(
            f"config is of type {type(config).__name__}: expected {kind.__name__}, or settings as "
            "keyword arguments such as seed=1"
        )
    defaults = {field.name: field.default for field in fields(kind)}
    for field in fields(config):  # a subclass may have more
        if field.name not in defaults and getattr(config, field.name) != field.default:
            raise UsageError(
                f"config is of type {type(config).__name__}, and its {field.name} has no effect "
                f"here: expected {kind.__name__}"
            )
    for name in settings:
        if name not in defaults:
            raise UsageError(f"unknown setting {name}: expected {', '.join(defaults)}")
        if getattr(config, name) != defaults[name]:
            raise UsageError(f"{name} is given twice, in config and as a keyword: give it once")
    return replace(config, **settings)


def check_kind(name: str, given: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise a `UsageError` if an argument has none of the types."""
    if not isinstance(given, kinds):
        raise UsageError(f"{name} was given as {type(given).__name__}: expected {expected}")


def _check_shard(shard: tuple[int, int] | None) -> None:
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise UsageError(f"shard {shard}: expected one of (1, N) to (N, N)")


def _as_python(value: Any) -> Any:
    # JSON cannot hold paths, nor the numbers, arrays, devices and dtypes of numpy and torch.
    if isinstance(value, (list, tuple, range)):  # a torch.Size too
        return tuple(map(_as_python, value))
    if isinstance(value, type):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "torch" and not hasattr(value, "tolist"):
        return str(value).removeprefix("torch.")
    return _as_python(value.tolist()) if hasattr(value, "tolist") else value


def _takes(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and [*map(type, value)] == [*get_args(kind)]
    if get_origin(kind) is Sequence:
        return isinstance(value, tuple) and {*map(type, value)} == {*get_args(kind)}
    if isinstance(kind, UnionType) or get_args(kind):
        return any(_takes(one, value) for one in get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _describe_kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        *others, last = map(repr, get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    parts = [_describe_kind(one) for one in get_args(kind) if one is not type(None)]
    return " or ".join(parts) or _WORDS.get(kind, "text")
