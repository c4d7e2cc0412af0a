"""Choices that change what numbers mean: results on one figure agree in them, and it names them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from vitscope.config import ClsTerm
from vitscope.figures.numbers import find
from vitscope.figures.saved import ModelResult

Readout = Literal["attention", "values"]
READOUTS: tuple[Readout, ...] = get_args(Readout)
"""Outputs that figure 3 compares in: after the output projection, or before it."""
_READOUT_NAMES: Mapping[str, str] = {
    "attention": "the attention branch of the last block, without the skip connection",
    "values": "the values of the last block weighted by attention, before the output projection",
}


@dataclass(frozen=True)
class Choice:
    """Something that was chosen when a result was made.

    Attributes:
        about: What was chosen, in words that go after "differ in".
        read: Values that a result's numbers would be the same for; every value where it is not
            known.
        names: Every value in words, the default first.
        notes: What is said under a figure of results with a value other than the default.
    """

    about: str
    read: Callable[[ModelResult], frozenset[str]]
    names: Mapping[str, str]
    notes: Mapping[str, str]

    def agree(self, results: Iterable[ModelResult]) -> str | None:
        """The value that all results have.

        Args:
            results: Results.

        Returns:
            The first in `names`; None where there is none.
        """
        common = frozenset(self.names).intersection(*(self.read(result) for result in results))
        return next((value for value in self.names if value in common), None)


def find_mixture(choices: Sequence[Choice], results: Sequence[ModelResult]) -> str:
    """Why results do not belong on one figure.

    Args:
        choices: Choices that the figure's numbers depend on.
        results: Results.

    Returns:
        A sentence without its end; empty where they agree in all choices.
    """
    for choice in choices:
        if choice.agree(results) is None:
            groups = {
                name: [r.label for r in results if choice.read(r) == frozenset({value})]
                for value, name in choice.names.items()
            }
            told = "; ".join(f"{name}: {', '.join(who)}" for name, who in groups.items() if who)
            return f"its results differ in {choice.about} ({told}): draw them apart"
    return ""


def describe_choices(choices: Sequence[Choice], results: Sequence[ModelResult]) -> tuple[str, ...]:
    """What stands under a figure of results that agree.

    Args:
        choices: Choices that the figure's numbers depend on.
        results: Results.

    Returns:
        A sentence for each choice that is not the default, and one for results that do not tell.
    """
    values = [(choice, choice.agree(results)) for choice in choices]
    notes = [choice.notes[value] for choice, value in values if value and value in choice.notes]
    silent = [one.label for one in results if not isinstance(one.summary.get("settings"), Mapping)]
    if choices and silent:
        notes.append(f"Settings not saved with {', '.join(silent)}.")
    return tuple(notes)


def name_readout(readout: str) -> str:
    """An output that figure 3 compares in, in words.

    Args:
        readout: One of `READOUTS`.

    Returns:
        The words.
    """
    return _READOUT_NAMES[readout]


def count_cls(*shown: str) -> Choice:
    """Where the attention of [CLS] to itself is counted, which the paper leaves open.

    Args:
        *shown: Terms that the figure shows.

    Returns:
        The choice, as far as it changes what is shown.
    """
    return Choice(
        about="where [CLS]'s attention to itself is counted",
        read=partial(_read_cls_term, frozenset(shown)),
        names={
            "own": "on its own",
            "registers": "among the registers",
            "patches": "among the patches",
        },
        notes={
            "registers": "[CLS]'s attention to itself is counted among the registers, in models "
            "that have any.",
            "patches": "[CLS]'s attention to itself is counted among the patches.",
        },
    )


def _read_cls_term(shown: frozenset[str], result: ModelResult) -> frozenset[str]:
    known = get_args(ClsTerm)
    value = find(result.summary, "settings", "cls_term")
    pooled = find(result.summary, "model", "global_feature") == "attention pooling"
    if value not in known or pooled:
        return frozenset(known)
    unseen = {term for term in known if not {"cls", term} & shown}
    absent = set() if result.num_registers else {"registers"}
    same = {"own"} | ((unseen | absent) & set(known))
    return frozenset(same if value in same else {value})


def _read_renormalize(result: ModelResult) -> frozenset[str]:
    value = find(result.summary, "settings", "renormalize")
    return frozenset({str(value)} if isinstance(value, bool) else {"False", "True"})


RENORMALIZE = Choice(
    about="whether restricted outputs are renormalised",
    read=_read_renormalize,
    names={"False": "as they are", "True": "renormalised"},
    notes={
        "True": "Restricted outputs are divided by the attention mass that they keep; the residual "
        "readout compares terms, which are not."
    },
)
"""Whether what is kept of an output is divided by the attention mass that is kept."""
