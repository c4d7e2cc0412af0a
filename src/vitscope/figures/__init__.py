"""Figures drawn from saved results alone, one module a question."""

from vitscope.figures.draw import draw_figures
from vitscope.figures.drawing import Drawing, NothingToDrawError
from vitscope.figures.saved import ModelResult, load_results

__all__ = ["Drawing", "ModelResult", "NothingToDrawError", "draw_figures", "load_results"]
