"""Read preprocessing from the settings of an image processor, which gives the same pixels."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from vitscope.adapters.transformers_families import FAMILIES
from vitscope.errors import UnsupportedModelError, UsageError, first_line
from vitscope.images.preprocessing import Interpolation, Pipeline, Preprocessing, Resize
from vitscope.weights.folders import read_json_object

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Files with the settings of an image processor, older name first."""

_PIPELINES: Mapping[str, Pipeline] = {
    family.processor: family.preprocessing.pipeline for family in FAMILIES.values()
}
_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic")
"""By Pillow's number for them."""


def read_preprocessing(folder: Path) -> Preprocessing | None:
    """Read the settings of a model's image processor."""
    settings = _read_settings(folder)
    if settings is None:
        return None
    import transformers

    given = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    name = str(given).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    if given is not None and name.removesuffix("Pil") not in _PIPELINES:
        raise _make_unknown(str(given))
    try:
        if given is None:  # Then the model type decides.
            processor = transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        else:
            processor = getattr(transformers, name).from_dict(settings)
    except (AttributeError, TypeError, ValueError, OSError) as error:
        raise UnsupportedModelError(
            f"transformers cannot build the image processor of {folder} ({first_line(error)}): "
            "load the model yourself and give wrap_model its preprocessing"
        ) from None
    return translate_processor(processor)


def translate_processor(processor: Any) -> Preprocessing:
    """Translate an image processor."""
    processor = getattr(processor, "image_processor", processor)
    if not type(processor).__module__.startswith("transformers."):
        raise _make_unknown(type(processor).__name__)
    return make_preprocessing(processor.to_dict(), backend=processor.backend)


def make_preprocessing(
    settings: Mapping[str, Any], *, backend: str = "torchvision"
) -> Preprocessing:
    """Translate an image processor's settings."""
    name = str(settings["image_processor_type"])
    kind = name.removesuffix("Fast").removesuffix("Pil")
    if kind not in _PIPELINES:
        raise _make_unknown(name)
    _check_steps(name, settings)
    resample = settings.get("resample")
    if not isinstance(resample, int) or resample not in range(len(_INTERPOLATIONS)):
        _refuse(name, "resample", resample, "0 (nearest) to 3 (bicubic)")
    mean, std = (settings.get("image_mean"), settings.get("image_std"))
    if not settings.get("do_normalize", False):
        mean, std = 0.0, 1.0
    size, resize, crop_fraction = _read_size(name, settings)
    try:
        return Preprocessing(
            size=size,
            resize=resize,
            crop_fraction=crop_fraction,
            interpolation=_INTERPOLATIONS[resample],
            mean=_read_channels(mean),
            std=_read_channels(std),
            pipeline="transformers-pil" if backend == "pil" else _PIPELINES[kind],
        )
    except UsageError as error:
        raise UnsupportedModelError(
            f"the image processor {name} cannot be followed: {error}"
        ) from None


def _check_steps(name: str, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if key.startswith("do_") and value and key not in _STEPS:
            _refuse(name, key, value, "switched off")
    for key in ("do_resize", "do_rescale"):
        if not settings.get(key, False):
            _refuse(name, key, settings.get(key), "switched on")
    factor = settings.get("rescale_factor")
    if not isinstance(factor, (int, float)) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        _refuse(name, "rescale_factor", factor, "1/255")


def _read_size(name: str, settings: Mapping[str, Any]) -> tuple[tuple[int, int], Resize, float]:
    # Input size, kind of resize before the crop, and the fraction kept by the crop.
    resize: Resize
    given = _read_sides(name, settings, "size")
    crop = _read_sides(name, settings, "crop_size") if settings.get("do_center_crop") else None
    if crop is not None and crop.keys() != {"height", "width"}:
        _refuse(name, "crop_size", crop, "height and width")
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


def _read_sides(name: str, settings: Mapping[str, Any], key: str) -> dict[str, int]:
    value = settings.get(key)
    if not isinstance(value, Mapping):
        _refuse(name, key, value, "sides in pixels by name")
    given = {side: pixels for side, pixels in value.items() if pixels is not None}
    if not all(isinstance(pixels, int) and pixels > 0 for pixels in given.values()):
        _refuse(name, key, given, "whole numbers of pixels")
    return given


def _read_channels(value: Any) -> Any:
    # The processors accept one number for all three channels; other types are refused there.
    return (value,) * 3 if isinstance(value, (int, float)) else value


def _read_settings(folder: Path) -> dict[str, Any] | None:
    # In the same order as transformers: nested in the newer file, otherwise the older file.
    older, newer = (folder / name for name in PROCESSOR_FILES)
    if newer.is_file():
        nested = read_json_object(newer, str(folder)).get("image_processor")
        if isinstance(nested, dict):
            return nested
    return read_json_object(older, str(folder)) if older.is_file() else None


def _refuse(name: str, key: str, value: object, expected: str) -> NoReturn:
    raise UnsupportedModelError(
        f"the image processor {name} has {key}={value!r}, expected {expected}: load the model "
        "yourself and give wrap_model a preprocessing"
    )


def _make_unknown(name: str) -> UnsupportedModelError:
    known = ", ".join(sorted(_PIPELINES))
    return UnsupportedModelError(
        f"the image processor {name} is not one of {known}: load the model yourself and give "
        "wrap_model a preprocessing"
    )
