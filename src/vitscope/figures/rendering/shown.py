"""A figure that shows itself in a notebook, without pyplot and its windows."""

from io import BytesIO

from matplotlib.figure import Figure

from vitscope.figures.rendering.style import in_style

_DPI = 200
_CSS_PX_PER_IN = 100


class ShownFigure(Figure):
    """A matplotlib figure that a notebook shows where it ends a cell."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        # Twice the pixels that it takes on the page: sharp on a dense screen too.
        width, height = self.get_size_inches()
        size = {"width": round(_CSS_PX_PER_IN * width), "height": round(_CSS_PX_PER_IN * height)}
        return self._draw_png(), size

    @in_style
    def _draw_png(self) -> bytes:
        written = BytesIO()
        self.savefig(written, format="png", dpi=_DPI, metadata={"Software": None})
        return written.getvalue()
