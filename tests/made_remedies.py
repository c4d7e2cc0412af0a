"""Made-up comparisons of remedies that follow the summary's schema, with galleries of audits."""

from dataclasses import asdict

import numpy as np

from made_results import PREPROCESSING, describe_model, estimate, make_audit, write_result
from vitscope.files.json_files import write_json
from vitscope.metrics.estimates import CkaEstimate
from vitscope.metrics.jackknife import Estimate
from vitscope.results.gallery import Gallery, GalleryImage
from vitscope.results.image_maps import ImageMap, ImageMaps, write_maps
from vitscope.results.remedy_text import tell_remedy
from vitscope.results.schema import DataSummary, RemediesSummary, Settings
from vitscope.results.schema_maps import MapSummary
from vitscope.results.schema_numbers import Chance
from vitscope.results.schema_remedies import (
    Change,
    ClassifiedImages,
    ComparedRemedy,
    Drift,
    HighNormReference,
    JudgedImages,
    MapChange,
)
from vitscope.results.verdict import Verdict

EDITS = {
    "test-time-registers": (-0.21, 0.01, 0.002, 0.99),
    "zero:tokens=registers": (0.0, 0.05, -0.31, 0.42),
    "mean:tokens=registers": (0.0, 0.12, 0.08, 0.91),
}
"""What each edit changes: high-norm images, the patches' share, CKA; and cos(f, f′)."""

BEFORE = {
    "high_norm_images": 0.22,
    "variance_share_patches": 0.31,
    "cka_patches": 0.62,
    "attention_patches": 0.52,
}

HIGH_NORM_PATCHES = {"high_norm_patches": 0.0225, "high_norm_patches_08": 0.0212}


ACCURACIES = {"full_top1": 0.8, "full_top5": 0.9, "patches_top1": 0.3, "patches_top5": 0.5}
MAPS = {"attention": "Attention", "legrad": "LeGrad", "frozen": "Frozen trace"}


def make_remedies(edits=tuple(EDITS), *, family="DINOv2 with registers", size="S", n=200, **other):
    """A comparison in which the first edit cleans and the last one is truer."""
    model = describe_model(family, size, 22.1, 4, f"made/{family}-{size}".lower().replace(" ", "-"))
    verdict = Verdict(
        status="broken",
        decided_by="source",
        alignment=("weakened", "weakened"),
        source=("broken", "broken"),
        main_other_source="registers",
        text="patch integration is broken",
    )
    return RemediesSummary(
        model=model,
        settings=Settings(),
        preprocessing=PREPROCESSING,
        data=DataSummary(num_images=n, num_failed=0),
        layer=model.depth - 1,
        verdict=verdict,
        high_norm=HighNormReference(depth=9, threshold=150.0),
        one_shot=ClassifiedImages(
            num_images=60, num_classes=20, draws=100, chance=Chance(top1=0.05, top5=0.25)
        ),
        judged=JudgedImages(num_images=50, target="self", removal="shuffle", maps=MAPS),
        remedies=tuple(make_edit(edit, number, verdict) for number, edit in enumerate(edits, 1)),
        **other,
    )


def make_edit(edit, number, verdict):
    *differences, cosine = EDITS.get(edit, (-0.1, 0.1, 0.1, 0.9))
    changes = {
        name: make_change(BEFORE[name], difference)
        for name, difference in zip(BEFORE, [*differences, 0.0], strict=True)
    }
    for name, before in HIGH_NORM_PATCHES.items():
        changes[name] = Change(
            before=estimate(before, 0.002),
            after=estimate(before + differences[0] / 10, 0.002),
            difference=estimate(differences[0] / 10, 0.003),
        )
    drift = Drift(
        cosine=Estimate(cosine, (cosine - 0.01, min(1.0, cosine + 0.01))),
        cka=CkaEstimate(cosine, cosine, (cosine - 0.02, 1.0), 0.03),
        shared_neighbours=estimate(cosine - 0.1),
        num_neighbours=10,
        num_images=200,
    )
    return ComparedRemedy(
        edit=edit,
        folder=f"{number:02d}-edit",
        verdict=verdict,
        text=tell_remedy(changes, drift),
        changes=changes,
        drift=drift,
        maps=MapChange(correlation=estimate(0.87), verdicts=estimate(0.125)),
        one_shot={name: make_change(value, -0.25) for name, value in ACCURACIES.items()},
        skill={"attention": make_change(0.2, 0.3), "legrad": make_change(0.4, 0.05)},
        time_ratio=1.02,
    )


def make_change(before, difference):
    return Change(
        before=estimate(before),
        after=estimate(before + difference),
        difference=estimate(difference, 0.03),
    )


def write_comparison(folder, galleries, **settings):
    """Write a comparison beside its audits, whose galleries have these images, by audit."""
    edits = tuple(settings.pop("edits", EDITS))
    summary = make_remedies(edits, n=40, **settings)
    write_result(folder / "comparison", summary)
    for place, one in enumerate(["original", *(one.folder for one in summary.remedies)]):
        family = "+".join(["DINOv2 with registers", *edits[place - 1 : place]])
        audit, columns = make_audit(family, registers=4, n=40)
        write_result(folder / one, audit, columns)
        write_gallery(folder / one, columns["image_id"], galleries[place], value=place + 1)
    return folder


def write_gallery(folder, ids, indices, *, value):
    """Write a gallery of some of an audit's images; attention tells audit and image apart."""
    about = MapSummary(title="Attention", signed=False, unplaced={"cls": 0.1})
    images = []
    for number, index in enumerate(indices):
        values = np.full((2, 3), 10 * value + index, np.float32)
        image = np.full((16, 24, 3), 5 * index, np.uint8)
        maps = ImageMaps(image=image, maps={"attention": ImageMap(about=about, values=values)})
        file = f"gallery/{number:04d}.npz"
        write_maps(folder / file, maps)
        known = {"path": f"photos/{index}.png", "image_id": ids[index], "why": "random"}
        images.append(GalleryImage(**known, file=file, maps={"attention": about}))
    found = Gallery("share_patches", 12, 40, 40, tuple(images), folder)
    told = {key: value for key, value in asdict(found).items() if key not in {"folder", "owner"}}
    write_json(folder / "gallery.json", told)
