"""A panel for each family, a line for each term, size on the horizontal axis."""

from collections.abc import Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from vitscope.figures.drawing import Selection
from vitscope.figures.numbers import Interval
from vitscope.figures.panels import finish, label_rows, make_panels, term_handles
from vitscope.figures.sizes import (
    join_sizes,
    mark_biased,
    plot_line,
    require_params,
    title_above_sizes,
    use_size_axis,
)
from vitscope.figures.style import colour_term, in_term_order, mark_term

Terms = Mapping[str, Interval]


def plot_terms_by_family(
    selection: Selection[Terms],
    *,
    y_label: str,
    notes: Sequence[str],
    limits: tuple[float, float] | None = None,
    more_handles: Sequence[Artist] = (),
) -> Figure:
    """Terms over size, family by family."""
    families = selection.families
    figure, panels = make_panels(len(families), share_y=limits is not None)
    span = [require_params(result) for result in selection.results]
    for (family, members), panel in zip(families.items(), panels, strict=True):
        for term in _terms_of(members):
            points = [(require_params(m), terms[term]) for m, terms in members if term in terms]
            colour = colour_term(term)
            marker, dashes = mark_term(term), join_sizes(model for model, _ in members)
            plot_line(panel, points, colour=colour, marker=marker, dashes=dashes, label=term)
            mark_biased(panel, points, colour)
        use_size_axis(panel, [member for member, _ in members], span)
        title_above_sizes(panel, family)
        if limits is None:
            panel.set_ylim(bottom=0)
        else:
            panel.set_ylim(*limits)
    label_rows(panels, y_label)
    return finish(
        figure,
        [*notes, *selection.choices],
        handles=[*term_handles(_terms_of(selection.found)), *more_handles],
        omitted=selection.omitted,
    )


def _terms_of(members: Sequence[tuple[object, Terms]]) -> list[str]:
    return in_term_order(list({term for _, terms in members for term in terms}))
