"""A figure that notebooks display, without pyplot and its windows."""

from io import BytesIO

from matplotlib.figure import Figure

from vitscope.figures.rendering.style import in_style

_DPI = 200
_CSS_PX_PER_IN = 100


class ShownFigure(Figure):
    """A matplotlib figure that a notebook displays at the end of a cell."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        # Twice the displayed size, to be sharp on dense screens.
        width, height = self.get_size_inches()
        size = {"width": round(_CSS_PX_PER_IN * width), "height": round(_CSS_PX_PER_IN * height)}
        return self._draw_png(), size

    @in_style
    def _draw_png(self) -> bytes:
        written = BytesIO()
        self.savefig(written, format="png", dpi=_DPI, metadata={"Software": None})
        return written.getvalue()
