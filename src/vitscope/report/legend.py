"""Keys of a legend: the colour and shape that a term has on every chart."""

from markupsafe import Markup

from vitscope.report.charts import TERM_SHAPES

_PATHS = {
    "circle": "M6 1a5 5 0 1 0 0 10A5 5 0 1 0 6 1Z",
    "square": "M1.5 1.5h9v9h-9Z",
    "diamond": "M6 .5 11.5 6 6 11.5 .5 6Z",
    "cross": "M4 1h4v3h3v4H8v3H4V8H1V4h3Z",
    "triangle-up": "M6 1 11.5 11H.5Z",
    "triangle-down": "M6 11 .5 1h11Z",
    "triangle-right": "M1 .5 11 6 1 11.5Z",
    "stroke": "M0 4.5h12v3H0Z",
}


def draw_key(term: str) -> Markup:
    """A term's mark, for a legend."""
    name = "registers" if term.startswith("register_") else term
    known = name in TERM_SHAPES
    shape = _PATHS[TERM_SHAPES[name]] if known else _PATHS["cross"]
    return Markup(
        '<svg viewBox="0 0 12 12" aria-hidden="true"><path class="term-{}" d="{}"/></svg>'
    ).format(name if known else "other", shape)
