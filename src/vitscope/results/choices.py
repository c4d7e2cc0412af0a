"""Settings that change what numbers mean: the one rule for figures, report, terminal and notebook.

- Results that differ in what a number is (`count_cls`, `RENORMALIZE`, `LAYER`) are never put on one
  chart or into one table; the reason is given in its place.
- Results that differ in how images reached the model (input size, other preprocessing, half
  precision) may stand side by side, as the models of the paper do, and the difference is named.
- What was set otherwise than by default is said with every single result (`describe_settings`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, get_args

from vitscope.config import ClsTerm
from vitscope.files.json_files import find
from vitscope.files.printable import printable

Summary = Mapping[str, Any]
_MOST_NAMES, _LONGEST = 6, 60
_HALF_PRECISIONS = ("bfloat16", "float16")
_OWN, _FINE = "as each model prescribes", "float32 or finer"
_CLS_PLACES = {
    "own": "on its own",
    "registers": "among the registers",
    "patches": "among the patches",
}
_LAST = "the last block"


class Described(Protocol):
    """A result with a name."""

    @property
    def label(self) -> str:
        """What it is called."""

    @property
    def summary(self) -> Summary:
        """Content of its `summary.json`."""


class Labelled(NamedTuple):
    """A summary with a name.

    Attributes:
        label: What the result is called.
        summary: Content of its `summary.json`.
    """

    label: str
    summary: Summary


@dataclass(frozen=True)
class Choice:
    """A setting in which results must agree to be compared.

    Attributes:
        about: What was chosen, in words that go after "differ in".
        read: Values that a result's numbers would be the same for; none where it is not known.
        names: Values in words, the default first; others are their own words.
        tell: What is said of results that share a value; empty for the default.
    """

    about: str
    read: Callable[[Summary], frozenset[str]]
    names: Mapping[str, str]
    tell: Callable[[str], str]

    def agree(self, results: Iterable[Described]) -> str | None:
        """The value that all results have."""
        known = [values for result in results if (values := self.read(result.summary))]
        if not known:
            return ""
        common = frozenset.intersection(*known)
        return next((value for value in (*self.names, *sorted(common)) if value in common), None)


def find_mixture(choices: Sequence[Choice], results: Sequence[Described]) -> str:
    """Why results may not be compared."""
    for choice in choices:
        if choice.agree(results) is None:
            groups: dict[str, list[str]] = {name: [] for name in choice.names.values()}
            for result in results:
                fits = [choice.agree([result, other]) is not None for other in results]
                if not all(fits) and (value := choice.agree([result])):
                    groups.setdefault(choice.names.get(value, value), []).append(result.label)
            return f"its results differ in {choice.about} ({_list_groups(groups)})"
    return ""


def describe_choices(choices: Sequence[Choice], results: Sequence[Described]) -> tuple[str, ...]:
    """What stands under a figure or table of results that agree in all choices."""
    told = [choice.tell(choice.agree(results) or "") for choice in choices]
    silent = [one.label for one in results if not isinstance(one.summary.get("settings"), Mapping)]
    if choices and silent:
        told.append(f"Settings not saved with {', '.join(silent)}.")
    return tuple(filter(None, [*told, *_describe_inputs(results)]))


def describe_settings(summary: Summary) -> str:
    """What was set otherwise than by default when a result was made."""
    settings = find(summary, "settings")
    told = []
    if (place := find(settings, "cls_term")) in ("registers", "patches"):
        told.append(f"[CLS] counted {_CLS_PLACES[place]}")
    if find(settings, "renormalize") is True:
        told.append("restricted outputs renormalised")
    if (layer := _name_layer(summary)) not in {None, _LAST}:
        told.append(f"{layer} of 0 to {summary['model']['depth'] - 1}")
    return ", ".join([*told, *list_inputs(summary)])


def list_inputs(summary: Summary) -> list[str]:
    """How images reached the model, as far as it is not by default."""
    changed = _list_changed(summary)
    told = [f"input {_read_size(summary)}"] if "size" in changed else []
    told += [_tell_field(summary, name) for name in changed if name != "size"]
    return [*told, *filter(None, [_read_precision(summary)])]


def enumerate_labels(labels: Sequence[str]) -> str:
    """Names in a list that does not grow long."""
    more = len(labels) - _MOST_NAMES
    names = ", ".join(labels[:_MOST_NAMES])
    return f"{names} and {more} more" if more > 0 else names


def count_cls(*shown: str) -> Choice:
    """Where the attention of [CLS] to itself is counted, which the paper leaves open."""
    notes = {
        "registers": "[CLS]'s attention to itself is counted among the registers, in models that "
        "have any.",
        "patches": "[CLS]'s attention to itself is counted among the patches.",
    }
    return Choice(
        about="where [CLS]'s attention to itself is counted",
        read=partial(_read_cls_term, frozenset(shown)),
        names=_CLS_PLACES,
        tell=lambda value: notes.get(value, ""),
    )


def _read_cls_term(shown: frozenset[str], summary: Summary) -> frozenset[str]:
    known = get_args(ClsTerm)
    value = find(summary, "settings", "cls_term")
    pooled = find(summary, "model", "global_feature") == "attention pooling"
    if value not in known or pooled:
        return frozenset(known)
    unseen = {term for term in known if not {"cls", term} & shown}
    absent = set() if find(summary, "model", "num_registers") else {"registers"}
    same = {"own"} | ((unseen | absent) & set(known))
    return frozenset(same if value in same else {value})


def _read_renormalize(summary: Summary) -> frozenset[str]:
    value = find(summary, "settings", "renormalize")
    return frozenset({str(value)} if isinstance(value, bool) else {"False", "True"})


RENORMALIZE = Choice(
    about="whether restricted outputs are renormalised",
    read=_read_renormalize,
    names={"False": "as they are", "True": "renormalised"},
    tell=lambda value: (
        "Restricted outputs are divided by the attention mass that they keep; the residual readout "
        "compares terms, which are not."
        if value == "True"
        else ""
    ),
)
"""Whether what is kept of an output is divided by the attention mass that is kept."""


def _name_layer(summary: Summary) -> str | None:
    layer, depth = find(summary, "settings", "layer"), find(summary, "model", "depth")
    if not isinstance(layer, int) or not isinstance(depth, int):
        return None
    # An attention pooling comes behind the last block.
    return _LAST if layer >= depth - 1 else f"layer {layer}"


def _read_layer(summary: Summary) -> frozenset[str]:
    name = _name_layer(summary)
    layer = find(summary, "settings", "layer")
    return frozenset() if name is None else frozenset({name, f"layer {layer}"})


LAYER = Choice(
    about="the block that was audited",
    read=_read_layer,
    names={_LAST: _LAST},
    tell=lambda value: (
        f"The numbers are of {value}, counted from 0, and not of each model's last block."
        if value.startswith("layer ")
        else ""
    ),
)
"""Which block the numbers are of: the last of each model, or the same layer of all."""

READOUT = Choice(
    about="the readout",
    read=lambda summary: frozenset({str(summary["readout"])} if "readout" in summary else ()),
    names={},
    tell=lambda _: "",
)
"""The output that one-shot accuracies are read off."""


def _describe_inputs(results: Sequence[Described]) -> list[str]:
    sizes = [_read_size(one.summary) or "not saved" for one in results]
    chosen = any("size" in _list_changed(one.summary) for one in results)
    fields = [_tell_fields(one.summary, results) or _OWN for one in results]
    precisions = [_read_precision(one.summary) or _FINE for one in results]
    return [
        _tell("Input size", results, sizes, "" if chosen else sizes[0]),
        _tell("Preprocessing", results, fields, _OWN),
        _tell("Precision", results, precisions, _FINE),
    ]


def _tell(what: str, results: Sequence[Described], values: Sequence[str], default: str) -> str:
    groups: dict[str, list[str]] = {}
    for one, value in zip(results, values, strict=True):
        groups.setdefault(value, []).append(one.label)
    if len(groups) > 1:
        return f"{what} differs: {_list_groups(groups)}."
    return "".join(f"{what}: {value}." for value in groups if value != default)


def _list_groups(groups: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name}: {enumerate_labels(who)}" for name, who in groups.items() if who)


def _tell_fields(summary: Summary, results: Sequence[Described]) -> str:
    # Those that are not the model's own, and those in which results of one model differ.
    own, changed = find(summary, "model", "id"), _list_changed(summary)
    twins = [one.summary for one in results if own and find(one.summary, "model", "id") == own]
    others = [_read_preprocessing(twin) for twin in twins]
    told = [
        _tell_field(summary, name)
        for name, value in _read_preprocessing(summary).items()
        if name != "size"
        and (name in changed or any(other.get(name, value) != value for other in others))
    ]
    return ", ".join(told)


def _read_preprocessing(summary: Summary) -> dict[str, Any]:
    found = find(summary, "preprocessing")
    return {k: v for k, v in found.items() if k != "changed"} if isinstance(found, Mapping) else {}


def _list_changed(summary: Summary) -> list[str]:
    changed = find(summary, "preprocessing", "changed")
    fields = _read_preprocessing(summary)
    return [name for name in fields if name in changed] if isinstance(changed, list) else []


def _tell_field(summary: Summary, name: str) -> str:
    value = _read_preprocessing(summary)[name]
    if name == "draft":
        return "decoded as drafts" if value is True else "decoded whole"
    if isinstance(value, (list, tuple)):
        value = "/".join(f"{part:.4g}" for part in value if isinstance(part, (int, float)))
    return printable(f"{name.replace('_', ' ')} {value}"[:_LONGEST])


def _read_size(summary: Summary) -> str:
    size = find(summary, "model", "input_size")
    return f"{size[0]} x {size[1]} px" if isinstance(size, list) and len(size) == 2 else ""


def _read_precision(summary: Summary) -> str:
    dtype = find(summary, "model", "dtype")
    return dtype if dtype in _HALF_PRECISIONS else ""
