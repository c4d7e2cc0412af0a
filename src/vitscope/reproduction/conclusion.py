"""The end of a reproduction: figures, reports and claims of every finished model in the folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vitscope.figures.draw import FigureFolder, Format, draw_figures
from vitscope.report import write_report
from vitscope.reproduction.claims import Finding, judge_claims, write_claims
from vitscope.reproduction.evidence import Data, ModelEvidence
from vitscope.reproduction.run import IMAGENET, IMAGES, MAPS, ONE_SHOT, STAGES, Reproduction

SETS: Mapping[str, Sequence[str]] = {"": (IMAGES, ONE_SHOT, MAPS), "-imagenet": (IMAGENET,)}
"""Endings of the names of figures and reports, and the stages that these show."""

_STAGES: Mapping[Data, str] = {"COCO": IMAGES, "ImageNet": IMAGENET, "one-shot": ONE_SHOT}


def judge_all_claims(run: Reproduction) -> list[Finding]:
    """Compare the paper's claims with the measurements and write the table."""
    found = [_collect(run, name) for name in run.model_names]
    asked = run.config.classifier
    findings = judge_claims(
        [evidence for evidence in found if evidence is not None],
        readout=run.config.readout,
        classifier="nearest" if asked == "both" else asked,
    )
    reports = [path for ending in SETS if (path := _place_report(run, ending)).is_file()]
    write_claims(run.out / "claims", findings, reports)
    return findings


def draw_all_figures(
    run: Reproduction, ending: str, formats: Sequence[Format]
) -> FigureFolder | None:
    """Draw the figures of one image set."""
    folders = _list_results(run, ending)
    out = run.out / f"figures{ending}"
    return draw_figures(folders, out, formats=formats, overwrite=True) if folders else None


def write_full_report(run: Reproduction, ending: str) -> Path | None:
    """Write the report of one image set."""
    folders = _list_results(run, ending)
    return write_report(folders, _place_report(run, ending), overwrite=True) if folders else None


def _place_report(run: Reproduction, ending: str) -> Path:
    return run.out / f"report{ending}.html"


def _list_results(run: Reproduction, ending: str) -> list[Path]:
    return [
        run.result_folder(model, stage)
        for model in run.model_names
        for stage in SETS[ending]
        if run.is_done(model, stage)
    ]


def _collect(run: Reproduction, name: str) -> ModelEvidence | None:
    done = {
        data: STAGES[stage].result.load(run.result_folder(name, stage)).summary
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
