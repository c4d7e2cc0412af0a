"""Figures of saved results: what each shows, and how matplotlib draws it."""

from vitscope.figures.description import FigureData, NothingToDrawError
from vitscope.figures.draw import draw_figures
from vitscope.figures.questions import FIGURES, Drawing, draw_figure, plot
from vitscope.figures.saved import ModelResult, load_results

__all__ = [
    "FIGURES",
    "Drawing",
    "FigureData",
    "ModelResult",
    "NothingToDrawError",
    "draw_figure",
    "draw_figures",
    "load_results",
    "plot",
]
