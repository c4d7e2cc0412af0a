"""Remedies measured: a model and edits of it, audited on the same images and compared."""

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitscope.adapters.registry import open_model
from vitscope.config import AuditConfig, combine
from vitscope.engines.local import LocalEngine
from vitscope.errors import DiskError, ImageReadError, ResultError, UsageError
from vitscope.files.printable import printable_path
from vitscope.files.storage import as_folder, is_result, never, scratch_folder, staged_folder
from vitscope.files.workspace import how_to_resume
from vitscope.images.addresses import Images
from vitscope.images.image_set import ImageSet
from vitscope.images.paths import check_given
from vitscope.maps.traced import METHODS as TRACED
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.remedies.remedy import Remedy
from vitscope.remedies.remedy_files import (
    SUFFIX,
    check_saved,
    find_run,
    find_saved,
    save_remedy,
)
from vitscope.results.audit_result import AuditResult
from vitscope.results.gallery import read_gallery
from vitscope.results.remedy_comparison import (
    compare_audits,
    compare_maps,
    find_high_norm,
    measure_drift,
)
from vitscope.results.remedy_result import RemedyResult
from vitscope.results.remedy_text import tell_remedy
from vitscope.results.saved_result import TemporaryFolder, read_runs, write_result
from vitscope.results.schema import Provenance, RemediesSummary
from vitscope.results.schema_remedies import COMPARISON, ORIGINAL, ComparedRemedy
from vitscope.runs.audit_loop import audit_as_lead
from vitscope.runs.audit_run import AuditRun
from vitscope.runs.model_run import ModelRun, OnProgress, check_steady, make_image_set
from vitscope.runs.output import Output
from vitscope.runs.remedy_fit import fit_remedy, read_remedies
from vitscope.runs.remedy_measures import Measure, choose_measures

_INTERRUPTIONS = (KeyboardInterrupt, SystemExit, OSError, DiskError, ImageReadError)
"""What need not happen again if a run is resumed."""

_TIMED_PASSES = 5


def compare_remedies(
    vit: ViTAdapter | nn.Module | str,
    images: ImageSet | Images,
    remedies: Sequence[Remedy | str],
    config: AuditConfig | None = None,
    *,
    one_shot: Images | None = None,
    judge: int = 0,
    preprocessed: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> RemedyResult:
    """Audit a model and edits of it on the same images, and compare them.

    Are the maps cleaner? Are they truer? At what price? Differences are paired by image, with 95 %
    jackknife intervals. What a remedy measures before its edit is measured on these images too.

    Args:
        vit: The model: an adapter, a module, or an id that `load_model` accepts.
        images: Images, as in `audit`.
        remedies: Remedies, or their names with settings such as "mask:tokens=registers"
            (docs/recipes/remedies.md). Each is applied to the original.
        config: Settings; the defaults if None.
        one_shot: Labelled images, as a folder or dataset in `one_shot`: these are classified from
            one example per class, before and after, by the global feature and by what patches
            alone make of it.
        judge: Number of the images, drawn at random, on which maps are judged before and after, as
            `judge` does by default; 0 for none. An image takes hundreds of passes of each model.
        preprocessed: Whether the images are tensors that go to the model unchanged.
        out: Folder for the audits, one each, and for the comparison; a temporary one if None.
        overwrite: Whether earlier results there are replaced.
        resume: Whether to resume an interrupted run into `out`; finished audits are kept.
        on_progress: Called with (images done, total), over all audits and other runs.
        **settings: Settings of `AuditConfig` by name, in addition to `config` or instead of it.

    Returns:
        The comparison.

    Raises:
        UsageError: If settings, images or folder do not fit, or a remedy finds nothing to edit.
        UnsupportedModelError: If a remedy does not apply to the model.
        ImbalanceError: If a ledger of the original or of an edited model does not balance.
        VitscopeError: If the results cannot be written.
    """
    config = combine(AuditConfig, config, settings)
    chosen = read_remedies(remedies)
    if not chosen:
        raise UsageError("no remedy was given: name one or more, such as 'zero'")
    labels = [remedy.label for remedy in chosen]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UsageError(f"the remedy {twice[0]} is given twice: give each once")
    for name, expected in (("features", "keep"), ("shard", None)):
        if getattr(config, name) != expected:
            raise UsageError(f"{name} is set, and a comparison needs {name}={expected!r}")
    target = as_folder(out)
    output = Output.check(target and target / COMPARISON, overwrite=overwrite, resume=resume)
    if target is not None:
        for number, remedy in enumerate(chosen, 1):
            path = target / f"{_name_folder(number, remedy)}{SUFFIX}"
            check_saved(path, overwrite=overwrite or resume)
    check_given(images)
    vit = open_model(vit).hashed()
    for remedy in chosen:
        remedy.check(vit)
    image_set = make_image_set(vit, images, config, preprocessed=preprocessed).without_copies()
    if resume:
        check_steady(image_set.addresses, "resume")
    measures = choose_measures(
        vit,
        image_set,
        config,
        labelled=one_shot,
        num_judged=judge,
        preprocessed=preprocessed,
        resume=resume,
    )
    compare = partial(_Comparison, vit, image_set, config, chosen, measures, output, on_progress)
    if target is None:
        with scratch_folder() as folder:
            compare(folder).execute()
        return RemedyResult(folder / COMPARISON, keeper=TemporaryFolder(folder))
    compare(target).execute()
    return RemedyResult(target / COMPARISON)


@dataclass(frozen=True, eq=False)
class _Comparison:
    """One model, its edits and one set of images."""

    vit: ViTAdapter
    images: ImageSet
    config: AuditConfig
    remedies: Sequence[Remedy]
    measures: Sequence[Measure]
    output: Output  # of the comparison
    on_progress: OnProgress | None
    folder: Path  # of all that is compared

    def execute(self) -> None:
        """Audit the original and each edit, then write the comparison."""
        try:
            self._execute()
        except _INTERRUPTIONS as error:
            if self.output.folder is not None and is_result(self.folder / ORIGINAL):
                where = printable_path(self.folder)
                advice = how_to_resume(resume=self.output.resume)
                error.add_note(f"finished audits are kept in {where}: {advice}")
            raise

    def _execute(self) -> None:
        before = self._audit(self.vit, ORIGINAL, 0, self.config)
        measured = self._measure(self.vit, ORIGINAL, 0)
        gallery = read_gallery(before.folder)
        shown = None if gallery is None else [image.image_id for image in gallery.images]
        run = ModelRun(self.vit, self.images, self.config)
        pixels = next(run.iter_batches(None)).pixels[: run.pass_size]
        compared, runs = [], {ORIGINAL: before.provenance["run"]}
        for number, remedy in enumerate(self.remedies, 1):
            name = _name_folder(number, remedy)
            fitted = self._fit(remedy, name, before)
            config = self.config if fitted.is_traced else _leave_trace_out(self.config)
            original = _time_passes(self.vit, run, pixels)
            with fitted.applied(self.vit) as vit:
                after = self._audit(vit, name, number, config, shown)
                seconds = _time_passes(vit, run, pixels)
                pairs = zip(self.measures, measured, self._measure(vit, name, number), strict=True)
                found = {one.change: one.compare(first, second) for one, first, second in pairs}
            runs[name] = after.provenance["run"]
            compared.append(_compare(before, after, fitted.label, seconds / original, found))
        summary = before.summary
        described = zip(self.measures, measured, strict=True)
        made = RemediesSummary(
            model=summary.model,
            settings=summary.settings,
            preprocessing=summary.preprocessing,
            data=summary.data,
            layer=summary.layer,
            verdict=summary.last.verdict,
            high_norm=find_high_norm(summary),
            remedies=tuple(compared),
            **{one.field: one.describe(result) for one, result in described},
        )
        provenance = run.make_provenance() | {"config": asdict(self.config), "audits": runs}
        self._write(made, before.failures, provenance)

    def _write(
        self, made: RemediesSummary, failures: Sequence[tuple[str, str]], provenance: Provenance
    ) -> None:
        output, target = self.output, self.folder / COMPARISON
        replaces = is_result if output.overwrite or output.resume else never
        earlier, run_id = _find_earlier(target) if output.overwrite else (set[Path](), None)
        with staged_folder(target, replaces=replaces) as staging:
            write_result(staging, made, failures=failures, provenance=provenance)
        folder = self.folder.resolve()
        places = [".", *(measure.place for measure in self.measures)]
        kept = {folder / place / name for place in places for name in provenance["audits"]}
        for path in earlier - kept:
            # Replaced like the comparison that they were part of: a report would show them.
            shutil.rmtree(path)
            measured_for = path.with_name(f"{path.name}{SUFFIX}")
            if run_id is not None and find_run(measured_for) == run_id:
                measured_for.unlink()
            with suppress(OSError):  # still holds others, as the folder of audits does
                path.parent.rmdir()

    def _fit(self, remedy: Remedy, name: str, before: AuditResult) -> Remedy:
        # A resumed run uses what it measured, whose audit may have begun.
        path, run_id = self.folder / f"{name}{SUFFIX}", before.provenance["run"]
        output = self.output
        if output.resume and not remedy.list_measured():
            remedy = find_saved(remedy, path, run_id) or remedy
        fitted = fit_remedy(self.vit, remedy, self.images, self.config)
        if output.folder is not None and fitted.measured_on is not None:
            save_remedy(fitted, path, overwrite=output.overwrite or output.resume, run=run_id)
        return fitted

    def _audit(
        self,
        vit: ViTAdapter,
        name: str,
        number: int,
        config: AuditConfig,
        shown: Sequence[str] | None = None,
    ) -> AuditResult:
        config = replace(config, limit=None, size=None, draft=False, masks=None, seed=0)
        make_run = partial(AuditRun, vit, self.images, config, shown=shown)
        output = replace(self.output, folder=self.folder / name)
        return audit_as_lead(output, make_run, LocalEngine(), partial(self._tell, number, 0))

    def _measure(self, vit: ViTAdapter, name: str, number: int) -> list[Any]:
        found: list[Any] = []
        done = len(self.images)
        for measure in self.measures:
            result = measure.run(
                vit,
                out=self.folder / measure.place / name,
                overwrite=self.output.overwrite,
                resume=self.output.resume,
                on_progress=partial(self._tell, number, done),
            )
            found.append(result)
            done += measure.num_images
        return found

    def _tell(self, number: int, before: int, done: int, _: int) -> None:
        if self.on_progress is not None:
            each = len(self.images) + sum(measure.num_images for measure in self.measures)
            self.on_progress(number * each + before + done, (len(self.remedies) + 1) * each)


def _leave_trace_out(config: AuditConfig) -> AuditConfig:
    traced = {method.name for method in TRACED}
    maps = [name for name in config.maps or () if name not in traced]
    return replace(config, trace=0, maps=maps or None)


def _name_folder(number: int, remedy: Remedy) -> str:
    return f"{number:02d}-{remedy.label.partition(':')[0]}"


def _find_earlier(comparison: Path) -> tuple[set[Path], str | None]:
    """Results of an earlier comparison, and the run of its first audit."""
    try:
        earlier = RemedyResult.load(comparison)
        return earlier.list_results(), read_runs(earlier).get(ORIGINAL)
    except ResultError:  # none, or one of another version: its audits stay
        return set(), None


def _time_passes(vit: ViTAdapter, run: ModelRun[AuditConfig], pixels: Pixels) -> float:
    # Least seconds of a forward pass: other work on the machine only adds to them.
    # On a CPU the processor's seconds, in which other programs have no part.
    clock = time.process_time if pixels.device.type == "cpu" else time.perf_counter
    seconds = []
    with run.placed(vit), torch.no_grad(), vit.undisturbed():
        for _ in range(_TIMED_PASSES):
            started = clock()
            with vit.autocast.applied(pixels.device):
                vit.run(pixels.to(vit.parameter.dtype)).cpu()
            seconds.append(clock() - started)
    return min(seconds)


def _compare(
    before: AuditResult, after: AuditResult, edit: str, ratio: float, measured: Mapping[str, Any]
) -> ComparedRemedy:
    changes, drift = compare_audits(before, after), measure_drift(before, after)
    first, second = before.summary.trace, after.summary.trace
    return ComparedRemedy(
        edit=edit,
        folder=after.folder.name,
        verdict=after.summary.last.verdict,
        text=tell_remedy(changes, drift),
        changes=changes,
        drift=drift,
        maps=compare_maps(before, after),
        traces=None if first is None else (first, second),
        time_ratio=ratio,
        **measured,
    )
