"""What one-shot classification keeps when only a part of the output is left: figure 3b."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal, get_args

from matplotlib.lines import Line2D

from vitscope.figures.drawing import Drawing, NothingToDrawError, select
from vitscope.figures.numbers import Interval, find, find_terms, number, read_estimate
from vitscope.figures.readouts import Readout, name_readout
from vitscope.figures.saved import ModelResult, printable
from vitscope.figures.sizes import require_params
from vitscope.figures.style import FAINT, TERMS, in_style
from vitscope.figures.terms_by_family import Terms, plot_terms_by_family
from vitscope.results.choices import RENORMALIZE, count_cls

Top = Literal["top1", "top5"]
TOPS: tuple[Top, ...] = get_args(Top)
"""Whether the first, or one of the first five guesses must be right."""
_NAMES = {"top1": "top-1", "top5": "top-5"}
_CHANCE = {"color": FAINT, "linestyle": (0, (4, 2)), "linewidth": 0.8}


def list_classifiers(results: Iterable[ModelResult]) -> list[str]:
    """Classifiers that any of the results has."""
    names: dict[str, None] = {}
    for result in results:
        if result.kind == "one-shot":
            names |= dict.fromkeys(find_terms(result.summary, "accuracy"))
    return list(names)


@in_style
def plot_one_shot(
    results: Iterable[ModelResult], classifier: str, top: Top, readout: Readout = "attention"
) -> Drawing:
    """One-shot accuracy by part of the output, over size, a panel per family (Fig. 3b)."""
    selection = select(
        results,
        partial(_read_accuracies, classifier, top, readout),
        kind="one-shot",
        choices=[count_cls(*TERMS), RENORMALIZE],
    )
    figure = plot_terms_by_family(
        selection,
        y_label=f"one-shot {_NAMES[top]} accuracy (%)",
        notes=(
            f"Classifier: {printable(classifier)}, trained on full outputs of "
            f"{name_readout(readout)}. "
            f"{_describe_draws(selection.results)}; bars: 95 % intervals over draws.",
        ),
        limits=(-3, 103),
        more_handles=[Line2D([], [], label="chance", **_CHANCE)],  # type: ignore[arg-type]
    )
    for panel, members in zip(figure.axes, selection.families.values(), strict=True):
        chances = {number(find(model.summary, "chance", top)) for model, _ in members}
        for chance in sorted(value for value in chances if value is not None):
            panel.axhline(100 * chance, zorder=1, **_CHANCE)  # type: ignore[arg-type]
    return selection.draw(figure)


def _read_accuracies(classifier: str, top: Top, readout: str, result: ModelResult) -> Terms:
    require_params(result)
    parts = find_terms(result.summary, "accuracy", classifier, readout)
    found = {}
    for part in ("full", *TERMS):
        accuracy = read_estimate(find(parts.get(part), top))
        if accuracy is not None:
            found[part] = _in_percent(accuracy)
    if not found:
        raise NothingToDrawError(
            f"no {_NAMES[top]} accuracy with {printable(classifier)} in the readout {readout}"
        )
    return found


def _in_percent(share: Interval) -> Interval:
    ends = [None if end is None else 100 * end for end in (share.low, share.high)]
    return Interval(100 * share.value, *ends)


def _describe_draws(results: Sequence[ModelResult]) -> str:
    told = []
    for path, word in (
        (("data", "num_classes"), "classes"),
        (("data", "num_images"), "images"),
        (("draws",), "draws"),
    ):
        counts = sorted({int(c) for r in results if (c := number(find(r.summary, *path)))})
        if counts:
            spread = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
            told.append(f"{spread} {word}")
    return ", ".join(told)
