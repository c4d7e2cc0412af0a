"""How a model is run: by one thread, in evaluation mode, as it was written, whatever is around it.

- Two threads never run, move or cast the same weights at once; the second one waits.
- What a caller has switched on (training mode, autocast, a compiler, Accelerate's mixed
  precision) does not reach its numbers, and holds again afterwards.
- A model that is not whole in this process is refused before anything is run.
- Hooks of vitscope see one forward alone: not another thread's, and not one within their own.
- In half precision only the model's own code runs, by autocast: products in 16 bits, and what it
  adds up over its blocks in float32, so that no rounding piles up there; save where a library's
  own code casts it, as open_clip's does.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vitscope.errors import UsageError

_owners: dict[int, int] = {}
"""The thread that runs a module or weight, by its `id`; who runs it keeps it alive."""

_waiting: dict[int, set[int]] = {}  # what a thread waits for

_changed = threading.Condition()

_recorded = threading.local()  # the forward that each thread records

HALF_PRECISIONS = (torch.bfloat16, torch.float16)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Have a model alone, ready to be run; a thread may enter several times."""
    modules = list(module.modules())
    weights = [tensor for part in modules for tensor in list_tensors(part)]
    with _held([*modules, *weights]), ExitStack() as stack:
        check_whole(module)
        stack.enter_context(_as_written(modules))
        # Ledgers are made on the CPU, wherever the model is.
        for kind in {"cpu", *(tensor.device.type for tensor in weights)}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Have a model alone; afterwards each part has the mode that it had."""
    parts = list(module.modules())
    with _held(parts):
        modes = [part.training for part in parts]
        try:
            yield
        finally:
            for part, training in zip(parts, modes, strict=True):
                part.training = training


def list_tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module itself, without those of its children."""
    own = [*module._parameters.values(), *module._buffers.values()]
    return [tensor for tensor in own if tensor is not None]


def list_computed(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors that are plain attributes of a module, neither parameters nor buffers."""
    return [(name, value) for name, value in vars(module).items() if isinstance(value, Tensor)]


@contextmanager
def moved(module: nn.Module, device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
    """Move and cast a model for a while."""
    parts = list(module.modules())
    parameters = [(p, p.data, p.grad) for p in module.parameters()]
    buffers = [(part._buffers, name, b) for part in parts for name, b in part._buffers.items()]
    computed = [(vars(part), name, t) for part in parts for name, t in list_computed(part)]
    try:
        for parameter, _, _ in parameters:
            parameter.grad = None  # it would be cast and moved too
        module.to(device=device, dtype=dtype)
        for own, name, tensor in computed:
            # What pruning and the older normalisations of weights compute of the parameters, which
            # torch neither moves nor casts.
            floating = tensor.is_floating_point()
            own[name] = tensor.to(device=device, dtype=dtype if floating else tensor.dtype)
        yield
    finally:
        for parameter, data, gradient in parameters:
            parameter.data, parameter.grad = data, gradient
        for own, name, kept in [*buffers, *computed]:
            own[name] = kept


def check_whole(module: nn.Module) -> None:
    """Refuse a model of which some weights are elsewhere."""
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            raise UsageError(
                f"parameter {name} is not in memory (offloaded by accelerate, or on the meta "
                "device): load the whole model onto one device, without offloading"
            )
        # A DTensor (FSDP 2, tensor parallel) tells its mesh; DeepSpeed's stage 3 leaves nothing.
        if hasattr(parameter, "device_mesh") or parameter.numel() == 0:
            raise UsageError(
                f"parameter {name} is spread over processes: expected a Vision Transformer that is "
                "whole in each, as in DDP; audit its checkpoints instead"
            )


def find_plain_forward(module: nn.Module) -> Callable[..., Any] | None:
    """What a compiler or Accelerate's mixed precision was put around."""
    own = vars(module)
    if "_original_forward" in own:  # accelerate keeps it there
        plain: Callable[..., Any] = own["_original_forward"]
        return plain
    return getattr(own.get("forward"), "_torchdynamo_orig_callable", None)


@contextmanager
def _as_written(modules: Sequence[nn.Module]) -> Iterator[None]:
    # Without a compiler, whose code calls no hooks that came after it, and in evaluation mode; by
    # attributes, for `eval` may do more, such as merging low-rank adapters for good.
    changes: list[tuple[dict[str, Any], str, Any]] = []
    for module in modules:
        own = vars(module)
        if own["training"]:
            changes.append((own, "training", False))
        if own.get("_compiled_call_impl") is not None:
            changes.append((own, "_compiled_call_impl", None))
        if (plain := find_plain_forward(module)) is not None:
            changes.append((own, "forward", plain))
    before = [(own, name, own[name]) for own, name, _ in changes]
    try:
        for own, name, value in changes:
            own[name] = value
        yield
    finally:
        for own, name, value in before:
            own[name] = value


@contextmanager
def _held(parts: Sequence[object]) -> Iterator[None]:
    me, wanted = threading.get_ident(), {id(part) for part in parts}
    with _changed:
        _waiting[me] = wanted
        try:
            while _find_holders(me):
                if me in _find_all_holders(me):
                    raise UsageError(
                        "two threads wait for each other's models: use one model in each thread, "
                        "or do not use another one during a run, as in on_progress"
                    )
                _changed.wait()
        finally:
            del _waiting[me]
        new = wanted - _owners.keys()
        _owners.update(dict.fromkeys(new, me))
    try:
        yield
    finally:
        with _changed:
            for part in new:
                del _owners[part]
            _changed.notify_all()


def _find_holders(thread: int) -> set[int]:
    wanted = _waiting.get(thread, set())
    return {_owners[part] for part in wanted & _owners.keys()} - {thread}


def _find_all_holders(thread: int) -> set[int]:
    # Those that it waits for, those that these wait for, and so on.
    found: set[int] = set()
    new = _find_holders(thread)
    while new:
        found |= new
        new = set().union(*map(_find_holders, new)) - found
    return found


@contextmanager
def one_forward() -> Iterator[None]:
    """Record one forward: hooks made outside of this context do not see it."""
    outer = getattr(_recorded, "forward", None)
    _recorded.forward = object()
    try:
        yield
    finally:
        _recorded.forward = outer


class OwnHook:
    """A hook of vitscope, for the forward that is recorded when it is made."""

    def __init__(self, hook: Callable[..., None]) -> None:
        """Tie a hook to this forward."""
        self._hook = hook
        self._forward = _current()

    def __call__(self, *given: Any) -> None:
        """Look at what passes, if it is of this forward."""
        if _current() == self._forward:
            self._hook(*given)


def _current() -> object:
    return threading.get_ident(), getattr(_recorded, "forward", None)


class Autocast:
    """Whether a model runs under autocast at the moment; shared by all adapters of its module."""

    def __init__(self) -> None:
        """Begin without: the model computes in the precision of its weights."""
        self._half: torch.dtype | None = None

    @property
    def half(self) -> torch.dtype | None:
        """The half precision that the model runs in; None where it runs in that of its weights."""
        return self._half

    @contextmanager
    def switched(self, device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
        """Let `applied` mean a precision for a while."""
        before, self._half = self._half, dtype if dtype in HALF_PRECISIONS else None
        try:
            # No autocast of the caller's. And weights that are cast are kept until the outermost
            # context ends: until this one, not for each batch anew. The caller's own context may
            # be further out. What is kept in it may be cast from weights before the last step of a
            # training, or, left by this one, to another precision than the caller's.
            torch.clear_autocast_cache()
            with torch.autocast(torch.device(device).type, enabled=False):
                yield
        finally:
            torch.clear_autocast_cache()
            self._half = before

    def without_gradients(self) -> AbstractContextManager[object]:
        """Keep no record for gradients."""
        return torch.inference_mode() if self._half is None else torch.no_grad()

    def applied(self, device: torch.device) -> AbstractContextManager[object]:
        """Run the model's own code as it is to be run."""
        return nullcontext() if self._half is None else torch.autocast(device.type, self._half)


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return False
