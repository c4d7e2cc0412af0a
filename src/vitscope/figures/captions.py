"""What stands below each figure, as text and as LaTeX."""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from vitscope.figures.description import FigureData
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
    **{"‖": r"$\|$", "⟨": r"$\langle$", "⟩": r"$\rangle$", "Σ": r"$\Sigma$", "ℓ": r"$\ell$"},
    **{"●": r"$\bullet$", "▲": r"$\triangle$", "◆": r"$\diamond$", "✕": r"$\times$"},
}
_FIGURE = r"""\begin{{figure}}
  \centering
  \includegraphics{{{file}}}
  \caption{{{caption}}}
  \label{{fig:{name}}}
\end{{figure}}
"""


@cache
def read_captions() -> Mapping[str, str]:
    """What each figure asks and shows, by its name."""
    return tomllib.loads(files("vitscope.figures").joinpath("captions.toml").read_text("utf-8"))


def write_caption(figure: str, data: FigureData) -> str:
    """The caption of a figure: what it asks and shows, and notes on its numbers."""
    return " ".join([read_captions()[figure], *data.remarks])


def write_latex(name: str, paths: Sequence[Path], caption: str) -> str:
    """A figure with its caption, to be pasted into a paper."""
    file = min(paths, key=lambda path: path.suffix != ".pdf").name  # a PDF if there is one
    told = "".join(_LATEX.get(letter, letter) for letter in printable(caption))
    return _FIGURE.format(name=name, file=file, caption=told)
