"""Settings that change what numbers mean: one rule for figures, report, terminal and notebook.

Results that differ in a `Choice` are never shown together; other differences of input are named.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import NamedTuple, Protocol, get_args

from vitscope.config import ClsTerm
from vitscope.files.printable import printable
from vitscope.images.preprocessing import Preprocessing
from vitscope.results.schema import AuditSummary, JudgementSummary, Summary

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
        """Its name."""

    @property
    def summary(self) -> Summary:
        """Its numbers."""


class Labelled(NamedTuple):
    """A summary with a name."""

    label: str
    summary: Summary


@dataclass(frozen=True)
class Choice:
    """A setting in which results must agree to be compared."""

    about: str  # name of the setting, after "differ in"
    read: Callable[[Summary], frozenset[str]]  # all values that would give the same numbers
    names: Mapping[str, str]  # values in words, the default first; other values as they are
    note: str = ""  # for results that share another value than the default
    notes: Mapping[str, str] = field(default_factory=dict)  # instead of it, by value

    def tell(self, value: str) -> str:
        """The note for results that share a value; empty for the default."""
        is_default = value in list(self.names)[:1]
        return "" if is_default else self.notes.get(value, self.note).format(value)

    def agree(self, results: Iterable[Described]) -> str | None:
        """The value that all results share; None if there is none."""
        known = [self.read(result.summary) for result in results]
        common = frozenset.intersection(*known) if known else frozenset({""})
        return next((value for value in (*self.names, *sorted(common)) if value in common), None)


def find_mixture(choices: Sequence[Choice], results: Sequence[Described]) -> str:
    """Reason why results may not be compared; empty if they may."""
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
    """Notes under a figure or table of results that agree in all choices."""
    shared = ((choice, choice.agree(results)) for choice in choices)
    told = [choice.tell(value) for choice, value in shared if value]
    sizes = [_read_size(one.summary) for one in results]
    chosen = any("size" in one.summary.preprocessing.changed for one in results)
    fields = [_tell_fields(one.summary, results) or _OWN for one in results]
    precisions = [_read_precision(one.summary) or _FINE for one in results]
    told.append(_tell("Input size", results, sizes, "" if chosen else sizes[0]))
    told.append(_tell("Preprocessing", results, fields, _OWN))
    told.append(_tell("Precision", results, precisions, _FINE))
    return tuple(filter(None, told))


def describe_settings(summary: Summary) -> str:
    """The non-default settings of a result, in words."""
    told = []
    if summary.settings.cls_term != "own":
        told.append(f"[CLS] counted {_CLS_PLACES[summary.settings.cls_term]}")
    if summary.settings.renormalize:
        told.append("restricted outputs renormalised")
    if (layer := _name_layer(summary)) != _LAST:
        told.append(f"{layer} (of 0 to {summary.model.depth - 1})")
    if isinstance(summary, JudgementSummary) and summary.target != "self":
        told.append(f"target {summary.target}")
    return ", ".join([*told, *list_inputs(summary)])


def list_inputs(summary: Summary) -> list[str]:
    """Non-default preprocessing and precision, in words."""
    changed = summary.preprocessing.changed
    told = [f"input {_read_size(summary)}"] if "size" in changed else []
    told += [_tell_field(summary, name) for name in changed if name != "size"]
    return [*told, *filter(None, [_read_precision(summary)])]


def enumerate_labels(labels: Sequence[str]) -> str:
    """Names as a list of bounded length."""
    more = f" and {len(labels) - _MOST_NAMES} more" * (len(labels) > _MOST_NAMES)
    return ", ".join(labels[:_MOST_NAMES]) + more


def count_cls(*shown: str) -> Choice:
    """Where [CLS]'s attention to itself is counted, which the paper leaves open."""
    return Choice(
        about="where [CLS]'s attention to itself is counted",
        read=partial(_read_cls_term, frozenset(shown)),
        names=_CLS_PLACES,
        note="[CLS]'s attention to itself is counted among the patches.",
        notes={
            "registers": "[CLS]'s attention to itself is counted among the registers, in models "
            "that have any."
        },
    )


def _read_cls_term(shown: frozenset[str], summary: Summary) -> frozenset[str]:
    if "non_patch" in shown:  # which holds [CLS] unless it is counted among the patches
        shown |= {"patches"}
    known = get_args(ClsTerm)
    value = summary.settings.cls_term
    if summary.model.global_feature == "attention pooling":
        return frozenset(known)
    unseen = {term for term in known if not {"cls", term} & shown}
    absent = set() if summary.model.num_registers else {"registers"}
    same = {"own"} | ((unseen | absent) & set(known))
    return frozenset(same if value in same else {value})


RENORMALIZE = Choice(
    about="whether restricted outputs are renormalised",
    read=lambda summary: frozenset({str(summary.settings.renormalize)}),
    names={"False": "as they are", "True": "renormalised"},
    note="Restricted outputs are divided by the attention mass that they keep; the residual "
    "readout compares terms, which are not.",
)
"""Whether restricted outputs are divided by the kept attention mass."""


def _name_layer(summary: Summary) -> str:
    # An attention pooling follows the last block.
    layer = summary.layer
    last = layer is None or layer >= summary.model.depth - 1
    return _LAST if last else f"layer {layer}"


SHARES = Choice(
    about="the shares of their images",
    read=lambda summary: (
        frozenset({"centred" if summary.last.centred_share else "raw"})
        if isinstance(summary, AuditSummary)
        else frozenset()
    ),
    names={"centred": "centred", "raw": "raw"},
    note="Shares are raw: features were dropped, so what is the same for every image counts too.",
)
"""Whether shares are centred on the mean image, which needs kept features."""

LAYER = Choice(
    about="the block that was audited",
    read=lambda summary: frozenset({_name_layer(summary), f"layer {summary.layer}"}),
    names={_LAST: _LAST},
    note="The numbers are of {}, counted from 0, and not of each model's last block.",
)
"""Layer of the numbers: the last of each model, or the same index in all."""

TARGET = Choice(
    about="what their maps explain",
    read=lambda summary: frozenset({getattr(summary, "target", "")}),
    names={"self": "self"},
    note="What maps explain: target {}.",
)
"""The number that judged maps explain."""

REMOVAL = Choice(
    about="how patches were removed",
    read=lambda summary: frozenset(getattr(summary, "removals", ())),
    names={},
)
"""The ways to remove patches, of which results that are compared share at least one."""

MAP_LAYER = replace(
    LAYER,
    about="the block whose attention row maps are of",
    note="Maps of an attention row are of {}, counted from 0, and not of each model's last block.",
)
"""Layer of judged maps of one attention row."""


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
    # Fields that are not the model's own, or in which results of one model differ.
    twins = [one.summary for one in results if one.summary.model.id == summary.model.id]
    told = [
        _tell_field(summary, field.name)
        for field in fields(Preprocessing)
        if field.name != "size"
        and (
            field.name in summary.preprocessing.changed
            or len({getattr(twin.preprocessing, field.name) for twin in twins}) > 1
        )
    ]
    return ", ".join(told)


def _tell_field(summary: Summary, name: str) -> str:
    value = getattr(summary.preprocessing, name, None)
    if name == "draft":
        return "decoded as drafts" if value else "decoded whole"
    if isinstance(value, tuple):
        value = "/".join(f"{part:.4g}" for part in value)
    return printable(f"{name.replace('_', ' ')} {value}"[:_LONGEST])


def _read_size(summary: Summary) -> str:
    height, width = summary.preprocessing.size
    return f"{height} x {width} px"


def _read_precision(summary: Summary) -> str:
    dtype = summary.model.dtype
    return dtype if dtype in _HALF_PRECISIONS else ""
