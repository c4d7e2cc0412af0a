"""The maps of explained images out of any set of results: figure 4."""

from collections.abc import Sequence

from vitscope.figures.drawing import Drawing, NothingToDrawError
from vitscope.figures.numbers import find
from vitscope.figures.saved import ModelResult


def list_images(explanations: Sequence[ModelResult]) -> list[str]:
    """Images that any of the results explains."""
    return list(dict.fromkeys(i for result in explanations for i in _ids_of(result)))


def plot_maps(explanations: Sequence[ModelResult], image_id: str) -> Drawing:
    """One image's maps, a row for each model that explains it (Fig. 4)."""
    # Here, for maps are read with torch, and no other figure needs it.
    from vitscope.figures.maps import plot_explanations
    from vitscope.results.explanation import Explanation

    shown = [result for result in explanations if image_id in _ids_of(result)]
    if not shown:
        raise NothingToDrawError("no result explains this image")
    opened = [Explanation.load(result.folder) for result in shown]
    figure = plot_explanations(opened, _ids_of(shown[0]).index(image_id))
    omitted = {r.label: "does not explain this image" for r in explanations if r not in shown}
    return Drawing(figure, tuple(shown), omitted)


def _ids_of(result: ModelResult) -> list[str]:
    images = result.summary.get("images")
    entries = images if isinstance(images, list) else []
    return [str(find(entry, "image_id")) for entry in entries]
