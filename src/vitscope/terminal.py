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
_ROWS = ("patches", "registers", "distillation", "cls", "skip")
_ABSENT = "–"


class RateColumn(ProgressColumn):
    """Images per second."""

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
        return Text("" if speed is None else f"{speed:.1f} images/s", style="progress.data.speed")


def make_progress(console: Console) -> Progress:
    """A bar with count, images per second and time left.

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
