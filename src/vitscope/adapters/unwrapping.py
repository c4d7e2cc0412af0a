"""Find the Vision Transformer inside wrappers: compilers, parallelism, LoRA, a custom head."""

import copy
import warnings
from collections.abc import Callable

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitscope.errors import UnsupportedModelError

_PARTS = ("backbone", "vit")  # common names of the Vision Transformer in a module of one's own


def unwrap(
    module: nn.Module, is_known: Callable[[nn.Module], bool]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Unwrap a model, with a note on each wrapper."""
    notes: list[str] = []
    # A known class is not opened: its adapter knows which part to analyse.
    while not is_known(module) and (inner := _open(module, is_known)) is not None:
        module, note = inner
        notes.append(note)
    return module, tuple(notes)


def _open(module: nn.Module, is_known: Callable[[nn.Module], bool]) -> tuple[nn.Module, str] | None:
    name = type(module).__name__
    if isinstance(module, (nn.DataParallel, DistributedDataParallel)):
        _refuse_hooks(module)
        return module.module, f"the wrapper {name} was removed"
    if isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        _refuse_hooks(module)
        return inner, f"the wrapper {name} (torch.compile) was removed"
    if _is_peft(module):
        return _merge(module), f"the adapters of {name} are merged into a copy of the model"
    inside = {part: getattr(module, part, None) for part in _PARTS}
    found = {
        part: inner
        for part, inner in inside.items()
        if isinstance(inner, nn.Module) and is_known(unwrap(inner, is_known)[0])
    }
    if len(found) != 1:
        return None
    ((part, inner),) = found.items()
    return inner, f"only the part {part} of {name} is analysed"


def _is_peft(module: nn.Module) -> bool:
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)


def _refuse_hooks(wrapper: nn.Module) -> None:
    # Such hooks run when the wrapper is called, not when the inner model is.
    hooks = [*wrapper._forward_pre_hooks.values(), *wrapper._forward_hooks.values()]
    if hooks:
        names = ", ".join(getattr(hook, "__name__", type(hook).__name__) for hook in hooks)
        raise UnsupportedModelError(
            f"the wrapper {type(wrapper).__name__} has forward hooks of its own ({names}), which "
            "would have no effect: remove them, or register them on what is inside it"
        )


def _merge(module: nn.Module) -> nn.Module:
    for part in filter(_is_peft, module.modules()):
        _refuse_hooks(part)
        if getattr(part, "disable_adapters", False) is True:
            raise UnsupportedModelError(
                f"the adapters of {type(module).__name__} are switched off, and would be merged "
                "all the same: expected them on; to analyse the model without them, give what "
                "unload() of a copy returns"
            )
    # A copy: the caller may continue training, and merging cannot be undone exactly.
    merge = getattr(copy.deepcopy(module), "merge_and_unload", None)
    if merge is None:
        raise UnsupportedModelError(
            f"the adapters of {type(module).__name__} cannot be merged into the model's weights: "
            "expected LoRA or another kind with merge_and_unload()"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about adapters that are already merged
        merged: nn.Module = merge()
    return merged
