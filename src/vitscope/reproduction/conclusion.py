"""The end of a reproduction: claims and figures of every finished model in the folder."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from vitscope.figures.draw import FigureFolder, Format, draw_figures
from vitscope.reproduction.claims import Finding, judge_claims, write_claims
from vitscope.reproduction.evidence import Data, ModelEvidence
from vitscope.reproduction.run import Reproduction
from vitscope.reproduction.stages import IMAGENET, IMAGES, MAPS, ONE_SHOT, RESULTS

FIGURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"figures": (IMAGES, ONE_SHOT, MAPS), "figures-imagenet": (IMAGENET,)}
)
"""Folders of figures, and the stages that each uses."""

_STAGES: Mapping[Data, str] = MappingProxyType(
    {"COCO": IMAGES, "ImageNet": IMAGENET, "one-shot": ONE_SHOT}
)


def judge_all_claims(run: Reproduction) -> list[Finding]:
    """Compare the paper's claims with the measurements and write the table."""
    found = [_collect(run, name) for name in run.model_names]
    asked = run.config.classifier
    findings = judge_claims(
        [evidence for evidence in found if evidence is not None],
        readout=run.config.readout,
        classifier="nearest" if asked == "both" else asked,
    )
    write_claims(run.out / "claims", findings)
    return findings


def draw_all_figures(
    run: Reproduction, name: str, formats: Sequence[Format]
) -> FigureFolder | None:
    """Draw the figures of one image set."""
    folders = [
        run.result_folder(model, stage)
        for model in run.model_names
        for stage in FIGURES[name]
        if run.is_done(model, stage)
    ]
    if not folders:
        return None
    return draw_figures(folders, run.out / name, formats=formats, overwrite=True)


def _collect(run: Reproduction, name: str) -> ModelEvidence | None:
    done = {
        data: RESULTS[stage].load(run.result_folder(name, stage)).summary
        for data, stage in _STAGES.items()
        if run.is_done(name, stage)
    }
    if not done:
        return None
    model = next(iter(done.values())).model
    return ModelEvidence(
        recipe=model.recipe,
        size=model.size,
        num_params=model.num_params,
        summaries=done,
        absent={data: run.why_left_out(stage) for data, stage in _STAGES.items()},
    )
