"""Text and tables of compared remedies, shared by terminal, notebook and report."""

from collections.abc import Mapping

from vitscope.metrics.jackknife import Estimate
from vitscope.results.number_text import NumberText, write_number
from vitscope.results.result_text import (
    ABSENT,
    Row,
    TextTable,
    describe_left_out,
    tell_estimate,
    tell_half_depth,
)
from vitscope.results.schema import RemediesSummary
from vitscope.results.schema_remedies import Change, ComparedRemedy, Drift
from vitscope.results.vocabulary import name_term

NUMBERS: Mapping[str, str] = {
    "high_norm_images": "images with high-norm patches",
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

DECIDING: Mapping[str, str] = {
    "high_norm_images": "high-norm images",
    "variance_share_patches": "patches' share",
    "cka_patches": "CKA(r, patches)",
}
"""The numbers that an overview has of each edit, by short names."""


def name_number(name: str) -> str:
    """A compared number in words."""
    term = name.removeprefix("variance_share_")
    return NUMBERS.get(name) or (f"{name_term(term)}: variance share" if term != name else name)


def describe_remedies(summary: RemediesSummary) -> str:
    """What was compared, on which images."""
    model, data, high = summary.model, summary.data, summary.high_norm
    height, width = summary.preprocessing.size
    told = (
        f"{data.num_images} images{describe_left_out(data)}, {height} x {width} px, "
        f"{model.num_registers} registers, layer {summary.layer}, {model.dtype}"
    )
    if high is None:
        return f"{told}; no high-norm patches"
    return (
        f"{told}; high-norm patches: a norm of {write_number(high.threshold)} or more at depth "
        f"{high.depth}"
    )


def tell_remedy(changes: Mapping[str, Change], drift: Drift) -> str:
    """What an edit changed: cleaner, truer, and at what price."""
    cleaner = _tell_change(changes, "high_norm_images", "images with high-norm patches")
    if not cleaner:
        clean = _tell_change(changes, "attention_patches", "attention on patches")
        cleaner = f"no high-norm patches before, {clean}"
    truer = _tell_change(changes, "variance_share_patches", "patches' share")
    price = tell_estimate(drift.cosine.value, drift.cosine.ci95, 2)
    return f"cleaner: {cleaner}; truer: {truer}; price: cos(f, f′) {price}"


def _tell_change(changes: Mapping[str, Change], name: str, words: str) -> str:
    if name not in changes:
        return ""
    change = changes[name]
    before, after = (write_number(each.value, 2) for each in (change.before, change.after))
    return f"{words} {before} → {after} ({_tell_difference(change.difference)})"


def tabulate_overview(summary: RemediesSummary) -> TextTable:
    """A row per edit: the paired differences that decide, and the price."""
    original = summary.remedies[0].changes
    shown = [name for name in DECIDING if name in original]
    rows = [
        (
            summary.model.id,
            summary.verdict.status,
            *(tell_estimate(original[n].before.value, original[n].before.ci95, 2) for n in shown),
            ABSENT,
            ABSENT,
        ),
        *(
            (
                one.edit,
                one.verdict.status,
                *(_tell_difference(one.changes[name].difference) for name in shown),
                tell_estimate(one.drift.cosine.value, one.drift.cosine.ci95, 2),
                write_number(one.time_ratio, 2),
            )
            for one in summary.remedies
        ),
    ]
    return TextTable(
        ("edit", "verdict", *(DECIDING[name] for name in shown), "cos(f, f′)", "time"),
        [rows[:1], rows[1:]],
        num_labels=2,
        caption=(
            "First row: the original. Below: differences from it, paired by image, ± 95 % "
            "intervals. cos(f, f′): how little the global feature moved. time: a forward pass, of "
            "the original's."
        ),
    )


def tabulate_remedy(summary: RemediesSummary, one: ComparedRemedy) -> TextTable:
    """Every number of one edit, before and after."""
    order = [*NUMBERS, *one.changes]
    rows: list[Row] = [
        (
            name_number(name),
            _tell(one.changes[name].before),
            _tell(one.changes[name].after),
            _tell_difference(one.changes[name].difference),
        )
        for name in dict.fromkeys(order)
        if name in one.changes
    ]
    if one.traces is not None:
        told = (tell_half_depth(trace, summary.model.depth) for trace in one.traces)
        rows.append(("patches hold at least half", *told, ABSENT))
    drift = one.drift
    cka, shared = drift.cka, drift.shared_neighbours
    price = [
        ("cos(f, f′)", ABSENT, _tell(drift.cosine), ABSENT),
        ("CKA(f, f′)", ABSENT, tell_estimate(cka.unbiased, cka.ci95, 2), ABSENT),
        (f"shared nearest {drift.num_neighbours}", ABSENT, _tell(shared), ABSENT),
        ("time of a forward pass", "1.00", write_number(one.time_ratio, 2), ABSENT),
    ]
    return TextTable(
        ("number", "before", "after", "difference"),
        [rows, price],
        title=f"{summary.model.id}: {one.edit}",
    )


def _tell(estimate: Estimate) -> NumberText:
    return tell_estimate(estimate.value, estimate.ci95, 2)


def _tell_difference(estimate: Estimate) -> NumberText:
    told = _tell(estimate)
    return told.after("+") if round(estimate.value, 2) > 0 else told
