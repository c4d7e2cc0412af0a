"""Edits of a model that last as long as a context, and how they are known from other hooks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from vitscope.errors import UsageError


class Edit(NamedTuple):
    """An edit that is applied to a model."""

    words: str  # what it does, in words that tell edits apart
    is_traced: bool  # whether it is the same affine map for every image: a trace goes through
    is_of_row: bool  # whether it is one of the [CLS] row alone, which stays without patches


@dataclass(frozen=True, eq=False)
class EditHook:
    """A hook that changes what a model computes."""

    edit: Edit  # which it is part of
    hook: Callable[..., Any]

    def __call__(self, *given: Any) -> Any:
        """Call the hook."""
        return self.hook(*given)


def check_edits(modules: Iterable[nn.Module], expected: tuple[Edit, ...]) -> None:
    """Refuse to run a model under edits that its adapter does not know of, or without its own."""
    found = {
        hook.edit
        for module in modules
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for hook in hooks.values()
        if isinstance(hook, EditHook)
    }
    if unknown := sorted(found.difference(expected)):
        raise UsageError(
            f"the model is being edited ({unknown[0].words}): use the adapter that `applied` gave, "
            "or leave its context first"
        )
    if missing := [edit for edit in expected if edit not in found]:
        raise make_ended(missing[0])


def make_ended(edit: Edit) -> UsageError:
    """The error of an adapter whose edit is no longer applied."""
    return UsageError(
        f"the edit {edit.words} has ended: use its adapter inside the context of `applied`"
    )
