"""The Gram ledger: how much of the representational geometry each term and each pair carries."""

from typing import Any

from vitscope.figures.drawing import Drawing, NothingToDrawError, describe_n, select
from vitscope.figures.matrices import plot_matrix
from vitscope.figures.numbers import CkaInterval, find, find_terms, read_cka, write_number
from vitscope.figures.panels import finish, make_panels
from vitscope.figures.saved import ModelResult
from vitscope.figures.style import TERMS, in_style, in_term_order
from vitscope.results.choices import LAYER, count_cls

_TITLES = {"attention": "attention branch t", "residual": "residual stream r"}
Ledger = dict[tuple[str, str], CkaInterval]


@in_style
def plot_gram_ledger(result: ModelResult) -> Drawing:
    """One model's Gram ledger (paper eq. 5) as heat maps."""
    selection = select([result], _read_ledgers, choices=[count_cls(*TERMS), LAYER])
    ledgers = selection.found[0][1]
    figure, panels = make_panels(len(ledgers), columns=2, panel_height_in=2.7, share_y=False)
    largest = max(abs(cell.value) for cells in ledgers.values() for cell in cells.values()) or 1.0
    for (total, cells), panel in zip(ledgers.items(), panels, strict=True):
        terms = in_term_order(list({term for pair in cells for term in pair}))
        image = plot_matrix(
            panel,
            terms,
            {pair: cell.value for pair, cell in cells.items()},
            {pair: _write(cell) for pair, cell in cells.items()},
            colours="PuOr_r",
            limits=(-largest, largest),
        )
        panel.set_title(_TITLES[total])
    bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.02)
    bar.set_label("part of the similarities between images")
    notes = [
        "Unbiased estimates of ⟨G, G_ab⟩ / ⟨G, G⟩ over ordered pairs of terms, centred over "
        "images: all cells of a panel sum to 1. In brackets the biased estimate. Last block, "
        f"{describe_n(selection.results)}; ±: half of a 95 % interval.",
        *selection.choices,
    ]
    finish(figure, notes, heading=f"Gram ledger: {result.label}")
    return selection.draw(figure)


def _read_ledgers(result: ModelResult) -> dict[str, Ledger]:
    ledgers = {total: _read_cells(find(result.summary, "gram_ledger", total)) for total in _TITLES}
    if not any(ledgers.values()):
        raise NothingToDrawError("it has no Gram ledger")
    # One cell alone is the whole of itself.
    found = {total: cells for total, cells in ledgers.items() if len(cells) > 1}
    if not found:
        raise NothingToDrawError("its output has a single source, so there are no pairs to compare")
    return found


def _read_cells(tree: Any) -> Ledger:
    return {
        (a, b): cell
        for a, row in find_terms(tree).items()
        for b, content in find_terms(row).items()
        if (cell := read_cka(content)) is not None
    }


def _write(cell: CkaInterval) -> str:
    lines = [write_number(cell.value)]
    if cell.low is not None and cell.high is not None:
        lines[0] += f" ±{(cell.high - cell.low) / 2:.2f}"
    if cell.biased is not None:
        lines.append(f"({write_number(cell.biased)})")
    return "\n".join(lines)
