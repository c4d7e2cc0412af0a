"""Figures of saved results: what each shows, and how matplotlib draws it.

What draws is imported when it is used: the report describes figures without matplotlib's own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitscope.figures.description import FigureData, NothingToDrawError
from vitscope.figures.saved import ModelResult, load_results

if TYPE_CHECKING:
    from vitscope.figures.draw import draw_figures
    from vitscope.figures.questions import FIGURES, Drawing, draw_figure, plot

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


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vitscope.figures' has no attribute {name!r}")
    return getattr(
        import_module(f"{__name__}.{'draw' if name == 'draw_figures' else 'questions'}"), name
    )
