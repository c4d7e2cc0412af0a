"""How a transformers model wants its pictures: its image processor's settings, read as values.

The processor itself is not run. A setting that changes pixels and has no counterpart in
`Preprocessing` is refused by name, so that what is reported is what the model was made for.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from vitscope.errors import UnsupportedModelError
from vitscope.pictures.preprocessing import Interpolation, Preprocessing

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Files that hold an image processor's settings, the older name first."""

_PROCESSORS = {
    f"{name}ImageProcessor" for name in ("Bit", "CLIP", "DeiT", "DINOv3ViT", "Siglip", "ViT")
}
_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_INTERPOLATIONS: Mapping[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}

_DINOV2 = Preprocessing(
    # The configuration names the size of the position table (518), not the customary input.
    size=(224, 224),
    crop_fraction=224 / 256,
    mean=_IMAGENET_MEAN,
    std=_IMAGENET_STD,
)
_DEFAULTS: Mapping[str, Preprocessing] = {
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": Preprocessing(
        size=(224, 224),
        resize="stretch",
        interpolation="bilinear",
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
    ),
    "vit": Preprocessing(
        size=(224, 224), resize="stretch", interpolation="bilinear", mean=_HALF, std=_HALF
    ),
    "deit": Preprocessing(
        size=(224, 224),
        resize="stretch",
        crop_fraction=224 / 256,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
    ),
    "clip": Preprocessing(size=(224, 224), mean=_CLIP_MEAN, std=_CLIP_STD),
    "siglip": Preprocessing(size=(224, 224), resize="stretch", mean=_HALF, std=_HALF),
}
"""What each family customarily wants; all but DINOv2 take their size from the configuration."""


def read_preprocessing(folder: Path) -> Preprocessing | None:
    """Read the settings of a model's image processor.

    Args:
        folder: The model's folder.

    Returns:
        The preprocessing, or None where the folder has none.

    Raises:
        UnsupportedModelError: If the processor does something that is not modelled here.
    """
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return None
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError):
        # A class that is not in the library, or one that the repository brings along.
        raise UnsupportedModelError(
            f"the image processor that {folder} names is not one of {_describe_processors()}: "
            "load the model yourself and give wrap_model its preprocessing"
        ) from None
    return make_preprocessing(processor.to_dict())


def make_preprocessing(settings: Mapping[str, Any]) -> Preprocessing:
    """Translate an image processor's settings.

    Args:
        settings: The processor's `to_dict()`.

    Returns:
        The same steps as values.

    Raises:
        UnsupportedModelError: If a setting has no counterpart; the message names it.
    """
    name = str(settings["image_processor_type"])
    if name.removesuffix("Fast").removesuffix("Pil") not in _PROCESSORS:
        raise UnsupportedModelError(
            f"the image processor {name} is not one of {_describe_processors()}"
        )
    for key, value in settings.items():
        if key.startswith("do_") and value and key not in _STEPS:
            _refuse(name, key, value, "switched off")
    for key in ("do_resize", "do_rescale"):
        if not settings.get(key, False):
            _refuse(name, key, settings.get(key), "switched on")
    if not math.isclose(settings["rescale_factor"], 1 / 255, rel_tol=1e-6):
        _refuse(name, "rescale_factor", settings["rescale_factor"], "1/255")
    resample = int(settings["resample"])
    if resample not in _INTERPOLATIONS:
        _refuse(name, "resample", resample, "0 (nearest) to 3 (bicubic)")
    normalize = settings.get("do_normalize", False)
    size, resize, crop_fraction = _read_size(name, settings)
    return Preprocessing(
        size=size,
        resize=resize,
        crop_fraction=crop_fraction,
        interpolation=_INTERPOLATIONS[resample],
        mean=_read_channels(settings["image_mean"]) if normalize else (0.0, 0.0, 0.0),
        std=_read_channels(settings["image_std"]) if normalize else (1.0, 1.0, 1.0),
    )


def default_preprocessing(family: str, size: tuple[int, int]) -> Preprocessing:
    """What models of a family usually want, for one that comes without its settings.

    Args:
        family: Model type, such as "dinov2".
        size: The configuration's image (height, width) in pixels.

    Returns:
        The family's customary preprocessing.
    """
    default = _DEFAULTS[family]
    return default if default is _DINOV2 else default.with_size(size)


def _read_size(
    name: str, settings: Mapping[str, Any]
) -> tuple[tuple[int, int], Literal["cover", "stretch"], float]:
    # Input size, the resize before the crop, and the part of it that the crop keeps.
    resize: Literal["cover", "stretch"]
    given = {key: value for key, value in settings["size"].items() if value is not None}
    crop = settings["crop_size"] if settings.get("do_center_crop") else None
    if given.keys() == {"shortest_edge"}:
        if crop is None or crop["height"] != crop["width"]:
            _refuse(name, "crop_size", crop, "a square centre crop after shortest_edge")
        before, resize = (given["shortest_edge"],) * 2, "cover"
    elif given.keys() == {"height", "width"}:
        before, resize = (given["height"], given["width"]), "stretch"
    else:
        _refuse(name, "size", given, "shortest_edge, or height and width")
    after = before if crop is None else (crop["height"], crop["width"])
    if after[0] * before[1] != after[1] * before[0] or after[0] > before[0]:
        _refuse(name, "crop_size", crop, f"a part of {before} of the same shape")
    return after, resize, after[0] / before[0]


def _read_channels(value: float | Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = value if isinstance(value, Sequence) else (value,) * 3
    return float(red), float(green), float(blue)


def _refuse(name: str, key: str, value: object, expected: str) -> NoReturn:
    raise UnsupportedModelError(
        f"the image processor {name} has {key}={value!r}, expected {expected}: load the model "
        "yourself and give wrap_model a preprocessing"
    )


def _describe_processors() -> str:
    return ", ".join(sorted(_PROCESSORS))
