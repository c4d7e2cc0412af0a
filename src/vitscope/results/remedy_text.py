"""Text and tables of compared remedies, shared by terminal, notebook and report."""

from collections.abc import Mapping
from math import inf, isnan

from vitscope.metrics.jackknife import Estimate
from vitscope.results.map_verdict import REFERENCE_MAP
from vitscope.results.number_text import NumberText, write_number, write_percent
from vitscope.results.result_text import (
    ABSENT,
    Row,
    TextTable,
    describe_images,
    tell_estimate,
    tell_half_depth,
    tell_percent,
)
from vitscope.results.schema import RemediesSummary
from vitscope.results.schema_remedies import Change, ComparedRemedy, Drift
from vitscope.results.vocabulary import name_term

NUMBERS: Mapping[str, str] = {
    "high_norm_patches": "high-norm patches",
    "high_norm_images": "images with high-norm patches",
    "norm_ratio": "highest over median norm",
    "largest_patch_attention": "largest attention on a patch",
    "attention_entropy": "entropy of attention on patches",
    "patch_share": "attention on patches, of patches and registers",
    "attention_patches": "attention on patches",
    "attention_registers": "attention on registers",
    "attention_cls": "attention on [CLS]",
    "variance_share_patches": "patches' variance share",
    "variance_share_registers": "registers' variance share",
    "variance_share_cls": "[CLS]'s variance share",
    "variance_share_skip": "skip connection's variance share",
    "cka_patches": "CKA(r, patches)",
    "restricted_cosine": "cosine of the output from patches alone",
}
"""What is compared, in the order of tables: first whether maps are cleaner, then whether truer."""

ACCURACIES: Mapping[str, str] = {
    "full_top1": "one-shot top-1",
    "full_top5": "one-shot top-5",
    "patches_top1": "one-shot top-1, patches alone",
    "patches_top5": "one-shot top-5, patches alone",
}
"""One-shot accuracies, in the order of tables."""

DECIDING: Mapping[str, str] = {
    "high_norm_images": "high-norm images",
    "variance_share_patches": "patches' share",
    "cka_patches": "CKA(r, patches)",
}
"""The numbers that an overview has of each edit, by short names."""

_OVERVIEW = {**DECIDING, "full_top1": "one-shot top-1", REFERENCE_MAP: "skill of attention"}

_OF_MAPS = {
    "correlation": "Spearman of maps",
    "verdicts": "image verdicts changed",
}
_IN_PERCENT = ("high_norm_", "verdicts")


def name_number(name: str) -> str:
    """A compared number in words."""
    if (depth := name.removeprefix("high_norm_patches_")).isdigit():
        return f"high-norm patches, depth {int(depth)}"
    term = name.removeprefix("variance_share_")
    return NUMBERS.get(name) or (f"{name_term(term)}: variance share" if term != name else name)


def describe_remedies(summary: RemediesSummary) -> str:
    """What was compared, on which images."""
    model, high = summary.model, summary.high_norm
    told = (
        f"{describe_images(summary)}, "
        f"{model.num_registers} registers, layer {summary.layer}, {model.dtype}"
    )
    if high is None:
        told += "; no high-norm patches"
    else:
        told += (
            f"; high-norm patches: a norm of {write_number(high.threshold)} or more at depth "
            f"{high.depth}"
        )
    if (classified := summary.one_shot) is not None:
        top1, top5 = (write_number(each, 2) for each in vars(classified.chance).values())
        told += (
            f"; one-shot: {classified.num_classes} classes, {classified.num_images} images, "
            f"{classified.draws} draws, chance {top1} (top-1) and {top5} (top-5)"
        )
    if (judged := summary.judged) is not None:
        told += (
            f"; maps judged on {judged.num_images} images, target {judged.target}, removal "
            f"{judged.removal}"
        )
    return told


def tell_remedy(changes: Mapping[str, Change], drift: Drift) -> str:
    """What an edit changed: cleaner, truer, and at what price."""
    # Audits of earlier versions tell of images alone.
    number = "high_norm_patches" if "high_norm_patches" in changes else "high_norm_images"
    cleaner = _tell_change(changes, number, NUMBERS[number])
    if not cleaner:
        clean = _tell_change(changes, "attention_patches", "attention on patches")
        cleaner = f"no high-norm patches before, {clean}"
    truer = _tell_change(changes, "variance_share_patches", "patches' share")
    price = tell_estimate(drift.cosine, 2)
    return f"cleaner: {cleaner}; truer: {truer}; price: cos(f, f′) {price}"


def _tell_change(changes: Mapping[str, Change], name: str, words: str) -> str:
    if name not in changes:
        return ""
    change = changes[name]
    values = (change.before.value, change.after.value)
    percent = name.startswith(_IN_PERCENT)
    before, after = (write_percent(v) if percent else write_number(v, 2) for v in values)
    return f"{words} {before} → {after} ({_tell_difference(change.difference, name)})"


def tabulate_overview(summary: RemediesSummary) -> TextTable:
    """A row per edit: the paired differences that decide, and the price."""
    deciding = [_choose_deciding(summary, one) for one in summary.remedies]
    original = {name: change.before for one in reversed(deciding) for name, change in one.items()}
    shown = list(dict.fromkeys(name for one in deciding for name in one))
    rows = [
        (
            summary.model.id,
            summary.verdict.status,
            *(_tell(original[name], name) for name in shown),
            ABSENT,
            ABSENT,
        ),
        *(
            (
                one.edit,
                one.verdict.status,
                *(_tell_difference(of[n].difference, n) if n in of else ABSENT for n in shown),
                tell_estimate(one.drift.cosine, 2),
                write_number(one.time_ratio, 2),
            )
            for one, of in zip(summary.remedies, deciding, strict=True)
        ),
    ]
    paired = "image" if summary.one_shot is None else "image (one-shot: by draw)"
    return TextTable(
        ("edit", "verdict", *(_OVERVIEW[name] for name in shown), "cos(f, f′)", "time"),
        [rows[:1], rows[1:]],
        num_labels=2,
        caption=(
            f"First row: the original. Below: differences from it, paired by {paired}, ± 95 % "
            "intervals. cos(f, f′): how little the global feature moved. time: of a forward "
            "pass, relative to the original's."
        ),
    )


def _choose_deciding(summary: RemediesSummary, one: ComparedRemedy) -> dict[str, Change]:
    measured = {**one.changes, **one.one_shot, **one.skill}
    # Without a threshold of the original each edit has its own, and none is that of the first row.
    apart = {"high_norm_images"} if summary.high_norm is None else set[str]()
    return {name: measured[name] for name in _OVERVIEW if name in measured.keys() - apart}


def tabulate_remedy(summary: RemediesSummary, one: ComparedRemedy) -> TextTable:
    """Every number of one edit, before and after."""
    numbers = {name: name_number(name) for name in (*NUMBERS, *one.changes)}
    rows = _list_changes(one.changes, numbers)
    if one.traces is not None:
        told = (
            "no trace goes through it"
            if trace is None
            else tell_half_depth(trace, summary.model.depth)
            for trace in one.traces
        )
        rows.append(("patches hold at least half", *told, ABSENT))
    rows += _list_changes(one.skill, _name_skills(summary, one))
    drift = one.drift
    moved = [
        (words, ABSENT, _tell(estimate, name), ABSENT)
        for name, words in _OF_MAPS.items()
        if (estimate := getattr(one.maps, name)) is not None
    ]
    # Of five classes or fewer the right one is always among the first five.
    is_certain = summary.one_shot is not None and summary.one_shot.num_classes <= 5
    accuracies = {
        name: words
        for name, words in ACCURACIES.items()
        if not (is_certain and name.endswith("top5"))
    }
    price = [
        ("cos(f, f′)", ABSENT, _tell(drift.cosine), ABSENT),
        ("CKA(f, f′)", ABSENT, tell_estimate(drift.cka, 2), ABSENT),
        (f"shared nearest {drift.num_neighbours}", ABSENT, _tell(drift.shared_neighbours), ABSENT),
        *_list_changes(one.one_shot, accuracies),
        ("time of a forward pass", "1.00", write_number(one.time_ratio, 2), ABSENT),
    ]
    return TextTable(
        ("number", "before", "after", "difference"),
        [rows, moved, price],
        title=f"{summary.model.id}: {one.edit}",
        caption=_tell_skill(summary, one),
    )


def _name_skills(summary: RemediesSummary, one: ComparedRemedy) -> dict[str, str]:
    # Attention, and the maps that come first before and after.
    if summary.judged is None or not one.skill:
        return {}
    titles = summary.judged.maps
    found: dict[str, list[str]] = {name: [] for name in one.skill if name == REFERENCE_MAP}
    for when in ("before", "after"):
        best = max(one.skill, key=lambda name: _rank(getattr(one.skill[name], when)))
        found.setdefault(best, []).append(when)
    return {
        name: f"skill of {titles.get(name, name)}" + f", best {' and '.join(told)}" * bool(told)
        for name, told in found.items()
    }


def _rank(skill: Estimate) -> float:
    return -inf if isnan(skill.value) else skill.value


def _tell_skill(summary: RemediesSummary, one: ComparedRemedy) -> str:
    # What it means, and which maps are left out.
    if summary.judged is None:
        return ""
    told = (
        "Skill: how faithful a map is, from 0 (random orders) to 1 (the order by single "
        "deletions). Best: of the maps that both models have."
    )
    missing = [title for name, title in summary.judged.maps.items() if name not in one.skill]
    return f"{told} The original alone has: {'; '.join(missing)}." if missing else told


def _list_changes(changes: Mapping[str, Change], words: Mapping[str, str]) -> list[Row]:
    return [
        (
            told,
            _tell(changes[name].before, name),
            _tell(changes[name].after, name),
            _tell_difference(changes[name].difference, name),
        )
        for name, told in words.items()
        if name in changes
    ]


def _tell(estimate: Estimate, name: str = "") -> NumberText:
    if not name.startswith(_IN_PERCENT):
        return tell_estimate(estimate, 2)
    told = tell_percent(estimate)
    return told if told == ABSENT else NumberText(f"{told} %", *told.numbers)


def _tell_difference(estimate: Estimate, name: str = "") -> NumberText:
    told = _tell(estimate, name)
    digits = 3 if name.startswith(_IN_PERCENT) else 2
    return told.after("+") if round(estimate.value, digits) > 0 else told
