"""How a model is run: by one thread, in evaluation mode, unaffected by its surroundings."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vitscope.errors import UsageError
from vitscope.models.edits import Edit, check_edits

_owners: dict[int, int] = {}
"""The thread that runs a module or weight, by its `id`; that thread keeps the object alive."""

_waiting: dict[int, set[int]] = {}  # objects that each thread waits for

_changed = threading.Condition()

_recorded = threading.local()  # the forward that each thread is recording

HALF_PRECISIONS = (torch.bfloat16, torch.float16)


@contextmanager
def undisturbed(module: nn.Module, edits: tuple[Edit, ...] = ()) -> Iterator[None]:
    """Hold a model exclusively and ready to run; reentrant for the same thread.

    `edits` are those that the caller knows to be applied.
    """
    modules = list(module.modules())
    tensors = (t for part in modules for t in (*part._parameters.values(), *part._buffers.values()))
    weights = [tensor for tensor in tensors if tensor is not None]
    with _held([*modules, *weights]), ExitStack() as stack:
        check_whole(module)
        check_edits(modules, edits)
        stack.enter_context(_as_written(modules))
        if torch.is_inference_mode_enabled():  # in which no gradient can be asked for
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        # Ledgers are computed on the CPU, whatever the model's device.
        for kind in {"cpu", *(tensor.device.type for tensor in weights)}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Hold a model exclusively, and restore the training mode of every part afterwards."""
    parts = list(module.modules())
    # A compiler's wrapper has the mode of the module inside.
    owns = [vars(part) for part in parts if "training" in vars(part)]
    with _held(parts), _kept([(own, "training") for own in owns]):
        yield


@contextmanager
def _kept(places: Sequence[tuple[dict[str, Any], str]]) -> Iterator[None]:
    # Restore entries of dictionaries, such as attributes, when the context ends.
    before = [(own, name, own[name]) for own, name in places]
    try:
        yield
    finally:
        for own, name, value in before:
            own[name] = value


def list_computed(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors that are plain attributes of a module, neither parameters nor buffers."""
    return [(name, value) for name, value in vars(module).items() if isinstance(value, Tensor)]


@contextmanager
def moved(module: nn.Module, device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
    """Move and cast a model temporarily."""
    parts = list(module.modules())
    parameters = [(p, p.data, p.grad) for p in module.parameters()]
    buffers = [(part._buffers, name) for part in parts for name in part._buffers]
    computed = [(vars(part), name) for part in parts for name, _ in list_computed(part)]
    with _kept([*buffers, *computed]):
        try:
            for parameter, _, _ in parameters:
                parameter.grad = None  # otherwise cast and moved too
            module.to(device=device, dtype=dtype)
            for own, name in computed:
                # Pruning and the older weight normalisations compute these from parameters; torch
                # neither moves nor casts them.
                floating = own[name].is_floating_point()
                own[name] = own[name].to(device, dtype if floating else own[name].dtype)
            yield
        finally:
            for parameter, data, gradient in parameters:
                parameter.data, parameter.grad = data, gradient


def check_whole(module: nn.Module) -> None:
    """Refuse a model whose weights are not all in this process's memory."""
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            place = "not in memory (offloaded by accelerate, or on the meta device)"
        # A DTensor (FSDP 2, tensor parallel) has a mesh; DeepSpeed's stage 3 leaves empty tensors.
        elif hasattr(parameter, "device_mesh") or parameter.numel() == 0:
            place = "sharded across processes"
        else:
            continue
        raise UsageError(
            f"parameter {name} is {place}: expected the whole Vision Transformer in each process, "
            "as in DDP; load it whole onto one device, or audit its checkpoints"
        )


def find_plain_forward(module: nn.Module) -> Callable[..., Any] | None:
    """Find the original forward under a compiler or Accelerate's mixed precision."""
    own = vars(module)
    compiled = getattr(own.get("forward"), "_torchdynamo_orig_callable", None)
    return own.get("_original_forward", compiled)  # the former is set by accelerate


@contextmanager
def _as_written(modules: Sequence[nn.Module]) -> Iterator[None]:
    # In evaluation mode and without a compiler, whose code ignores hooks added later. Attributes
    # are set directly, because `eval` may do more, such as merging low-rank adapters.
    changes: list[tuple[dict[str, Any], str, Any]] = []
    for module in modules:
        own = vars(module)
        if own["training"]:
            changes.append((own, "training", False))
        if own.get("_compiled_call_impl") is not None:
            changes.append((own, "_compiled_call_impl", None))
        if (plain := find_plain_forward(module)) is not None:
            changes.append((own, "forward", plain))
    with _kept([(own, name) for own, name, _ in changes]):
        for own, name, value in changes:
            own[name] = value
        yield


@contextmanager
def _held(parts: Sequence[object]) -> Iterator[None]:
    me, wanted = threading.get_ident(), {id(part) for part in parts}
    with _changed:
        _waiting[me] = wanted
        try:
            while holders := _find_holders(me):
                if me in holders:
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
    # The threads that it waits for, those that these wait for, and so on.
    found: set[int] = set()
    new = {thread}
    while new:
        new = {
            _owners[part]
            for waiting in new
            for part in _waiting.get(waiting, set()) & _owners.keys()
            if _owners[part] != waiting
        } - found
        found |= new
    return found


@contextmanager
def one_forward() -> Iterator[None]:
    """Record one forward: hooks made outside this context do not see it."""
    outer = getattr(_recorded, "forward", None)
    _recorded.forward = object()
    try:
        yield
    finally:
        _recorded.forward = outer


class Hooks(ExitStack):
    """Our own hooks on modules, which are gone when the context ends."""

    def before(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Call a function with the module and its arguments, before its forward."""
        handle = module.register_forward_pre_hook(OwnHook(function), with_kwargs=True)
        self.callback(handle.remove)

    def after(
        self, module: nn.Module, function: Callable[..., Any], *, first: bool = False
    ) -> None:
        """Call a function with the module, its arguments and its output."""
        handle = module.register_forward_hook(OwnHook(function), prepend=first)
        self.callback(handle.remove)


class OwnHook:
    """A hook of vitscope that acts only in the forward being recorded when it was made."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook
        self._forward = _current()

    def __call__(self, *given: Any) -> Any:
        """Call the hook if this is its forward."""
        return self._hook(*given) if _current() == self._forward else None


def _current() -> object:
    return threading.get_ident(), getattr(_recorded, "forward", None)


class Autocast:
    """Whether a model currently runs under autocast; shared by all adapters of its module.

    Only the model's own code does: products use 16 bits, while the sum over blocks stays in float32
    so that rounding errors do not accumulate (unless the library itself casts it, as open_clip).
    """

    def __init__(self) -> None:
        self.half: torch.dtype | None = None  # its precision; None if it is off

    @contextmanager
    def switched(self, device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
        """Set the precision that `applied` uses in this context."""
        before, self.half = self.half, dtype if dtype in HALF_PRECISIONS else None
        try:
            # Disable the caller's autocast. The cast weights are cached until the outermost
            # autocast context ends, so this one serves all batches. The cache is cleared before and
            # after: the caller's context may be further out, with weights cast before the last
            # training step or to another precision.
            torch.clear_autocast_cache()
            with torch.autocast(torch.device(device).type, enabled=False):
                yield
        finally:
            torch.clear_autocast_cache()
            self.half = before

    def without_gradients(self) -> AbstractContextManager[object]:
        """Disable gradients."""
        return torch.inference_mode() if self.half is None else torch.no_grad()

    def applied(self, device: torch.device) -> AbstractContextManager[object]:
        """Run the model's own code under autocast, if it is on."""
        return nullcontext() if self.half is None else torch.autocast(device.type, self.half)


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return False
