"""How long is what patches and the skip connection add to [CLS]: figures 5a and 7."""

from collections.abc import Iterable

from vitscope.figures.drawing import Drawing, NothingToDrawError, describe_n, select
from vitscope.figures.numbers import find, read_spread
from vitscope.figures.saved import ModelResult
from vitscope.figures.sizes import require_params
from vitscope.figures.style import in_style
from vitscope.figures.terms_by_family import Terms, plot_terms_by_family
from vitscope.results.choices import LAYER, count_cls

_TERMS = ("patches", "skip")


@in_style
def plot_norms(results: Iterable[ModelResult]) -> Drawing:
    """‖c_patches‖ and ‖skip‖ over size, a panel per family (Fig. 5a and 7)."""
    selection = select(results, _read_norms, choices=[count_cls(*_TERMS), LAYER])
    figure = plot_terms_by_family(
        selection,
        y_label="norm added to [CLS]",
        notes=(
            f"Last block; mean over images, bars: 5 to 95 % of the images; "
            f"{describe_n(selection.results)}.",
        ),
    )
    return selection.draw(figure)


def _read_norms(result: ModelResult) -> Terms:
    require_params(result)
    norms = {term: read_spread(find(result.summary, "contribution_norm", term)) for term in _TERMS}
    found = {term: norm for term, norm in norms.items() if norm is not None}
    if not found:
        raise NothingToDrawError("it has no norms of contributions")
    return found
