"""What a person reads of a result: the same words and tables in the terminal and in a notebook."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitscope.results.choices import describe_settings

Row = tuple[str, ...]
Summary = Mapping[str, Any]

TERMS = ("patches", "registers", "distillation", "cls", "skip")
"""Where the output can come from, in the order of the rows."""
ABSENT = "–"


@dataclass(frozen=True)
class TextTable:
    """A table as text.

    Attributes:
        columns: Heading of each column.
        num_labels: Columns of words, which come first; the others hold numbers.
        sections: Rows that belong together.
        caption: What is to be known of the numbers.
        title: What they are of; empty where it goes without saying.
    """

    columns: Row
    num_labels: int
    sections: tuple[tuple[Row, ...], ...]
    caption: str
    title: str = ""


def list_notes(summary: Summary) -> list[str]:
    """What a reader of the numbers should know about the settings, the model and the images."""
    told = describe_settings(summary)
    settings = [f"settings other than by default: {told}"] if told else []
    return [*settings, *summary["model"]["notes"], *summary["data"].get("notes", [])]


def describe_audit(summary: Summary) -> tuple[str, str]:
    """What was audited, and how well the ledger balances."""
    model, data = summary["model"], summary["data"]
    rows, columns = model["grid"]
    height, width = model["input_size"]
    return (
        f"{data['num_images']} images{_describe_left_out(data)}, {height} x {width} px, "
        f"{rows} x {columns} patches, {model['num_registers']} registers, "
        f"layer {summary['layer']}, {model['dtype']}",
        _describe_proof(summary),
    )


def describe_one_shot(summary: Summary) -> str:
    """What was classified."""
    model, data = summary["model"], summary["data"]
    height, width = model["input_size"]
    return (
        f"{data['num_classes']} classes, {data['num_images']} images{_describe_left_out(data)}, "
        f"{height} x {width} px, {model['num_registers']} registers, {model['dtype']}"
    )


def _describe_left_out(data: Mapping[str, Any]) -> str:
    counts = (
        ("num_failed", "not readable"),
        ("num_repeated", "the same again and left out"),
        ("num_unlabelled", "in no class's folder and left out"),
    )
    return "".join(f", {data[name]} {words}" for name, words in counts if data.get(name))


def describe_dropped(summary: Summary) -> str:
    """Which classes were left out."""
    names = summary["data"]["dropped_classes"]
    if not names:
        return ""
    listed = ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")
    return f"{len(names)} classes dropped, with fewer than two different readable images: {listed}"


def describe_explanation(summary: Summary) -> str:
    """What explained the images, and how well the ledger balances."""
    model = summary["model"]
    return (
        f"layer {summary['layer']}, {model['num_registers']} registers, {model['dtype']}; "
        f"{_describe_balance(summary)}"
    )


def list_bases(summary: Summary) -> list[str]:
    """What the verdicts of an explanation rest on, and which references were left aside."""
    bases = dict.fromkeys(image["verdict"]["basis"] for image in summary["images"])
    return [*bases, *summary.get("references_not_used", [])]


def tell_raw_shares(image: Summary) -> str:
    """The raw shares of an image that there was no reference for."""
    if "centred_share" in image or image["verdict"]["status"] != "cannot tell":
        return ""
    share = image["share"]
    told = (
        f"{name} {'undefined' if share[name] is None else f'{100 * share[name]:.1f} %'}"
        for name in (*TERMS, "bias")
        if name in share
    )
    return f"raw shares of the whole output: {', '.join(told)}".replace("-", "−")


def tabulate_sources(summary: Summary) -> TextTable:
    """A row per source: its attention, its norm, its variance share, its CKA."""
    rows = tuple(_source_rows(summary))
    return TextTable(
        ("source", "attention", "norm", "variance share", "CKA with r", "centred cos"),
        num_labels=1,
        sections=(rows,),
        caption=" ".join(
            [f"{_describe_intervals(rows)}.", _describe_cka(summary), *_describe_undefined(summary)]
        ),
    )


def tabulate_layers(summary: Summary) -> TextTable | None:
    """The verdict of each layer with its two readings."""
    layers = summary.get("layers")
    if not layers:
        return None
    rows = tuple(_layer_row(layer, content) for layer, content in layers.items())
    return TextTable(
        ("layer", "patches' variance share", "CKA(r, patches)", "main other source", "verdict"),
        num_labels=1,
        sections=(rows,),
        caption=f"{_describe_intervals(rows)}.",
        title="The verdict of each layer",
    )


def tabulate_accuracies(summary: Summary) -> TextTable:
    """One-shot accuracies by readout and by the part of the output that was tested."""
    accuracy, chance = summary["accuracy"], summary["chance"]
    numbers = [f"{name} {classifier}" for classifier in accuracy for name in ("top-1", "top-5")]
    sections = [
        tuple(_accuracy_rows(summary, readout)) for readout in (summary["readout"], "embedding")
    ]
    intervals = _describe_intervals([row for section in sections for row in section], "0 or 100 %")
    guessed = [f"{100 * value:.1f}" for value in chance.values()] * len(accuracy)
    return TextTable(
        ("readout", "tested on", *numbers),
        num_labels=2,
        sections=(*sections, (("chance", "", *guessed),)),
        caption=f"{intervals}, over {summary['draws']} draws of the two images a class.",
        title="One-shot accuracy in %, trained on full outputs",
    )


def tell_one_shot(summary: Summary) -> str:
    """What the accuracies mean."""
    readouts = next(iter(summary["accuracy"].values()))
    parts = {name: entry["top1"] for name, entry in readouts[summary["readout"]].items()}
    chance, full = summary["chance"]["top1"], parts["full"]["value"]
    if min(full, parts["full"]["ci95"][0]) <= chance:
        return "cannot tell: the full output itself does no better than chance"
    kept = {
        name: max(0.0, (parts[name]["value"] - chance) / (full - chance))
        for name in ("patches", "registers")
        if name in parts
    }
    told = ", ".join(f"{name} alone keep {share:.0%}" for name, share in kept.items())
    if kept["patches"] >= 0.9:
        meaning = "what tells the classes apart can be read from the patches"
    elif kept["patches"] >= 0.5:
        meaning = "the patches hold only part of what tells the classes apart"
    else:
        meaning = "what tells the classes apart did not come from the patches"
    return f"of what the full attention output reaches beyond chance (top-1), {told}: {meaning}"


def mean_of(summary: Summary, *path: str) -> float | None:
    """The mean of one of a summary's distributions."""
    found: Any = summary
    for part in path:
        found = None if found is None else found.get(part)
    return None if found is None else found["mean"]


def tell_number(value: float | None, digits: int = 3) -> str:
    """A number as text."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def tell_estimate(value: float | None, ci95: Sequence[float] | None, digits: int = 3) -> str:
    """An estimate as text."""
    if value is None or ci95 is None:
        return tell_number(value, digits)
    below, above = value - ci95[0], ci95[1] - value
    if abs(below - above) > 0.5 * 10**-digits:
        return f"{value:.{digits}f} ({ci95[0]:.{digits}f} to {ci95[1]:.{digits}f})"
    return f"{value:.{digits}f} ± {(below + above) / 2:.{digits}f}"


def _describe_balance(summary: Summary) -> str:
    ledger = summary["ledger"]
    error, tolerance = ledger["max_balance_error"], ledger["tolerance"]
    return f"ledger balances to {error:.1e} (tolerance {tolerance:.0e})"


def _describe_proof(summary: Summary) -> str:
    verified, num_images = summary["ledger"]["num_verified"], summary["data"]["num_images"]
    told = _describe_balance(summary)
    return told if verified == num_images else f"{told}, verified on {verified:,} of {num_images:,}"


def _source_rows(summary: Summary) -> Iterator[Row]:
    for term in TERMS:
        share = summary["variance_share"]["residual"].get(term)
        if share is None:
            continue
        cka = summary["cka"]["residual"][term]
        yield (
            term,
            tell_number(mean_of(summary, "attention_mass", term)),
            tell_number(mean_of(summary, "contribution_norm", term), 1),
            tell_estimate(share["value"], share["ci95"]),
            tell_estimate(cka["unbiased"], cka["ci95"]),
            tell_number(mean_of(summary, "centred_cosine", "residual", term)),
        )


def _layer_row(layer: str, content: Summary) -> Row:
    share = content["variance_share"]["residual"]["patches"]
    cka = content["cka"]["residual"]["patches"]
    return (
        layer,
        tell_estimate(share["value"], share["ci95"]),
        tell_estimate(cka["unbiased"], cka["ci95"]),
        tell_main_other_source(content),
        content["verdict"],
    )


def tell_main_other_source(summary: Summary) -> str:
    """The main other source with its part of the output's variance."""
    main_other_source = summary["main_other_source"]
    value = summary["variance_share"]["residual"].get(main_other_source, {}).get("value")
    return ABSENT if value is None else f"{main_other_source} {value:.0%}".replace("-", "−")


def _describe_intervals(rows: Iterable[Row], bound: str = "1") -> str:
    cut = any(" to " in cell for row in rows for cell in row)
    return f"± 95 % intervals{f'; in brackets where one ends at {bound}' if cut else ''}"


def _describe_cka(summary: Summary) -> str:
    cka = summary["cka"]["residual"]["patches"]
    floor = cka["biased_if_unrelated"]
    told = "" if floor is None else f" (dealt at random {floor:.3f} on average)"
    return (
        f"CKA is the unbiased estimate; biased, CKA(r, patches) is "
        f"{tell_number(cka['biased'])}{told}."
    )


def _describe_undefined(summary: Summary) -> Iterator[str]:
    # A mean says nothing of the images where its number is undefined.
    spreads = summary.get("centred_cosine", {}).get("residual", {})
    for term in TERMS:
        spread = spreads.get(term)
        if spread is not None and spread["n"] < summary["data"]["num_images"]:
            yield f"Centred cos of {term} is over the {spread['n']:,} images where it is defined."


def _accuracy_rows(summary: Summary, readout: str) -> Iterator[Row]:
    for part in ("full", *TERMS):
        found = [of_readout[readout].get(part) for of_readout in summary["accuracy"].values()]
        if found[0] is not None:
            cells = (_percent(**entry[name]) for entry in found for name in summary["chance"])
            yield (readout if part == "full" else "", part, *cells)


def _percent(value: float, ci95: Sequence[float]) -> str:
    return tell_estimate(100 * value, [100 * end for end in ci95], digits=1)
