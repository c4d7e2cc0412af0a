"""What stands at the end of a reproduction: the figures, and the paper's claims held against it."""

from collections.abc import Sequence
from typing import Any

from vitscope.figures.draw import FigureFolder, Format, draw_figures
from vitscope.reproduction.claims import Finding, judge_claims, write_claims
from vitscope.reproduction.evidence import ModelEvidence
from vitscope.reproduction.plan import PlannedModel
from vitscope.reproduction.run import IMAGENET, MAPS, ONE_SHOT, PICTURES, Reproduction
from vitscope.storage import MARKER, read_json


def draw_all_figures(run: Reproduction, formats: Sequence[Format]) -> list[FigureFolder]:
    """Draw every figure of a reproduction.

    Args:
        run: A reproduction with at least one finished audit.
        formats: Files of each figure.

    Returns:
        The figures of the main set of pictures in `figures`, and those of the second set, where
        it is another, in `figures-imagenet`; of each as far as there are results.
    """
    kinds: dict[str, tuple[str, ...]] = {"figures": (PICTURES, ONE_SHOT, MAPS)}
    if not run.has_one_set:
        kinds["figures-imagenet"] = (IMAGENET,)
    drawn = []
    for name, stages in kinds.items():
        folders = [
            run.result_folder(model.name, stage)
            for model in run.models
            for stage in stages
            if run.is_done(model.name, stage)
        ]
        if folders:
            drawn.append(draw_figures(folders, run.out / name, formats=formats, overwrite=True))
    return drawn


def judge_all_claims(run: Reproduction) -> list[Finding]:
    """Hold the paper's claims against what was measured, and write the table.

    Args:
        run: A reproduction.

    Returns:
        One finding a claim; also in the folder `claims`.
    """
    evidence = [_collect(run, model) for model in run.models]
    findings = judge_claims(
        evidence, readout=run.config.readout, classifier=_choose_classifier(run.config.classifier)
    )
    write_claims(run.out / "claims", findings)
    return findings


def _collect(run: Reproduction, model: PlannedModel) -> ModelEvidence:
    def read(stage: str) -> dict[str, Any] | None:
        path = run.result_folder(model.name, stage) / MARKER
        summary: dict[str, Any] | None = read_json(path) if path.is_file() else None
        return summary

    return ModelEvidence(
        recipe=model.recipe,
        size=model.size,
        num_params=model.num_params,
        audit=read(PICTURES),
        imagenet=read(IMAGENET),
        one_shot=read(ONE_SHOT),
    )


def _choose_classifier(asked: str) -> str:
    return "nearest" if asked == "both" else asked
