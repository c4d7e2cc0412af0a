"""A result as a few lines of HTML, for a notebook.

Requirements met here:

- Whatever a model's id, a path or a note holds is shown as text.
- It stands alone: no script, no style sheet, nothing fetched.
- It can be read on a dark page and on a light one: text takes the page's colour.
"""

from collections.abc import Sequence
from html import escape

from vitscope.results.result_text import (
    TextTable,
    describe_audit,
    describe_dropped,
    describe_explanation,
    describe_one_shot,
    list_bases,
    list_notes,
    tabulate_accuracies,
    tabulate_layers,
    tabulate_sources,
    tell_one_shot,
    tell_raw_shares,
)
from vitscope.results.schema import (
    AuditSummary,
    ExplainedImage,
    ExplanationSummary,
    OneShotSummary,
    Summary,
)

# White is legible on each of them (a contrast of 4.5 and more), and each from both pages.
_GOOD, _DOUBTFUL, _BAD, _UNKNOWN = "#1a7f4e", "#96620a", "#c0362c", "#7a5299"
_BADGE_COLOURS = {
    "holds": _GOOD,
    "weakened": _DOUBTFUL,
    "borderline": _DOUBTFUL,
    "broken": _BAD,
    "no variation": _UNKNOWN,
    "not enough images": _UNKNOWN,
    "most": _GOOD,
    "part": _DOUBTFUL,
    "do not read": _BAD,
    "cannot tell": _UNKNOWN,
}
_LINE = "margin:0.2em 0"
_SMALL = "margin:0.2em 0;font-size:85%;opacity:0.8"
_TABLE = (
    "border-collapse:collapse;border:0;color:inherit;font:inherit;font-variant-numeric:tabular-nums"
)
_CELL = "padding:0.15em 0.7em;border:0;background:none"


def show_audit(summary: AuditSummary) -> str:
    """An audit: verdict, table of sources with intervals, verdicts of layers, notes."""
    layers, verdict = tabulate_layers(summary), summary.last.verdict
    return _wrap(
        _heading(summary, "; ".join(describe_audit(summary))),
        f'<p style="{_LINE}">{_badge(verdict.status)} {escape(verdict.text)}</p>',
        _table(tabulate_sources(summary)),
        "" if layers is None else _table(layers),
        _notes(summary),
    )


def show_one_shot(summary: OneShotSummary) -> str:
    """One-shot classification: what the accuracies mean, the accuracies, notes."""
    return _wrap(
        _heading(summary, describe_one_shot(summary)),
        f'<p style="{_LINE}">{escape(tell_one_shot(summary))}</p>',
        _table(tabulate_accuracies(summary)),
        _notes(summary, describe_dropped(summary)),
    )


def show_explanation(summary: ExplanationSummary) -> str:
    """Explained images: the verdict on each, notes."""
    rows = "".join(_image_row(number, image) for number, image in enumerate(summary.images))
    return _wrap(
        _heading(summary, describe_explanation(summary)),
        _make_table(("", "image", "verdict"), 3, rows, "; ".join(list_bases(summary))),
        _notes(summary),
    )


def _wrap(*parts: str) -> str:
    return f'<div style="overflow-x:auto">{"".join(parts)}</div>'


def _heading(summary: Summary, subject: str) -> str:
    return f'<p style="{_LINE}"><strong>{escape(summary.model.id)}</strong> {escape(subject)}</p>'


def _badge(status: str) -> str:
    colour = _BADGE_COLOURS.get(status, "#555")
    return (
        f'<span style="background:{colour};color:#fff;border-radius:0.3em;'
        f'padding:0.1em 0.5em;white-space:nowrap">{escape(status)}</span>'
    )


def _image_row(number: int, image: ExplainedImage) -> str:
    cropped = " (cropped)" if image.framing == "cropped" else ""
    told = f"{_badge(image.verdict.status)} {escape(image.verdict.text)}"
    if raw := tell_raw_shares(image):
        told = f"{told}; {escape(raw)}"
    cells = (str(number), escape(f"{image.path}{cropped}"), told)
    return f"<tr>{''.join(_cell(cell) for cell in cells)}</tr>"


def _notes(summary: Summary, *more: str) -> str:
    told = [*list_notes(summary), *filter(None, more)]
    return "".join(f'<p style="{_SMALL}">note: {escape(note)}</p>' for note in told)


def _table(content: TextTable) -> str:
    rows = ""
    for number, section in enumerate(content.sections):
        for place, row in enumerate(section):
            line = ";border-top:1px solid" if number and place == 0 else ""
            cells = (
                _cell(escape(text), "left" if index < content.num_labels else "right", line)
                for index, text in enumerate(row)
            )
            rows += f"<tr>{''.join(cells)}</tr>"
    below = content.caption if not content.title else f"{content.title}. {content.caption}"
    return _make_table(content.columns, content.num_labels, rows, below)


def _make_table(columns: Sequence[str], num_labels: int, rows: str, below: str) -> str:
    heads = "".join(
        f'<th scope="col" style="{_CELL};border-bottom:1px solid;'
        f'text-align:{"left" if index < num_labels else "right"}">{escape(name)}</th>'
        for index, name in enumerate(columns)
    )
    return (
        f'<table style="{_TABLE}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        f'<p style="{_SMALL}">{escape(below)}</p>'
    )


def _cell(content: str, align: str = "left", line: str = "") -> str:
    return f'<td style="{_CELL};text-align:{align}{line}">{content}</td>'
