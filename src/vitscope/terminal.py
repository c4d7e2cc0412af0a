"""What a person sees in the terminal: progress, tables and the verdict, from summaries alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_COLOURS = {
    "holds": "bold green",
    "weakened": "bold yellow",
    "broken": "bold red",
    "borderline": "bold yellow",
    "not enough images": "bold magenta",
}
_PICTURE_COLOURS = {
    "most": "bold green",
    "part": "bold yellow",
    "do not read": "bold red",
    "cannot tell": "bold magenta",
}
_ROWS = ("patches", "registers", "distillation", "cls", "skip")
_ABSENT = "–"


class RateColumn(ProgressColumn):
    """Images per second, or whatever the task's field `unit` counts."""

    def render(self, task: Task) -> Text:
        """Show the speed of the recent past.

        Args:
            task: The task of the bar.

        Returns:
            The rate as text.
        """
        speed = task.finished_speed or task.speed
        if speed is None and task.elapsed and task.completed:
            speed = task.completed / task.elapsed
        unit = task.fields.get("unit", "images")
        return Text("" if speed is None else f"{speed:.1f} {unit}/s", style="progress.data.speed")


def make_progress(console: Console) -> Progress:
    """A bar with count, speed and time left.

    Args:
        console: Where to draw it.

    Returns:
        The bar; enter it as a context.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def make_report(summary: Mapping[str, Any]) -> Group:
    """One model's result: what it was, the bill, the verdict.

    Args:
        summary: Content of `summary.json`.

    Returns:
        Something rich can print.
    """
    model, data = summary["model"], summary["data"]
    rows, columns = model["grid"]
    height, width = model["input_size"]
    failed = f", {data['num_failed']} not readable" if data["num_failed"] else ""
    head = Text.assemble(
        (model["id"], "bold"),
        f"  {data['num_images']} pictures{failed}, {height} x {width} px, {rows} x {columns} "
        f"patches, {model['num_registers']} registers, layer {summary['layer']}, "
        f"{model['dtype']}\n",
        f"ledger balances to {summary['ledger']['max_balance_error']:.1e} "
        f"(tolerance {summary['ledger']['tolerance']:.0e})",
    )
    notes = [Text(f"note: {note}", style="dim") for note in model["notes"]]
    return Group(head, *notes, _make_bill(summary), make_verdict(summary))


def make_verdict(summary: Mapping[str, Any]) -> Text:
    """The verdict as a coloured line.

    Args:
        summary: Content of `summary.json`.

    Returns:
        Text.
    """
    return Text.assemble("verdict: ", (summary["verdict_text"], _COLOURS[summary["verdict"]]))


def make_comparison(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """Several models side by side.

    Args:
        summaries: Contents of their `summary.json`.

    Returns:
        One row a model.
    """
    table = Table(title="Where the [CLS] output comes from", title_justify="left")
    table.add_column("model", overflow="fold")
    for name in ("params", "patch attention", "CKA(r, patches)", "door"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for summary in summaries:
        cka = summary["cka"]["residual"]["patches"]
        door = summary["door"]
        share = None if door is None else summary["variance_share"]["residual"][door]["value"]
        table.add_row(
            Text(summary["model"]["id"]),
            f"{summary['model']['num_params'] / 1e6:.0f} M",
            _number(_mean(summary, "attention_mass", "patches")),
            _estimate(cka["unbiased"], cka["ci95"]),
            _ABSENT if share is None else f"{door} {share:.0%}",
            Text(summary["verdict"], style=_COLOURS[summary["verdict"]]),
        )
    return table


def make_one_shot_report(summary: Mapping[str, Any]) -> Group:
    """One model's one-shot accuracies: what was classified, how well by which part, what it means.

    Args:
        summary: Content of `summary.json` of a one-shot result.

    Returns:
        Something rich can print.
    """
    model, data = summary["model"], summary["data"]
    height, width = model["input_size"]
    counts = (
        ("num_failed", "not readable"),
        ("num_repeated", "the same again and left out"),
        ("num_unlabelled", "in no class's folder and left out"),
    )
    told = "".join(f", {data[name]} {words}" for name, words in counts if data[name])
    head = Text.assemble(
        (model["id"], "bold"),
        f"  {data['num_classes']} classes, {data['num_images']} pictures{told}, {height} x {width} "
        f"px, {model['num_registers']} registers, {model['dtype']}",
    )
    lines = [Text(f"note: {note}", style="dim") for note in model["notes"]]
    if names := data["dropped_classes"]:
        listed = ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")
        lines.append(
            Text(
                f"{len(names)} classes dropped, with fewer than two different readable pictures: "
                f"{listed}",
                style="yellow",
            )
        )
    return Group(head, *lines, _make_accuracies(summary), Text(_tell_one_shot(summary)))


def make_explanation_report(summary: Mapping[str, Any]) -> Group:
    """One model's verdict on each picture, a line a picture.

    Args:
        summary: Content of `summary.json` of an explanation.

    Returns:
        Something rich can print.
    """
    model, pictures = summary["model"], summary["pictures"]
    head = Text.assemble(
        (model["id"], "bold"),
        f"  layer {summary['layer']}, {model['num_registers']} registers, {model['dtype']}; ledger "
        f"balances to {summary['ledger']['max_balance_error']:.1e} (tolerance "
        f"{summary['ledger']['tolerance']:.0e})",
    )
    lines = [Text(f"note: {note}", style="dim") for note in model["notes"]]
    for picture in pictures:
        verdict, cropped = picture["verdict"], picture["framing"] == "cropped"
        style = _PICTURE_COLOURS[verdict["status"]]
        shown = " (cropped)" if cropped else ""
        lines.append(Text.assemble(f"{picture['path']}{shown}: ", (verdict["text"], style)))
    bases = dict.fromkeys(picture["verdict"]["basis"] for picture in pictures)
    return Group(head, *lines, *(Text(basis, style="dim") for basis in bases))


def _make_accuracies(summary: Mapping[str, Any]) -> Table:
    accuracy, chance = summary["accuracy"], summary["chance"]
    table = Table(
        title="One-shot accuracy in %, trained on full outputs",
        title_justify="left",
        caption=f"± 95 % intervals over {summary['draws']} draws of the two pictures a class.",
        caption_justify="left",
    )
    table.add_column("readout")
    table.add_column("tested on")
    for classifier in accuracy:
        for name in ("top-1", "top-5"):
            table.add_column(f"{name} {classifier}", justify="right")
    for readout in (summary["readout"], "embedding"):
        for part in ("full", *_ROWS):
            found = [readouts[readout].get(part) for readouts in accuracy.values()]
            if found[0] is not None:
                cells = (_percent(**entry[name]) for entry in found for name in chance)
                table.add_row(readout if part == "full" else "", part, *cells)
        table.add_section()
    guessed = [f"{100 * value:.1f}" for value in chance.values()]
    table.add_row("chance", "", *(guessed * len(accuracy)))
    return table


def _percent(value: float, ci95: Sequence[float]) -> str:
    return f"{100 * value:.1f} ± {100 * (ci95[1] - ci95[0]) / 2:.1f}"


def _tell_one_shot(summary: Mapping[str, Any]) -> str:
    readouts = next(iter(summary["accuracy"].values()))
    parts = {name: entry["top1"] for name, entry in readouts[summary["readout"]].items()}
    chance, full = summary["chance"]["top1"], parts["full"]["value"]
    if parts["full"]["ci95"][0] <= chance:
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


def _make_bill(summary: Mapping[str, Any]) -> Table:
    table = Table(caption=_caption(summary), caption_justify="left")
    table.add_column("source")
    for name in ("attention", "norm", "variance share", "CKA with r", "centred cos"):
        table.add_column(name, justify="right")
    for term in _ROWS:
        share = summary["variance_share"]["residual"].get(term)
        if share is None:
            continue
        cka = summary["cka"]["residual"][term]
        table.add_row(
            term,
            _number(_mean(summary, "attention_mass", term)),
            _number(_mean(summary, "contribution_norm", term), 1),
            _estimate(share["value"], share["ci95"]),
            _estimate(cka["unbiased"], cka["ci95"]),
            _number(_mean(summary, "centred_cosine", "residual", term)),
        )
    return table


def _caption(summary: Mapping[str, Any]) -> str:
    cka = summary["cka"]["residual"]["patches"]
    floor = cka["biased_if_unrelated"]
    told = "" if floor is None else f" (of unrelated features about {floor:.3f})"
    return (
        f"± 95 % intervals. CKA is the unbiased estimate; biased, CKA(r, patches) is "
        f"{_number(cka['biased'])}{told}."
    )


def _mean(summary: Mapping[str, Any], *path: str) -> float | None:
    found: Any = summary
    for part in path:
        found = None if found is None else found.get(part)
    return None if found is None else found["mean"]


def _number(value: float | None, digits: int = 3) -> str:
    return _ABSENT if value is None else f"{value:.{digits}f}"


def _estimate(value: float | None, ci95: Sequence[float] | None) -> str:
    # Intervals are symmetric about their estimate.
    return _number(value) if ci95 is None else f"{value:.3f} ± {(ci95[1] - ci95[0]) / 2:.3f}"
