"""Text and tables of judged maps, shared by terminal, notebook, figures and report."""

from dataclasses import replace
from math import nan

from vitscope.results.map_verdict import BASELINES, REFERENCE_MAP
from vitscope.results.number_text import write_number, write_percent
from vitscope.results.result_text import (
    ABSENT,
    TextTable,
    describe_images,
    tell_estimate,
    tell_number,
)
from vitscope.results.schema import ExplainedImage, ExplanationSummary, JudgementSummary


def describe_judgement(summary: JudgementSummary) -> str:
    """What was judged, on which images."""
    reference = summary.reference
    return (
        f"{describe_images(summary)}, target {summary.target}, compared with "
        f"{reference.num_images} images ({reference.source}), {summary.model.dtype}"
    )


def order_maps(summary: JudgementSummary, removal: str | None = None) -> list[str]:
    """Judged maps and baselines, the most faithful first; by default with the first removal."""
    maps = summary.removals[removal or next(iter(summary.removals))]
    return sorted(maps, key=lambda name: -maps[name].scores["gap"].value)


def find_best(summary: JudgementSummary) -> str | None:
    """The map to publish, or else the one that comes first."""
    own = (name for name in order_maps(summary) if name not in BASELINES)
    return summary.verdict.best or next(own, None)


def name_map(summary: JudgementSummary, name: str) -> str:
    """Title of a judged map or baseline."""
    return summary.maps[name].title if name in summary.maps else _ORDERS.get(name, name)


_ORDERS = {"oracle": "Oracle", "random": "Random orders"}


def tabulate_judgement(summary: JudgementSummary) -> list[TextTable]:
    """The scores with each removal, then plausibility and sanity if they were measured."""
    tables = [tabulate_maps(summary, removal) for removal in summary.removals]
    scored = next(iter(summary.removals.values())).values()
    has_some = any(one.scores["gap"].ci95 is not None for one in scored)
    intervals = "± 95 % intervals." if has_some else "No intervals: the images are too few."
    tables[0] = replace(tables[0], caption=f"{intervals} {describe_scores(summary)}")
    tables += [one for one in (tabulate_plausibility(summary), tabulate_sanity(summary)) if one]
    return tables


def tabulate_maps(summary: JudgementSummary, removal: str) -> TextTable:
    """Scores of every map with one removal, the most faithful first."""
    maps = summary.removals[removal]
    rows = [
        (
            name_map(summary, name),
            tell_estimate(maps[name].scores["skill"], 2),
            *(tell_number(maps[name].scores[score].value, 2) for score in ("gap", "rank")),
            ABSENT if (found := maps[name].against_attention) is None else found.answer,
        )
        for name in order_maps(summary, removal)
    ]
    return TextTable(
        ("map", "skill", "gap", "rank", "vs attention"),
        sections=[rows],
        title=f"Maps judged by removal {removal!r}",
    )


def describe_scores(summary: JudgementSummary) -> str:
    """What the scores of maps mean."""
    told = [
        "skill: the gap on a scale from random orders (0) to the order by single deletions (1, "
        "the oracle). gap: area between the curves of removing the least and the most important "
        "patches first. rank: correlation with single deletions. vs attention: from the "
        "difference in gap, image by image.",
    ]
    ceilings = [
        f"{write_number(one.value, 2)} ({removal})" for removal, one in summary.ceiling.items()
    ]
    if ceilings:
        told.append(f"Removals agree among themselves to a rank of {', '.join(ceilings)}.")
    return " ".join(told)


def tabulate_plausibility(summary: JudgementSummary) -> TextTable | None:
    """Whether maps lie on objects, if there were masks."""
    found = summary.plausibility
    if not found:
        return None
    columns = ("pointing", "mass_in_mask", "average_precision")
    rows = [
        (name_map(summary, name), *(tell_estimate(found[name][column], 2) for column in columns))
        for name in order_maps(summary)
        if name in found
    ]
    area = next(iter(found.values()))["mask_area"].value
    return TextTable(
        ("map", *(column.replace("_", " ") for column in columns)),
        sections=[rows],
        caption=f"{PLAUSIBILITY_MEANS} The masks cover {write_percent(area)} of the image.",
        title="Do maps lie on the objects of the masks?",
    )


PLAUSIBILITY_MEANS = "This does not speak of the model: it may use what is beside the object."


def tabulate_sanity(summary: JudgementSummary) -> TextTable | None:
    """Whether maps depend on weights and target, if that was measured."""
    found = summary.sanity
    if not found:
        return None
    rows = [
        (
            name_map(summary, name),
            *(tell_number(found[name][column].value, 2) for column in _SANITY),
            " and ".join(list_ignored(summary, name)) or ABSENT,
        )
        for name in order_maps(summary)
        if name in found
    ]
    return TextTable(
        ("map", *_SANITY.values(), "ignores"),
        sections=[rows],
        caption="weights, target: rank correlation with the map of random weights, and with that "
        f"of another target; above {_SURVIVES} with random weights a map describes the image, not "
        "the model. noise: relative change of the map when the image hardly changes.",
        title="Do maps depend on the model and on the target?",
    )


_SANITY = {"randomised_all": "weights", "other_target": "target", "sensitivity": "noise"}
_SURVIVES, _SAME = 0.5, 0.999


def list_ignored(summary: JudgementSummary, name: str) -> list[str]:
    """What a map does not depend on but should; a baseline is no map of the model."""
    found = summary.sanity[name]
    if name in BASELINES:
        return []
    weights = found["randomised_all"].value > _SURVIVES
    target = not summary.maps[name].targeted or found["other_target"].value > _SAME
    return [what for what, ignored in (("weights", weights), ("target", target)) if ignored]


def describe_skill(target: str, removal: str) -> str:
    """What the skill of a map on one image means."""
    return (
        f"Skill on one image (target {target}, removal {removal}): 0 is random orders, 1 the order "
        "by single deletions."
    )


def tell_score(skill: float, gap: float) -> str:
    """The scores of a map on one image."""
    return f"skill {tell_number(skill, 2)}, gap {tell_number(gap, 2)}"


def tell_judgement(summary: ExplanationSummary, image: ExplainedImage) -> str:
    """What the judgement says of an image, or that the map to publish fails on it."""
    used = summary.judgement
    if used is None:
        return ""
    drawn = used.drawn is not None and used.verdict.best is None
    told = f"judgement: {used.verdict.text}" + "; it is drawn, but not recommended" * drawn
    return tell_failure(summary, image) or told


def list_judgements(summary: ExplanationSummary) -> list[str]:
    """What the judgement says of all images, each sentence once."""
    told = [
        f"{image.path}: {failure}" if failure else tell_judgement(summary, image)
        for image in summary.images
        for failure in [tell_failure(summary, image)]
    ]
    return list(dict.fromkeys(filter(None, told)))


def tell_failure(summary: ExplanationSummary, image: ExplainedImage) -> str:
    """That the map to publish is worse on an image than attention or random orders, if it is."""
    best = None if summary.judgement is None else summary.judgement.verdict.best
    if best is None or best not in image.skill:
        return ""
    skill, attention = image.skill[best], image.skill.get(REFERENCE_MAP, nan)
    worse = ["random orders"] * (skill < 0) + ["attention"] * (skill < attention)
    if not worse:
        return ""
    compared = best != REFERENCE_MAP and REFERENCE_MAP in image.skill
    beside = f", attention has {tell_number(attention, 2)}" * compared
    return (
        f"on this image {image.maps[best].title} is worse than {' and '.join(worse)} (skill "
        f"{tell_number(skill, 2)}{beside}): do not publish it of this image"
    )


def tabulate_image_scores(summary: ExplanationSummary) -> TextTable | None:
    """Scores of each image's maps, if they were scored."""
    if summary.scoring is None:
        return None
    sections = [
        [
            (
                image.path,
                image.maps[name].title,
                tell_number(skill, 2),
                tell_number(image.gap[name], 2),
            )
            for name, skill in image.skill.items()
        ]
        for image in summary.images
    ]
    return TextTable(
        ("image", "map", "skill", "gap"),
        sections=sections,
        num_labels=2,
        caption=describe_skill(summary.scoring.target, summary.scoring.removal),
        title="Maps scored on each image",
    )
