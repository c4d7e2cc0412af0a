"""An audit: images are cut into shards, shards become parts on disk, parts a result."""

import shutil
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from vitscope.adapters.registry import open_model
from vitscope.config import AuditConfig, check_kind, combine
from vitscope.engines.local import Engine, LocalEngine
from vitscope.errors import DiskError, ImageReadError, UsageError
from vitscope.files.printable import printable_path
from vitscope.files.storage import as_folder
from vitscope.files.workspace import (
    Plan,
    Workspace,
    describe_difference,
    pack_folder,
    place_of,
    told_of_kept,
    unpack_folder,
)
from vitscope.images.addresses import Images
from vitscope.images.image_set import ImageSet
from vitscope.images.paths import check_given
from vitscope.models.base import ViTAdapter
from vitscope.results.audit_result import AuditResult
from vitscope.results.finishing import read_ids
from vitscope.results.mergeable import find_repeated
from vitscope.runs.audit_run import AuditRun
from vitscope.runs.model_run import OnProgress, check_steady, make_image_set
from vitscope.runs.output import Output, read_provenance
from vitscope.runs.part_writer import PartWriter, Shard

MakeRun = Callable[[Plan | None], AuditRun]

_MOST_ROUNDS = 4
"""Rounds of making parts: all, then those with copies, then those found damaged."""


def audit(
    vit: ViTAdapter | nn.Module | str,
    images: ImageSet | Images,
    config: AuditConfig | None = None,
    *,
    preprocessed: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    engine: Engine | None = None,
    on_progress: OnProgress | None = None,
    on_trace: OnProgress | None = None,
    **settings: Any,
) -> AuditResult:
    """Audit a model on a set of images.

    Args:
        vit: The model: an adapter, a module, or an id that `load_model` accepts. It runs on the
            configured device in the configured precision, and is left as it was.
        images: Folders, files, URLs, PIL images, arrays, tensors, datasets, or several of these
            (docs/data.md), prepared with the model's own preprocessing; or an `ImageSet`, used as
            it is, so `limit`, `size`, `draft`, `seed` and `masks` must keep their defaults.
        config: Settings; the defaults if None.
        preprocessed: Whether the images are tensors that go to the model unchanged.
        out: Folder for the result; a temporary one if None.
        overwrite: Whether an earlier result in `out`, finished or not, is replaced.
        resume: Whether to resume an interrupted run into `out`; a finished result is kept. The
            result is bit-identical to that of an uninterrupted run.
        engine: What processes the shards: this process if None, the ranks of `torchrun`, or a Ray
            cluster.
        on_progress: Called with (images done, total): after every pass if this process does all
            the work, otherwise after every shard.
        on_trace: Called with (images traced, total), at the end of a run with `trace`.
        **settings: Settings of `AuditConfig` by name, in addition to `config` or instead of it.

    Returns:
        The result.

    Raises:
        UsageError: If settings, images or folder do not fit.
        ImageReadError: If no image could be read.
        ImbalanceError: If a ledger does not balance.
        NonFiniteError: If an activation is not finite.
        VitscopeError: If the result cannot be written.
    """
    config = combine(AuditConfig, config, settings)
    engine = LocalEngine() if engine is None else engine
    check_kind("engine", engine, Engine, "an engine such as RayEngine(), or None for this process")
    if out is None and (resume or not isinstance(engine, LocalEngine)):
        raise UsageError("no folder was given for the result: resume and engines need `out`")
    locate = Output.check if engine.is_lead else Output
    output = locate(as_folder(out), overwrite=overwrite, resume=resume)
    check_given(images)
    vit = open_model(vit)
    image_set = make_image_set(vit, images, config, preprocessed=preprocessed).without_copies()
    if resume:
        check_steady(image_set.addresses, "resume")

    make_run = partial(AuditRun, vit, image_set, config)
    if engine.is_lead:
        return audit_as_lead(output, make_run, engine, on_progress, on_trace)
    assert output.folder is not None
    return _audit_beside_lead(output.folder, make_run, engine, resume=resume)


def _make_worker(
    writer: PartWriter, workspace: Workspace | None, on_progress: OnProgress | None
) -> Callable[[Shard], dict[str, bytes] | None]:
    # Turns shards into parts, in a shared workspace or packed to be sent.
    if workspace is None:  # this process has the model for itself
        writer.vit.module.to(writer.config.resolve_device())

    def work(shard: Shard) -> dict[str, bytes] | None:
        if workspace is not None:
            with workspace.new_part(shard.number) as folder:
                writer.write(folder, shard, on_progress=on_progress)
            return None
        with TemporaryDirectory(prefix="vitscope-part-") as name:
            writer.write(Path(name), shard, on_progress=on_progress)
            return pack_folder(Path(name))

    return work


def audit_as_lead(
    output: Output,
    make_run: MakeRun,
    engine: Engine,
    on_progress: OnProgress | None,
    on_trace: OnProgress | None = None,
) -> AuditResult:
    """Run, resume or replace an audit; `make_run` takes an earlier run's plan."""
    run = _resume(output, make_run)

    def execute(folder: Path, workspace: Workspace) -> None:
        _check_before(run, workspace)
        engine.barrier()
        _make_all_parts(run, workspace, engine, on_progress)
        try:
            run.finish(folder, _list_parts(run, workspace), workspace.run_id, on_trace=on_trace)
        except ImageReadError:  # no image at all: nothing to resume
            workspace.clear()
            raise

    total = f"{len(run.shards)} shards"
    result = output.write(AuditResult, run.plan, total, execute, rescued=False)
    engine.barrier()
    return result


def _resume(output: Output, make_run: MakeRun) -> AuditRun:
    target = output.folder
    earlier = _find_earlier_plan(target) if target is not None and output.resume else None
    run = make_run(earlier)
    if earlier is None or target is None:
        return run
    if output.overwrite and describe_difference(earlier, run.plan) is not None:
        return make_run(None)  # nothing is resumed: drop the machine's earlier choices
    if run.behaviour.unknown:
        raise UsageError(
            f"{printable_path(target)} cannot be resumed: whether the model is the same cannot be "
            f"verified, for {run.behaviour.unknown[0]} is not known; give overwrite=True to start "
            "again"
        )
    return run


def _audit_beside_lead(
    target: Path, make_run: MakeRun, engine: Engine, *, resume: bool
) -> AuditResult:
    engine.barrier()
    workspace = Workspace(place_of(target))
    plan = workspace.read_plan()
    if plan is not None:  # otherwise the lead found it finished
        run = make_run(plan)
        if (difference := describe_difference(plan, run.plan)) is not None:
            raise UsageError(
                f"this process differs from the leading one ({difference}): give all of "
                "them the same images, model, versions and kind of device"
            )
        with told_of_kept(workspace, f"{len(run.shards)} shards", resume=resume, leads=False):
            _make_all_parts(run, workspace, engine, None)
            engine.barrier()
    return AuditResult(target)


def _find_earlier_plan(target: Path) -> Plan | None:
    workspace = Workspace(place_of(target))
    if workspace.find_done():
        return workspace.read_plan()
    plan = read_provenance(AuditResult, target).get("plan")
    return plan if isinstance(plan, dict) else None


def _make_all_parts(
    run: AuditRun, workspace: Workspace, engine: Engine, on_progress: OnProgress | None
) -> None:
    most = 0

    def tell(done: int, total: int) -> None:
        nonlocal most
        if on_progress is not None and done > most:
            on_progress(done, total)
        most = max(most, done)

    for _ in range(_MOST_ROUNDS):
        if engine.is_lead:
            _remove_unfit(run, workspace)
        engine.barrier()
        if not _make_parts(run, workspace, engine, tell):
            return
    raise DiskError(
        f"parts in {printable_path(workspace.folder)} change after they were written: check the "
        "disk, or choose a folder elsewhere"
    )


def _check_before(run: AuditRun, workspace: Workspace) -> None:
    # What would otherwise fail at the end.
    run.check_traceable()
    done = workspace.find_done()
    needed = run.count_bytes([shard for shard in run.shards if shard.number not in done])
    free = shutil.disk_usage(workspace.folder).free
    if needed > free:
        raise DiskError(
            f"{printable_path(workspace.folder)} takes at least {needed / 1e9:.1f} GB until the "
            f"run is finished, where {free / 1e9:.1f} GB are free: make room, or audit with "
            "features dropped, fewer layers, or one shard after another"
        )


def _remove_unfit(run: AuditRun, workspace: Workspace) -> None:
    # Once all parts exist, remove those that are damaged or repeat images of an earlier part. They
    # are made again, without these images.
    numbers = range(len(run.shards))
    if not workspace.find_done().issuperset(numbers):
        return
    damaged = [number for number in numbers if not workspace.is_whole(number)]
    for number in damaged:
        workspace.remove_part(number)
    if damaged:
        return
    found = find_repeated([read_ids(part) for part in _list_parts(run, workspace)])
    repeated = {number: ids for number, ids in zip(numbers, found, strict=True) if ids}
    if not repeated:
        return
    copies = dict(workspace.read_copies())
    for number, ids in repeated.items():
        workspace.remove_part(number)
        copies[number] = copies.get(number, frozenset()).union(ids)
    workspace.write_copies(copies)


def _make_parts(
    run: AuditRun, workspace: Workspace, engine: Engine, on_progress: OnProgress
) -> bool:
    shards = run.shards
    done, copies = workspace.find_done(), workspace.read_copies()
    engine.barrier()  # else a slow rank would already see the first parts of a quick one as done
    sizes = {shard.number: len(shard.images) for shard in shards}
    todo = [
        replace(shard, elsewhere=copies.get(shard.number, frozenset()))
        for shard in shards
        if shard.number not in done
    ]

    def tell(within: int = 0, _: int = 0) -> None:
        finished = within + sum(sizes[number] for number in workspace.find_done())
        on_progress(finished, len(run.images))

    make_worker = partial(
        _make_worker,
        run.make_writer(),
        workspace if engine.shares_files else None,
        tell if isinstance(engine, LocalEngine) else None,
    )
    tell()
    here = run.placed() if engine.shares_files and todo else nullcontext()
    with here, closing(engine.run(make_worker, todo)) as results:
        for index, files in results:
            if files is not None:
                with workspace.new_part(todo[index].number) as folder:
                    unpack_folder(files, folder)
            tell()
    tell()  # includes the parts of other ranks
    return bool(todo)


def _list_parts(run: AuditRun, workspace: Workspace) -> list[Path]:
    return [workspace.part(shard.number) for shard in run.shards]
