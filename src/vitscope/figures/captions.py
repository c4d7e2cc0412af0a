"""What stands below each figure, as text and as LaTeX."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from vitscope.figures.description import FigureData
from vitscope.figures.rendering.style import COLUMN_IN
from vitscope.files.printable import printable

_LATEX = {
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # Which pdfLaTeX's default encoding (OT1) prints as other letters.
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    # Letters of this package's own words that pdfLaTeX does not know.
    **{"²": "$^2$", "°": r"$^\circ$", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "′": "$'$"},
    **{"‖": r"$\|$", "⟨": r"$\langle$", "⟩": r"$\rangle$"},
    **{"Σ": r"$\Sigma$", "ρ": r"$\rho$", "ℓ": r"$\ell$"},
    **{"●": r"$\bullet$", "▲": r"$\triangle$", "◆": r"$\diamond$", "✕": r"$\times$"},
}
_FIGURE = r"""\begin{{{float}}}
  \centering
  \{include}[width=\linewidth]{{{file}}}
  \caption{{{caption}}}
  \label{{fig:{name}}}
\end{{{float}}}
"""
_INCLUDES = {".pdf": "includegraphics", ".png": "includegraphics", ".svg": "includesvg"}
"""How LaTeX includes a file, the best first; the last needs the package svg."""
_SPANS_IN = 1.1 * COLUMN_IN
"""Figures that are wider stand across both columns of a page."""
_NOTES_INSIDE = (
    "% Notes on the numbers are in the figures; if drawn without captions, they are in this file.\n"
)


@cache
def read_captions() -> Mapping[str, str]:
    """What each figure asks and shows, by its name."""
    return tomllib.loads(files("vitscope.figures").joinpath("captions.toml").read_text("utf-8"))


def write_caption(figure: str, data: FigureData, *, with_notes: bool = True) -> str:
    """The caption of a figure: what it asks and shows, and notes on its numbers."""
    return " ".join([read_captions()[figure], *(data.remarks if with_notes else ())])


def write_latex(name: str, paths: Sequence[Path], caption: str, *, width_in: float) -> str:
    """A figure with its caption, to be pasted into a paper."""
    best = min(paths, key=lambda path: list(_INCLUDES).index(path.suffix))
    return _FIGURE.format(
        float="figure*" if width_in > _SPANS_IN else "figure",
        include=_INCLUDES[best.suffix],
        file=best.name,
        caption="".join(_LATEX.get(letter, letter) for letter in printable(caption)),
        name=name,
    )


def join_latex(figures: Iterable[str], *, notes_inside: bool) -> str:
    """All figures as one file of LaTeX."""
    return "\n".join([*([_NOTES_INSIDE] if notes_inside else ()), *figures])
