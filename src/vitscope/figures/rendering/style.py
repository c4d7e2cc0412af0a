"""Common style of all figures: sizes, fonts, a fixed colour per meaning, and how notebooks show."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib import style as styles
from matplotlib.figure import Figure

from vitscope.errors import UsageError
from vitscope.files.printable import printable_path
from vitscope.results.vocabulary import look_of

Dashes = tuple[float, tuple[float, ...]]

COLUMN_IN = 3.5
"""Width of a column of a paper, in inches."""
PAGE_IN = 7.2
"""Width of a full page."""
NARROWEST_IN, WIDEST_IN = 3.2, 20
"""Widths that can be chosen."""
SMALL_PT, BASE_PT = 6.0, 7.0
_SHOWN_DPI = 200
_CSS_PX_PER_IN = 100
INK, FAINT, HAIRLINE = "#222222", "#8c8c8c", "#d9d9d9"

# Okabe and Ito's palette, distinguishable with all common kinds of colour blindness.
_TERM_LOOKS = {
    "patches": ("#0072B2", "o"),
    "registers": ("#D55E00", "s"),
    "cls": ("#CC79A7", "D"),
    "distillation": ("#E69F00", "P"),
    "skip": ("#009E73", "^"),
    "bias": ("#999999", "X"),
    "non_patch": ("#56B4E9", "v"),
    "full": (INK, "*"),
    "highest_patch": ("#56B4E9", "p"),
    # Paul Tol's "muted" palette: no terms of the output.
    "through_values": ("#332288", "o"),
    "through_routing": ("#CC6677", "o"),
}
TERM_COLOURS = {term: colour for term, (colour, _) in _TERM_LOOKS.items()}
_NO_TERM = (FAINT, "o")


class Look(NamedTuple):
    """Line style of a term or a model family."""

    colour: str
    marker: str
    dashes: Dashes | str


DASHES: tuple[Dashes, ...] = ((0, ()), (0, (4, 1.5)), (0, (1, 1.2)))
_SOLID, _DASHED, _DOTTED = DASHES
_DASH_DOT: Dashes = (0, (5, 1.5, 1, 1.5))
# Paul Tol's "muted" palette, distinct from the colours of the terms.
_FAMILY_LOOKS = {
    "DINOv2": Look("#332288", "o", _SOLID),
    "DINOv2 with registers": Look("#CC6677", "s", _SOLID),
    "DeiT": Look("#44AA99", "v", _DOTTED),
    "DeiT III": Look("#44AA99", "^", _SOLID),
    "CLIP (OpenAI)": Look("#117733", "D", _DASHED),
    "CLIP (OpenCLIP)": Look("#999933", "v", _DASHED),
    "iBOT": Look("#882255", "P", _DASH_DOT),
    "DINO": Look("#AA4499", "X", _DOTTED),
    "DINOv3": Look("#332288", "*", _DOTTED),
    "MAE": Look("#88CCEE", "h", _DASH_DOT),
    "SigLIP": Look("#DDCC77", "<", _SOLID),
    "SigLIP 2": Look("#DDCC77", ">", _DASHED),
    "EVA-02": Look("#882255", "d", _DOTTED),
}
_OTHER_LOOKS = tuple(
    Look(colour, marker, dashes)
    for dashes in DASHES
    for colour, marker in (
        ("#332288", "o"),
        ("#CC6677", "^"),
        ("#117733", "D"),
        ("#882255", "P"),
        ("#44AA99", "v"),
        ("#999933", "h"),
        ("#88CCEE", "s"),
    )
)

_SETTINGS: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": BASE_PT,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": BASE_PT,
    "axes.titleweight": "bold",
    "errorbar.capsize": 1.5,
    "font.family": "DejaVu Sans",
    "font.size": BASE_PT,
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.5,
    "legend.borderpad": 0.0,
    "legend.columnspacing": 1.4,
    "legend.fontsize": BASE_PT,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.handletextpad": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.8,
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "svg.hashsalt": "vitscope",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": SMALL_PT,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.color": INK,
    "ytick.labelsize": SMALL_PT,
    "ytick.major.size": 2.5,
    "ytick.major.width": 0.6,
}


@dataclass(frozen=True)
class FigureStyle:
    """What is chosen for all figures of a folder."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # of matplotlib, over the common ones
    width_in: float | None = None  # width of every figure; None for that of a column or page
    has_notes: bool = True  # whether notes are written under figures

    def __post_init__(self) -> None:
        """Refuse a width that no figure fits."""
        if self.width_in is not None and not NARROWEST_IN <= self.width_in <= WIDEST_IN:
            raise UsageError(
                f"width {self.width_in:.3g} in: expected {NARROWEST_IN} to {WIDEST_IN} in"
            )


_FIXED = ("size", "backend")
"""Ends of the names of settings that no style changes: layouts are made for these sizes."""
_CHOSEN: ContextVar[FigureStyle] = ContextVar("style", default=FigureStyle())  # noqa: B039 - frozen
chosen_style = _CHOSEN.get


@contextmanager
def drawn_in(style: FigureStyle) -> Iterator[None]:
    """Draw figures in a style."""
    before = _CHOSEN.set(style)
    try:
        yield
    finally:
        _CHOSEN.reset(before)


def read_style(style: str | Path | None) -> dict[str, Any]:
    """Settings of a style of matplotlib, given by its name or file; sizes stay as they are."""
    if style is None:
        return {}
    path, told = Path(style), printable_path(Path(style))
    found: Any
    if str(style) in styles.library:
        found = styles.library[str(style)]
    elif path.is_file():
        try:
            found = mpl.rc_params_from_file(path, use_default_template=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"style {told} cannot be read: {error}") from None
    else:
        raise UsageError(
            f"style {told}: expected a file of matplotlib's settings, or one of "
            f"{', '.join(styles.available)}"
        )
    settings = {key: value for key, value in found.items() if not key.endswith(_FIXED)}
    if not settings:
        raise UsageError(f"style {told} has no settings: expected lines such as font.family: serif")
    if settings.get("text.usetex"):
        raise UsageError(f"style {told} sets text.usetex: leave it out, words here are not LaTeX")
    return settings


@contextmanager
def in_style() -> Iterator[None]:
    """Draw in the common style, whatever the user's matplotlib settings."""
    settings: Any = {k: v for k, v in mpl.rcParamsDefault.items() if k != "backend"}
    with mpl.rc_context(settings | _SETTINGS | dict(chosen_style().settings)):
        yield


class ShownFigure(Figure):
    """A matplotlib figure that a notebook displays at the end of a cell."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        # Twice the displayed size, to be sharp on dense screens.
        width, height = self.get_size_inches()
        size = {"width": round(_CSS_PX_PER_IN * width), "height": round(_CSS_PX_PER_IN * height)}
        return self._draw_png(), size

    @in_style()
    def _draw_png(self) -> bytes:
        written = BytesIO()
        self.savefig(written, format="png", dpi=_SHOWN_DPI, metadata={"Software": None})
        return written.getvalue()


def colour_term(term: str) -> str:
    """The colour of a term, the same on every figure."""
    return _TERM_LOOKS.get(look_of(term), _NO_TERM)[0]


def mark_term(term: str) -> str:
    """The marker of a term."""
    return _TERM_LOOKS.get(look_of(term), _NO_TERM)[1]


def look_of_families(families: Sequence[str]) -> dict[str, Look]:
    """Line styles of families; known recipes always have the same one."""
    known = {family: _FAMILY_LOOKS[family] for family in families if family in _FAMILY_LOOKS}
    others = cycle(look for look in _OTHER_LOOKS if look not in known.values())
    return {family: known[family] if family in known else next(others) for family in families}


def literal(text: str) -> str:
    """Escape text for matplotlib: no formulas from dollar signs, no hidden legend entries."""
    shown = f" {text}" if text.startswith("_") else text
    return shown.replace("$", r"\$")
