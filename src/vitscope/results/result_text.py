"""Text and tables of a result, shared by terminal and notebook."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

from vitscope.files.printable import name_some
from vitscope.metrics.distribution import Distribution
from vitscope.metrics.estimates import CkaEstimate
from vitscope.metrics.jackknife import Estimate
from vitscope.results.choices import (
    LAYER,
    Described,
    count_cls,
    describe_choices,
    describe_settings,
    find_mixture,
)
from vitscope.results.number_text import NumberText, write_millions, write_number, write_percent
from vitscope.results.schema import (
    AuditSummary,
    ExplainedImage,
    ExplanationSummary,
    LedgerSummary,
    OneShotSummary,
    Summary,
)
from vitscope.results.schema_maps import MapSummary
from vitscope.results.schema_numbers import LayerSummary, TraceSummary
from vitscope.results.vocabulary import SOURCES, name_term, name_token, order_terms

Row = tuple[str, ...]

ABSENT = "–"
_COMPARED = (count_cls(*SOURCES), LAYER)
"""Choices in which compared audits agree."""


@dataclass(frozen=True)
class TextTable:
    """A table as text."""

    columns: Row
    sections: Sequence[Sequence[Row]]  # rows that belong together
    num_labels: int = 1  # leading columns of words; the others have numbers
    caption: str = ""  # how to read the numbers
    title: str = ""  # empty where it is obvious


def list_notes(summary: Summary) -> list[str]:
    """Notes on settings, model and images that matter for reading the numbers."""
    told = describe_settings(summary)
    settings = [f"settings other than by default: {told}"] if told else []
    dropped = summary.data.dropped_classes if isinstance(summary, OneShotSummary) else ()
    if dropped:
        few = f"{len(dropped)} classes dropped, with fewer than two different readable images"
        settings.append(f"{few}: {name_some([*map(repr, dropped)], 10)}")
    return [*settings, *summary.model.notes, *summary.data.notes]


def describe_audit(summary: AuditSummary) -> tuple[str, str]:
    """What was audited, and how well the ledger balances."""
    model, (rows, columns) = summary.model, summary.model.grid
    verified, num_images = summary.ledger.num_verified, summary.data.num_images
    few = f", verified on {verified:,} of {num_images:,}" * (verified != num_images)
    return (
        f"{describe_images(summary)}, "
        f"{rows} x {columns} patches, {model.num_registers} registers, "
        f"layer {summary.layer}, {model.dtype}",
        _describe_balance(summary.ledger) + few,
    )


def describe_one_shot(summary: OneShotSummary) -> str:
    """What was classified."""
    model, data = summary.model, summary.data
    unlabelled = _count(data.num_unlabelled, "in no class's folder or without a label and left out")
    return (
        f"{data.num_classes} classes, {describe_images(summary, unlabelled)}, "
        f"{model.num_registers} registers, {model.dtype}"
    )


def describe_images(summary: Summary, left_out: str = "") -> str:
    """How many images, which others were left out, and the size of the input."""
    data, (height, width) = summary.data, summary.preprocessing.size
    failed = _count(data.num_failed, "not readable (see failures.csv)")
    repeated = _count(data.num_repeated, "the same again and left out")
    return f"{data.num_images} images{failed}{repeated}{left_out}, {height} x {width} px"


def _count(number: int, words: str) -> str:
    return f", {number} {words}" if number else ""


def describe_explanation(summary: ExplanationSummary) -> str:
    """Which model explained the images, and how well the ledger balances."""
    model = summary.model
    return (
        f"layer {summary.layer}, {model.num_registers} registers, {model.dtype}; "
        f"{_describe_balance(summary.ledger)}"
    )


def list_bases(summary: ExplanationSummary) -> list[str]:
    """What the verdicts of an explanation rest on, and which references were not used."""
    bases = dict.fromkeys(image.verdict.basis for image in summary.images)
    return [*bases, *summary.references_not_used]


def name_framed(image: ExplainedImage) -> str:
    """The path of an explained image, and whether it was cropped."""
    return image.path + " (cropped)" * (image.framing == "cropped")


def tell_raw_shares(image: ExplainedImage) -> str:
    """The raw shares of an image without a reference."""
    if image.numbers.centred_share or image.verdict.status != "cannot tell":
        return ""
    share = image.numbers.share
    told = (f"{name_term(name)} {write_percent(share[name])}" for name in order_terms(share))
    return f"raw shares of the whole output: {', '.join(told)}"


def tell_map(about: MapSummary, on_patches: float) -> list[str]:
    """How much of a map its patches have, and what it leaves out."""
    write = write_percent if about.is_part else write_number
    others = about.unplaced
    named = [f"{name_term(name)} {write(others[name])}" for name in order_terms(others)]
    lines = [f"on patches {write(on_patches)}", f"elsewhere: {', '.join(named) or 'nothing'}"]
    if about.total is not None:
        lines.append(f"together {write(about.total)}")
    return lines


def tabulate_sources(summary: AuditSummary) -> TextTable:
    """A row per source: attention, norm, variance share, CKA."""
    layer = summary.last
    rows = tuple(_source_rows(layer))
    undefined = _describe_undefined(layer, summary.data.num_images)
    return TextTable(
        ("source", "attention", "norm", "variance share", "CKA with r", "centred cos"),
        sections=[rows],
        caption=" ".join([f"{describe_intervals(rows)}.", _describe_cka(layer), *undefined]),
    )


def tell_trace(summary: AuditSummary) -> str:
    """Up to which depth the output lives in the patches; empty if no image was traced."""
    trace = summary.trace
    if trace is None:
        return ""
    return (
        f"traced on {trace.num_images} images: patches hold at least half of what becomes the "
        f"output {tell_half_depth(trace, summary.model.depth)}"
    )


def tell_half_depth(trace: TraceSummary, depth: int) -> str:
    """Depths at which patches hold at least half, after "patches hold at least half"."""
    match trace.half_depth:
        case None:
            return "at every depth"
        case 0:
            return "at no depth"
        case 1:
            return f"at depth 0 of {depth} only"
    return f"up to depth {trace.half_depth - 1} of {depth}"


def tabulate_traces(summaries: Sequence[AuditSummary]) -> TextTable | None:
    """Where the output is before the last block, if several models were traced."""
    traced = [(summary, summary.trace) for summary in summaries if summary.trace is not None]
    if len(traced) < 2:
        return None
    groups = order_terms({name for _, trace in traced for name in trace.shares})
    rows = [
        (
            summary.model.id,
            str(trace.num_images),
            tell_half_depth(trace, summary.model.depth),
            *(
                tell_estimate(trace.shares[name][-2]) if name in trace.shares else ABSENT
                for name in groups
            ),
        )
        for summary, trace in traced
    ]
    return TextTable(
        ("model", "traced", "patches hold half", *map(name_token, groups)),
        sections=[rows],
        caption="Shares at the input of the last block, ± 95 % intervals.",
        title="Where what becomes the output is",
    )


def tabulate_comparison(results: Sequence[Described]) -> TextTable | str:
    """A row per audit: what decides its verdict; or why they cannot be compared."""
    if mixture := find_mixture(_COMPARED, results):
        return f"no table of all models: {mixture}"
    rows = [
        _list_compared(one.label, one.summary)
        for one in results
        if isinstance(one.summary, AuditSummary)
    ]
    notes = describe_choices(_COMPARED, results)
    return TextTable(
        (
            *("model", "params", "patch attention", "patches' share", "CKA(r, patches)"),
            *("main other source", "verdict"),
        ),
        [rows],
        caption=" ".join([f"{describe_intervals(rows)}.", *notes]),
        title="Where the [CLS] output comes from",
    )


def _list_compared(label: str, summary: AuditSummary) -> Row:
    layer, params = summary.last, summary.model.num_params
    return (
        label,
        NumberText(write_millions(params / 1e6), params) if params else ABSENT,
        tell_number(mean_of(layer.attention_mass, "patches")),
        tell_estimate(layer.variance_share["residual"]["patches"]),
        tell_estimate(layer.cka["residual"]["patches"]),
        tell_main_other_source(layer),
        layer.verdict.status,
    )


def tabulate_accuracies(summary: OneShotSummary) -> TextTable:
    """One-shot accuracies by readout and by the part of the output that was tested."""
    accuracy, chance = summary.accuracy, summary.chance
    numbers = [f"{name} {classifier}" for classifier in accuracy for name in ("top-1", "top-5")]
    sections = [
        tuple(_accuracy_rows(summary, readout)) for readout in (summary.readout, "embedding")
    ]
    intervals = describe_intervals([row for section in sections for row in section], "0 or 100 %")
    guessed = [f"{100 * value:.1f}" for value in (chance.top1, chance.top5)] * len(accuracy)
    return TextTable(
        ("readout", "tested on", *numbers),
        num_labels=2,
        sections=(*sections, (("chance", "", *guessed),)),
        caption=f"{intervals}, over {summary.draws} draws of the two images a class.",
        title="One-shot accuracy in %, trained on full outputs",
    )


def tell_one_shot(summary: OneShotSummary) -> str:
    """What the accuracies mean."""
    readouts = next(iter(summary.accuracy.values()))
    parts = {name: entry.top1 for name, entry in readouts[summary.readout].items()}
    chance, full = summary.chance.top1, parts["full"].value
    if min(full, parts["full"].ci95[0]) <= chance:
        return "cannot tell: the full output itself does no better than chance"
    kept = {
        name: max(0.0, (parts[name].value - chance) / (full - chance))
        for name in ("patches", "registers")
        if name in parts
    }
    told = ", ".join(f"{name} alone keep {share:.0%}" for name, share in kept.items())
    if kept["patches"] >= 0.9:
        meaning = "the classes can be distinguished by the patches"
    elif kept["patches"] >= 0.5:
        meaning = "the patches distinguish the classes only in part"
    else:
        meaning = "most of what distinguishes the classes does not come from the patches"
    return f"of what the full attention output reaches beyond chance (top-1), {told}: {meaning}"


def mean_of(spreads: Mapping[str, Distribution], term: str) -> float:
    """The mean of a term's distribution; NaN if there is none."""
    return spreads[term].mean if term in spreads else nan


def tell_number(value: float, digits: int = 3) -> NumberText:
    """A number as text."""
    return NumberText(ABSENT if isnan(value) else write_number(value, digits), value)


def tell_estimate(one: Estimate | CkaEstimate, digits: int = 3) -> NumberText:
    """An estimate as text."""
    value = one.value if isinstance(one, Estimate) else one.unbiased
    return _write_estimate(value, one.ci95, digits)


def tell_percent(share: Estimate) -> NumberText:
    """A share in percent, without the sign; its numbers stay fractions, as saved tables have."""
    ends = None if share.ci95 is None else [100 * end for end in share.ci95]
    told = _write_estimate(100 * share.value, ends, 1)
    return NumberText(told, share.value, *(share.ci95 or ()))


def _write_estimate(value: float, ci95: Sequence[float] | None, digits: int) -> NumberText:
    if isnan(value) or ci95 is None:
        return tell_number(value, digits)
    below, above = value - ci95[0], ci95[1] - value
    if abs(below - above) > 0.5 * 10**-digits:
        told, low, high = (write_number(number, digits) for number in (value, *ci95))
        return NumberText(f"{told} ({low} to {high})", value, *ci95)
    half = write_number((below + above) / 2, digits)
    return NumberText(f"{write_number(value, digits)} ± {half}", value, *ci95)


def _describe_balance(ledger: LedgerSummary) -> str:
    error, tolerance = ledger.max_balance_error, ledger.tolerance
    return f"ledger balances to {error:.1e} (tolerance {tolerance:.0e})"


def _source_rows(layer: LayerSummary) -> Iterator[Row]:
    shares, ckas = layer.variance_share["residual"], layer.cka["residual"]
    cosines = layer.centred_cosine.get("residual", {})
    for term in SOURCES:
        if term not in shares:
            continue
        yield (
            name_term(term),
            tell_number(mean_of(layer.attention_mass, term)),
            tell_number(mean_of(layer.contribution_norm, term), 1),
            tell_estimate(shares[term]),
            tell_estimate(ckas[term]) if term in ckas else ABSENT,
            tell_number(mean_of(cosines, term)),
        )


def tell_main_other_source(layer: LayerSummary) -> str:
    """The main other source with its variance share."""
    name, shares = layer.verdict.main_other_source, layer.variance_share["residual"]
    if name is None or name not in shares:
        return ABSENT
    share = shares[name].value
    return NumberText(f"{name_term(name)} {share:.0%}".replace("-", "−"), share)


def describe_intervals(rows: Iterable[Row], bound: str = "1") -> str:
    """How to read an interval in a cell."""
    cut = any(" to " in cell for row in rows for cell in row)
    return f"± 95 % intervals{f'; in brackets where one ends at {bound}' if cut else ''}"


def _describe_cka(layer: LayerSummary) -> str:
    cka = layer.cka["residual"]["patches"]
    floor = cka.biased_if_unrelated
    told = "" if isnan(floor) else f" ({floor:.3f} on average if paired at random)"
    return (
        "r is the sum of the sources and the constant bias. CKA is the unbiased estimate; "
        f"biased, CKA(r, patches) is {tell_number(cka.biased)}{told}."
    )


def _describe_undefined(layer: LayerSummary, num_images: int) -> Iterator[str]:
    # A mean leaves out the images where its number is undefined.
    spreads = layer.centred_cosine.get("residual", {})
    for term in SOURCES:
        if term in spreads and (n := spreads[term].n) < num_images:
            yield f"Centred cos of {name_term(term)} is over the {n:,} images where it is defined."


def _accuracy_rows(summary: OneShotSummary, readout: str) -> Iterator[Row]:
    for part in ("full", *SOURCES):
        found = [
            of_readout[readout][part]
            for of_readout in summary.accuracy.values()
            if part in of_readout[readout]
        ]
        if found:
            tops = (top for entry in found for top in (entry.top1, entry.top5))
            yield (readout if part == "full" else "", name_term(part), *map(tell_percent, tops))
