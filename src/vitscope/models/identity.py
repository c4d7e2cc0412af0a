"""The identity of a model: its weights, and all else that changes its forward."""

import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_hooks

from vitscope.models.edits import EditHook
from vitscope.models.running import OwnHook, find_plain_forward, list_computed

_LIBRARIES = {"torch", "timm", "transformers", "open_clip", "accelerate"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)

_IDLE = ("Identity", "Drop")
"""Parts of class names of library modules that pass their input through in evaluation mode."""

_INERT = {
    # origin, preprocessing and training
    *("default_cfg", "pretrained_cfg", "pretrained_model_args", "feature_info", "name_or_path"),
    *("image_mean", "image_std", "preprocess_cfg", "init_values", "init_scale", "fix_init"),
    *("weight_init_mode", "head_init_scale", "loss_type", "warnings_issued", "aug_active"),
    *("grad_checkpointing", "gradient_checkpointing", "inplace", "_is_hf_initialized"),
    # choice among equivalent kernels, and device placement
    *("fused_attn", "kernel_config", "hf_device_map", "all_tied_weights_keys"),
    # accepted input sizes; the actual size is part of every result
    *("dynamic_img_size", "dynamic_img_pad", "strict_img_size", "flatten", "output_fmt"),
    *("feat_shape", "pos_embed_cached"),
}
"""Attributes that do not affect the numbers."""

_PLACING = {"_hf_hook", "_old_forward", "_original_forward", "to", "cuda", "npu", "xpu", "mlu"}
"""Attributes that accelerate sets on a model it has placed."""

_DEVICE_HOOKS = {"AlignDevicesHook", "CpuOffload", "UserCpuOffloadHook"}
_DECORATORS = {*sys.stdlib_module_names, "typing_extensions", "huggingface_hub"}
"""Modules whose functions wrap methods of the libraries as published."""

_RECORDS = "transformers.utils.output_capturing"
_HANDLED = {*vars(nn.Module()), "forward", "_compiled_call_impl", "_gradient_checkpointing_func"}


@dataclass(frozen=True)
class Behaviour:
    """How a model computes with its weights."""

    digest: str  # unique to this run if anything is unknown
    unknown: tuple[str, ...]  # such as "the forward hook of blocks.0 (a lambda)"


def hash_weights(module: nn.Module) -> str:
    """Digest of a model's weights: names, precisions, shapes and bytes."""
    weights = sorted(module.state_dict().items())
    return _hash_lines(f"{name} {hash_tensor(tensor)}" for name, tensor in weights)


def describe_behaviour(module: nn.Module) -> Behaviour:
    """Describe how a model computes, so that two models can be compared."""
    found = _Description()
    for name, part in module.named_modules():
        found.add_module(name or "the model", part)
    found.add_hooks("every module", "pre-hook", torch_hooks._global_forward_pre_hooks.values())
    found.add_hooks("every module", "hook", torch_hooks._global_forward_hooks.values())
    unlike_any = [uuid4().hex] if found.unknown else []
    return Behaviour(_hash_lines([*found.lines, *unlike_any]), tuple(found.unknown))


class _Description:
    """Collects one line for everything that affects a model's numbers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.unknown: list[str] = []

    def add_module(self, name: str, module: nn.Module) -> None:
        kind = type(module)
        if not (_is_library(kind.__module__) and any(word in kind.__name__ for word in _IDLE)):
            self._add(name, "class", partial(_describe_class, kind))
            self._add_attributes(name, module)
        for buffer in sorted(module._non_persistent_buffers_set):
            self._add(name, f"buffer {buffer}", partial(_describe_value, module._buffers[buffer]))
        self._add_forward(name, module)
        self.add_hooks(name, "pre-hook", module._forward_pre_hooks.values())
        self.add_hooks(name, "hook", module._forward_hooks.values())

    def add_hooks(self, name: str, kind: str, hooks: Iterable[Callable[..., Any]]) -> None:
        for hook in hooks:
            if isinstance(hook, EditHook):
                self.lines.append(f"{name} edit {hook.edit.words}")
                continue
            records = getattr(hook, "__module__", None) == _RECORDS
            if not (records or isinstance(hook, OwnHook)):
                self._add(name, f"forward {kind}", partial(_describe_hook, hook))

    def _add_attributes(self, place: str, module: nn.Module) -> None:
        known = _is_library(type(module).__module__)
        own_hooks = any(map(_is_of_torch, module._forward_pre_hooks.values()))
        computed = {name for name, _ in list_computed(module)} if own_hooks else set()
        for attribute, value in sorted(vars(module).items()):
            if attribute in _HANDLED | _INERT | _PLACING | computed or isinstance(value, nn.Module):
                continue
            # Also a callable object or a partial in place of a method such as `forward_features`.
            of_class = getattr(type(module), attribute, None)
            code = isinstance(value, FunctionType | MethodType) or isinstance(
                of_class, FunctionType
            )
            if code or not known:
                self._add(place, attribute, partial(_describe_value, value))
            elif not (attribute.startswith("_") or "drop" in attribute):
                self._add(place, attribute, partial(_describe_value, value), optional=True)

    def _add_forward(self, name: str, module: nn.Module) -> None:
        of_class: Any = type(module).forward
        for method, code in _list_replaced_methods(type(module)):
            self._add(name, f"class's {method}", partial(_describe_code, code))
        placing = vars(module).get("_hf_hook")
        for hook in getattr(placing, "hooks", [placing]):
            if hook is not None and type(hook).__name__ not in _DEVICE_HOOKS:
                self._add(name, "hook", partial(_describe_hook, hook))
        own = vars(module)
        forward = find_plain_forward(module) or own.get("_old_forward", own.get("forward"))
        if type(module).__name__ == "OptimizedModule":  # the compiled module is a part of its own
            return
        if isinstance(forward, MethodType) and forward.__self__ is module:
            forward = forward.__func__
        if forward not in {None, of_class}:
            self._add(name, "forward", partial(_describe_code, forward))

    def _add(
        self, name: str, what: str, describe: Callable[[], str], *, optional: bool = False
    ) -> None:
        try:
            self.lines.append(f"{name} {what} {describe()}")
        except _UnknownError as error:
            # Optional attributes are those a library stores but does not compute with, such as its
            # config.
            if not optional:
                self.unknown.append(f"the {what} of {name} ({error})")


def _hash_lines(lines: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _describe_hook(hook: Any) -> str:
    if _is_of_torch(hook):
        settings = {k: v for k, v in vars(hook).items() if isinstance(v, bool | int | float | str)}
        return f"{_describe_class(type(hook))} {_describe_value(settings)}"
    return _describe_code(hook)


def _list_replaced_methods(kind: type) -> list[tuple[str, FunctionType]]:
    # Library methods that were replaced for a whole class.
    return [
        (name, method)
        for part in kind.__mro__
        if _is_library(part.__module__) and part is not nn.Module
        for name, method in sorted(vars(part).items())
        if isinstance(method, FunctionType) and not name.startswith("__") and _is_foreign(method)
    ]


def _is_foreign(method: FunctionType) -> bool:
    origin = method.__globals__["__name__"]
    inner = getattr(method, "__wrapped__", None)
    return not (_is_library(origin) or origin.partition(".")[0] in _DECORATORS) or (
        isinstance(inner, FunctionType) and _is_foreign(inner)
    )


def _is_of_torch(hook: Any) -> bool:
    # Pruning and the older weight normalisations: their tensors are in the state dict.
    return type(hook).__module__.startswith("torch.nn.utils.")


# Descriptions of values and code are the same in every process.


class _UnknownError(Exception):
    """Raised for a value that cannot be described; the message says what it is."""


def _is_library(module: str) -> bool:
    # Whether code is identified by its name alone.
    return module.partition(".")[0] in _LIBRARIES


def hash_tensor(tensor: Tensor) -> str:
    """Digest of a tensor on any device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16)
    return f"{tensor.dtype} {tuple(tensor.shape)} {digest.hexdigest()}"


def _describe_value(value: Any) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Enum):
        return f"{_describe_class(type(value))}.{value.name}"
    if isinstance(value, Tensor):
        return hash_tensor(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_describe_value, value))})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_describe_value, value)))}}}"
    if isinstance(value, dict):
        items = (f"{_describe_value(k)}: {_describe_value(v)}" for k, v in value.items())
        return f"{{{', '.join(sorted(items))}}}"
    if isinstance(value, partial):
        given = _describe_value((value.args, value.keywords))
        return f"partial {_describe_value(value.func)} {given}"
    if isinstance(value, type):
        return _describe_class(value)
    return _describe_code(value)


def _describe_class(kind: type) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if _is_library(kind.__module__):
        return name
    if "<locals>" in name:
        raise _UnknownError(f"a class within a function, {kind.__qualname__}")
    own = [part for part in kind.__mro__ if not _is_library(part.__module__) and part is not object]
    methods = {
        f"{part.__qualname__}.{name}": method
        for part in own
        for name, method in vars(part).items()
        if isinstance(method, FunctionType) and not name.startswith("__")
    }
    return " ".join([name, *(_describe_code(methods[n], reads=False) for n in sorted(methods))])


def _describe_code(
    code: Any, *, reads: bool = True, known: frozenset[CodeType] = frozenset()
) -> str:
    if isinstance(code, BuiltinFunctionType) and isinstance(code.__self__, ModuleType | None):
        return f"{code.__module__}.{code.__qualname__}"
    if not isinstance(code, FunctionType):
        raise _UnknownError(_name_kind(code))
    # Not __qualname__, which decorators copy from the wrapped function.
    name = f"{code.__globals__.get('__name__')}.{code.__code__.co_qualname}"
    if _is_library(name):
        inner = getattr(code, "__wrapped__", None)
        return name if inner is None else f"{name} {_describe_code(inner, reads=reads)}"
    if "<lambda>" in name:
        raise _UnknownError("a lambda")
    if "<locals>" in name or set(code.__code__.co_freevars) - {"__class__"}:
        raise _UnknownError(f"a function within a function, {code.__qualname__}")
    words = [
        name,
        _hash_code(code.__code__),
        _describe_value((code.__defaults__, code.__kwdefaults__)),
    ]
    if code.__code__ not in known:
        words += _describe_globals(code, known | {code.__code__}, reads)
    return " ".join(words)


def _describe_globals(
    function: FunctionType, known: frozenset[CodeType], reads: bool
) -> Iterable[str]:
    for name in sorted(_list_names(function.__code__) & function.__globals__.keys()):
        value = function.__globals__[name]
        if not reads:
            # Not booleans, which may say what a machine has.
            if isinstance(value, int | float | complex | Tensor) and not isinstance(value, bool):
                yield f"{name}={_describe_value(value)}"
        elif isinstance(value, ModuleType):
            yield f"{name}={value.__name__}"
        elif isinstance(value, FunctionType):
            yield f"{name}={_describe_code(value, known=known)}"
        else:
            try:
                yield f"{name}={_describe_value(value)}"
            except _UnknownError:
                raise _UnknownError(f"it reads {name}, {_name_kind(value)}") from None


def _list_names(code: CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*map(_list_names, inner))


def _hash_code(code: CodeType) -> str:
    digest = hashlib.blake2b(code.co_code, digest_size=16)
    for const in code.co_consts:
        known = isinstance(const, CodeType)
        digest.update((_hash_code(const) if known else _describe_value(const)).encode())
    digest.update(repr(code.co_names).encode())
    return digest.hexdigest()


def _name_kind(value: Any) -> str:
    if isinstance(value, MethodType):
        return f"a bound method, {value.__qualname__}"
    return f"an object of class {type(value).__qualname__}"
