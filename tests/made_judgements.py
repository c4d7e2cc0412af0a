"""Made-up judgements of maps that follow the summary's schema, with the images that they keep."""

import numpy as np

from made_results import PREPROCESSING, describe_model, estimate, write_result
from vitscope.metrics.jackknife import Estimate
from vitscope.results.image_maps import ImageMap, ImageMaps, write_maps
from vitscope.results.map_verdict import Comparison, MapVerdict
from vitscope.results.schema import DataSummary, JudgementSummary, Settings
from vitscope.results.schema_maps import (
    JudgedImage,
    JudgedMap,
    JudgeReference,
    MapScores,
    MapSummary,
)

TITLES = {
    "attention": "Attention",
    "centre": "Distance from the centre",
    "edges": "Edges in the image",
    "contribution_norm": "Value-weighted attention",
    "share": "Share of the row",
    "rollout": "Attention rollout",
    "rollout_norm": "Attention rollout, skips by their norm",
    "chefer": "Gradient-weighted rollout (Chefer)",
    "legrad": "LeGrad",
    "cdam": "CDAM",
    "gradcam": "Grad-CAM",
    "gradient_input": "Gradient × input",
    "integrated_gradients": "Integrated gradients",
    "traced": "Traced",
    "traced_mean": "Traced, mean over depths",
    "frozen": "Frozen trace",
}
UNTARGETED = ("attention", "centre", "edges", "contribution_norm", "rollout", "rollout_norm")
SKILLS = {name: -0.26 + 1.18 * place / 13 for place, name in enumerate(TITLES)} | {
    "traced": 0.92,
    "attention": 0.24,
    "frozen": 0.8,
    "traced_mean": 0.61,
    "oracle": 1.0,
    "random": 0.0,
}
"""Skill of each map by the first removal; the second halves them."""


def make_judgement(
    maps=tuple(TITLES),
    *,
    removals=("shuffle", "drop"),
    family="DINOv2",
    size="S",
    n=50,
    layer=11,
    target="self",
    best="traced",
    masks=False,
    sanity=False,
    images=(),
):
    """A judgement in which traced is best, and attention little better than random orders."""
    model = describe_model(family, size, 22.1, 0, f"made/{family}-{size}".lower())
    return JudgementSummary(
        model=model,
        settings=Settings(),
        preprocessing=PREPROCESSING,
        data=DataSummary(num_images=n, num_failed=0),
        layer=layer,
        target=target,
        reference=JudgeReference(source="given", num_images=40),
        verdict=MapVerdict(best, f"publish {TITLES.get(best)}: skill 0.92 ± 0.13"),
        maps={
            name: JudgedMap(
                title=TITLES[name],
                signed=name in {"traced", "share"},
                targeted=name not in UNTARGETED,
                source="made up",
                seconds=0.1,
            )
            for name in maps
        },
        removals={
            removal: {
                name: make_scores(SKILLS[name] / (place + 1), name)
                for name in (*maps, "oracle", "random")
            }
            for place, removal in enumerate(removals)
        },
        ceiling={removal: estimate(0.45, 0.05) for removal in removals if len(removals) > 1},
        plausibility={name: make_plausibility(SKILLS[name]) for name in maps if masks},
        sanity={name: make_sanity(name) for name in maps if sanity},
        images=images,
    )


def make_scores(skill, name):
    steps = np.linspace(0, 1, 17)
    bend = 0.5 - 0.4 * skill
    scores = dict.fromkeys(("deletion", "insertion", "rank", "saco", "infidelity"), 0.4)
    scores |= {"skill": skill, "gap": 0.9 * skill}
    fixed = name in {"oracle", "random"}
    compared = None
    if name not in {"attention", "oracle", "random"}:
        answer = "better" if skill > 0.5 else "worse" if skill < 0 else "cannot tell"
        compared = Comparison(estimate(0.9 * skill - 0.2), 0.01, 0.04, answer)
    return MapScores(
        scores={
            key: Estimate(value, (value, value))
            if fixed and key == "skill"
            else estimate(value, 0.13)
            for key, value in scores.items()
        }
        | {"completeness": Estimate(float("nan"), None)},
        deletion=tuple(float(1 - step ** (0.3 + bend)) for step in steps),
        insertion=tuple(float(step ** (0.3 + bend)) for step in steps),
        against_attention=compared,
    )


def make_plausibility(skill):
    found = {"pointing": 0.5 + skill / 4, "mass_in_mask": 0.4, "average_precision": 0.3}
    return {name: estimate(value, 0.1) for name, value in (found | {"mask_area": 0.24}).items()}


def make_sanity(name):
    survives = {"centre": 1.0, "edges": 1.0, "rollout": 0.8}.get(name, 0.1)
    other = 1.0 if name in UNTARGETED else 0.3
    found = {"randomised_last": 0.7, "randomised_all": survives, "other_target": other}
    return {key: estimate(value, 0.05) for key, value in (found | {"sensitivity": 0.04}).items()}


def write_judgement(folder, count=2, *, grid=(4, 6), patch=8, **settings):
    """Write a judgement with images that it keeps."""
    names = settings.get("maps", tuple(TITLES))
    random = np.random.default_rng(count)
    images = []
    for index in range(count):
        about = {
            name: MapSummary(
                title=TITLES[name],
                signed=name in {"traced", "share"},
                target=None if name in UNTARGETED else settings.get("target", "self"),
                unplaced={"cls": 0.1},
            )
            for name in names
        }
        shown = random.integers(0, 256, (grid[0] * patch, grid[1] * patch, 3), dtype=np.uint8)
        values = {name: random.standard_normal(grid).astype(np.float32) for name in names}
        file = f"maps/{index:04d}.npz"
        maps = {name: ImageMap(about=about[name], values=values[name]) for name in names}
        write_maps(
            folder.with_name(f"{folder.name}-{index}.npz"), ImageMaps(image=shown, maps=maps)
        )
        images.append(
            JudgedImage(
                path=f"photos/dog {index}.png",
                image_id=f"{index:064d}",
                file=file,
                maps=about,
                skill={name: SKILLS[name] + 0.01 * index for name in (*names, "oracle", "random")},
            )
        )
    write_result(folder, make_judgement(images=tuple(images), **settings))
    (folder / "maps").mkdir()
    for index in range(count):
        folder.with_name(f"{folder.name}-{index}.npz").rename(folder / f"maps/{index:04d}.npz")
    return folder
