"""Text descriptions of values and code that are the same in every process, for comparison."""

import hashlib
from collections.abc import Iterable
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

_LIBRARIES = {"torch", "timm", "transformers", "open_clip", "accelerate"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)


class UnknownError(Exception):
    """Raised for a value that cannot be described; the message says what it is."""


def is_library(module: str) -> bool:
    """Whether code is identified by its name alone."""
    return module.partition(".")[0] in _LIBRARIES


def hash_tensor(tensor: Tensor) -> str:
    """Digest of a tensor on any device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16)
    return f"{tensor.dtype} {tuple(tensor.shape)} {digest.hexdigest()}"


def describe_value(value: Any) -> str:
    """Describe a setting."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Enum):
        return f"{describe_class(type(value))}.{value.name}"
    if isinstance(value, Tensor):
        return hash_tensor(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(map(describe_value, value))})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(describe_value, value)))}}}"
    if isinstance(value, dict):
        items = (f"{describe_value(k)}: {describe_value(v)}" for k, v in value.items())
        return f"{{{', '.join(sorted(items))}}}"
    if isinstance(value, partial):
        given = describe_value((value.args, value.keywords))
        return f"partial {describe_value(value.func)} {given}"
    if isinstance(value, type):
        return describe_class(value)
    return describe_code(value)


def describe_class(kind: type) -> str:
    """Describe a class."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if is_library(kind.__module__):
        return name
    if "<locals>" in name:
        raise UnknownError(f"a class within a function, {kind.__qualname__}")
    own = [part for part in kind.__mro__ if not is_library(part.__module__) and part is not object]
    methods = {
        f"{part.__qualname__}.{name}": method
        for part in own
        for name, method in vars(part).items()
        if isinstance(method, FunctionType) and not name.startswith("__")
    }
    return " ".join([name, *(describe_code(methods[n], reads=False) for n in sorted(methods))])


def describe_code(
    code: Any, *, reads: bool = True, known: frozenset[CodeType] = frozenset()
) -> str:
    """Describe a function."""
    if isinstance(code, BuiltinFunctionType) and isinstance(code.__self__, ModuleType | None):
        return f"{code.__module__}.{code.__qualname__}"
    if not isinstance(code, FunctionType):
        raise UnknownError(_name_kind(code))
    # Not __qualname__, which decorators copy from the wrapped function.
    name = f"{code.__globals__.get('__name__')}.{code.__code__.co_qualname}"
    if is_library(name):
        inner = getattr(code, "__wrapped__", None)
        return name if inner is None else f"{name} {describe_code(inner, reads=reads)}"
    if "<lambda>" in name:
        raise UnknownError("a lambda")
    if "<locals>" in name or set(code.__code__.co_freevars) - {"__class__"}:
        raise UnknownError(f"a function within a function, {code.__qualname__}")
    words = [
        name,
        _hash_code(code.__code__),
        describe_value((code.__defaults__, code.__kwdefaults__)),
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
                yield f"{name}={describe_value(value)}"
        elif isinstance(value, ModuleType):
            yield f"{name}={value.__name__}"
        elif isinstance(value, FunctionType):
            yield f"{name}={describe_code(value, known=known)}"
        else:
            try:
                yield f"{name}={describe_value(value)}"
            except UnknownError:
                raise UnknownError(f"it reads {name}, {_name_kind(value)}") from None


def _list_names(code: CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*map(_list_names, inner))


def _hash_code(code: CodeType) -> str:
    digest = hashlib.blake2b(code.co_code, digest_size=16)
    for const in code.co_consts:
        known = isinstance(const, CodeType)
        digest.update((_hash_code(const) if known else describe_value(const)).encode())
    digest.update(repr(code.co_names).encode())
    return digest.hexdigest()


def _name_kind(value: Any) -> str:
    if isinstance(value, MethodType):
        return f"a bound method, {value.__qualname__}"
    return f"an object of class {type(value).__qualname__}"
