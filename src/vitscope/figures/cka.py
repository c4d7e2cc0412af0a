"""How much of the full output's geometry is in one part of it: figures 3a, 6 and 8."""

from collections.abc import Iterable, Sequence
from functools import partial

from vitscope.figures.drawing import Drawing, NothingToDrawError, describe_n, select
from vitscope.figures.numbers import find, read_cka, tell_undefined_cka
from vitscope.figures.panels import family_handles, finish, make_panels
from vitscope.figures.readouts import Readout, name_readout
from vitscope.figures.saved import ModelResult
from vitscope.figures.sizes import (
    join_sizes,
    mark_biased,
    plot_line,
    require_params,
    title_above_sizes,
    use_size_axis,
)
from vitscope.figures.style import in_style, look_of_families, name_term
from vitscope.figures.terms_by_family import Terms, plot_terms_by_family
from vitscope.results.choices import LAYER, RENORMALIZE, count_cls

_KEPT = ("patches", "registers")
_ADDED = ("patches", "skip")
_LIMITS = (-0.05, 1.05)
_NOTES = (
    "Filled: unbiased linear CKA, bars: 95 % intervals, which end at 1.",
    "Hollow: biased CKA, the paper's estimator; grey dash: what that one would give on "
    "average if the restricted outputs were dealt to the images at random.",
)


@in_style
def plot_restricted_cka(results: Iterable[ModelResult], readout: Readout = "attention") -> Drawing:
    """CKA of the attention branch's output with that of one token type alone, over size (Fig. 3a).

    One panel for patches and one for registers, a line per family.
    """
    selection = select(
        results,
        partial(_read_parts, readout, _KEPT),
        choices=[count_cls(*_KEPT), RENORMALIZE, LAYER],
    )
    parts = [part for part in _KEPT if any(part in found for _, found in selection.found)]
    figure, panels = make_panels(len(parts), columns=2, panel_height_in=2.3)
    span = [require_params(result) for result in selection.results]
    looks = look_of_families([*selection.families])
    for part, panel in zip(parts, panels, strict=True):
        shown: list[ModelResult] = []
        for family, members in selection.families.items():
            having = [(model, found[part]) for model, found in members if part in found]
            points = [(require_params(model), value) for model, value in having]
            look = looks[family]
            plot_line(
                panel,
                points,
                colour=look.colour,
                marker=look.marker,
                dashes=join_sizes((model for model, _ in having), look.dashes),
                label=family,
            )
            mark_biased(panel, points, look.colour)
            shown += [model for model, _ in having]
        use_size_axis(panel, shown, span)
        title_above_sizes(panel, f"{name_term(part)} only")
        panel.set_ylim(*_LIMITS)
    panels[0].set_ylabel("CKA with the full output")
    notes = [
        f"Output of {name_readout(readout)}; {describe_n(selection.results)}.",
        *_NOTES,
        *selection.choices,
    ]
    finish(figure, notes, handles=family_handles(looks), omitted=selection.omitted)
    return selection.draw(figure)


@in_style
def plot_residual_cka(results: Iterable[ModelResult]) -> Drawing:
    """CKA of the residual stream with what patches and skip wrote, over size (Fig. 6 and 8)."""
    selection = select(
        results, partial(_read_parts, "residual", _ADDED), choices=[count_cls(*_ADDED), LAYER]
    )
    figure = plot_terms_by_family(
        selection,
        y_label="CKA with the output r",
        notes=(
            "r: residual stream of [CLS] after the last block's attention; "
            f"{describe_n(selection.results)}.",
            *_NOTES,
        ),
        limits=_LIMITS,
    )
    return selection.draw(figure)


def _read_parts(readout: str, parts: Sequence[str], result: ModelResult) -> Terms:
    require_params(result)
    estimates = {part: read_cka(find(result.summary, "cka", readout, part)) for part in parts}
    found = {part: cka for part, cka in estimates.items() if cka is not None}
    if not found:
        why = tell_undefined_cka(result.summary, readout, parts)
        raise NothingToDrawError(f"its CKA {why}")
    return found
