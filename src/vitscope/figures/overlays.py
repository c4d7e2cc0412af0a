"""Maps of explained images as PNG files, alone and over their images."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from vitscope.figures.explained import name_images
from vitscope.figures.rendering.overlays import choose_limits, lay_over, paint_map
from vitscope.figures.saved import ModelResult
from vitscope.files.own_files import check_figures_target, is_figures, write_index
from vitscope.files.storage import never, staged_folder
from vitscope.results.explanation import Explanation
from vitscope.results.schema import SCHEMA_VERSION


def draw_overlays(
    explanation: Explanation,
    out: str | Path,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write every map of every explained image, as `Explanation.save_overlays` says."""
    target = Path(out)
    check_figures_target(target, overwrite=overwrite)
    named, ids = name_images([ModelResult(explanation)]), explanation.image_ids
    files, entries = [], []
    with staged_folder(target, replaces=is_figures if overwrite else never) as staging:
        for number, (name, image_id) in enumerate(named.items(), 1):
            one = explanation.read_image(ids.index(image_id))
            for kind, each in one.shown.items():
                painted = paint_map(each, one.image.shape[:2])
                drawn = {
                    f"{name}__{kind}.png": painted,
                    f"{name}__{kind}__overlay.png": lay_over(one.image, painted),
                }
                for file, pixels in drawn.items():
                    Image.fromarray(pixels).save(staging / file)
                low, high = choose_limits(each.values, signed=each.about.signed)
                about = {"image_id": image_id, "map": kind, "low": low, "high": high}
                entries.append({"files": list(drawn), "path": one.path, **about})
                files += [target / file for file in drawn]
            if on_progress is not None:
                on_progress(number, len(named))
        write_index(staging, {"schema_version": SCHEMA_VERSION, "maps": entries})
    return files
