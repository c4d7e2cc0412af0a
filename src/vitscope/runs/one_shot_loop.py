"""One-shot classification: labelled images go through a model once, then pairs are drawn."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from vitscope.adapters.registry import open_model
from vitscope.config import OneShotConfig, combine
from vitscope.decomposition import LayerRows, decompose_layers
from vitscope.errors import VitscopeError
from vitscope.extras import require_package
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.printable import printable_path
from vitscope.files.storage import scratch_folder, staged_folder
from vitscope.files.tensor_files import RowFiles
from vitscope.files.workspace import Plan
from vitscope.images.addresses import Images
from vitscope.images.covariates import NARROW, note_narrow
from vitscope.images.image_set import ImageBatch
from vitscope.images.labels import LabelledImages, find_classes
from vitscope.ledger import balance_tolerance, check_rows_finite
from vitscope.metrics.one_shot import (
    CLASSIFIERS,
    chance_accuracy,
    compute_accuracy,
    draw_pairs,
    group_images,
)
from vitscope.models.base import ViTAdapter
from vitscope.results.one_shot_result import (
    DrawScore,
    OneShotResult,
    average_scores,
    write_draws,
)
from vitscope.results.saved_result import write_result
from vitscope.results.schema import OneShotData, OneShotSummary, Settings
from vitscope.results.schema_numbers import Chance
from vitscope.runs.digests import digest_sets
from vitscope.runs.model_run import ModelRun, OnProgress, check_steady, make_image_set
from vitscope.runs.output import Output

Outputs = dict[str, dict[str, Float[np.ndarray, "*image dim"]]]
"""Readout -> part -> one row per image."""

_KINDS = ("term", "values", "attention", "block", "embedding")

_SETTINGS = ("draws", "classifier", "limit", "renormalize", "cls_term")


def one_shot(
    vit: ViTAdapter | nn.Module | str,
    images: Images,
    config: OneShotConfig | None = None,
    *,
    labels: Iterable[object] | None = None,
    preprocessed: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    on_draw: OnProgress | None = None,
    **settings: Any,
) -> OneShotResult:
    """Classify images from one training image per class, with the full output and parts of it.

    Each draw takes a random training image and a different random test image of every class. A
    classifier is trained on the full outputs of the training images and tested on the full, the
    keep-only and the skip-only outputs of the test images (docs/method.md).

    Args:
        vit: The model: an adapter, a module, or an id that `load_model` accepts. It runs on the
            configured device in the configured precision, and is left as it was.
        images: A folder with one subfolder per class, a labelled dataset, or any images
            (docs/data.md) with `labels`.
        config: Settings; the defaults if None.
        labels: The class of each image, in order; those of the folder or dataset if None.
        preprocessed: Whether the images are tensors that go to the model unchanged.
        out: Folder for the result; a temporary one if None.
        overwrite: Whether an earlier result in `out` is replaced.
        resume: Whether a finished result of the same run in `out` is kept.
        on_progress: Called with (images done, total) after every pass.
        on_draw: Called with (draws done, total) after every draw.
        **settings: Settings of `OneShotConfig` by name, in addition to `config` or instead of it.

    Returns:
        The result.

    Raises:
        UsageError: If settings, images or folder do not fit.
        ImageReadError: If no image could be read.
        ImbalanceError: If a ledger does not balance.
        NonFiniteError: If an activation is not finite.
        VitscopeError: If fewer than two classes remain without unreadable images, or the result
            cannot be written.

    Source:
        Lappe & Giese (NeurIPS 2025), Fig. 3b.
    """
    config = combine(OneShotConfig, config, settings)
    if config.classifier != "nearest":
        require_package("sklearn", "scikit-learn", needed_by=f"classifier {config.classifier!r}")
    output = Output.check(out, overwrite=overwrite, resume=resume)
    classes = find_classes(images, labels, preprocessed=preprocessed)
    vit = open_model(vit)
    run = _OneShotRun(vit, classes.limited(config.limit, config.seed), config)
    if output.folder is None:
        with scratch_folder() as scratch:
            run.execute(scratch, on_progress, on_draw)
        return OneShotResult.own(scratch)
    if resume:
        check_steady(run.images.addresses, "resume")
    if not output.has(OneShotResult, run.plan):
        with staged_folder(output.folder, replaces=output.replaces, rescued=True) as staging:
            run.execute(staging, on_progress, on_draw)
    return OneShotResult(output.folder)


@dataclass(frozen=True, eq=False)
class _Images:
    """The readable images, with their features."""

    labels: list[str]
    ids: list[str]
    features: dict[str, Float[np.ndarray, "image dim"]]
    bias: Float[np.ndarray, " dim"]

    def make_outputs(self, places: Int64[np.ndarray, "set class"]) -> Outputs:
        """Full and restricted outputs in every readout, from the same features as an audit."""
        kinds: Outputs = {kind: {} for kind in _KINDS}
        for name, rows in self.features.items():
            kind, part = name.split("/")
            kinds[kind][part] = rows[places].astype(np.float64)
        terms, values = kinds["term"], kinds["values"]
        bias = self.bias.astype(np.float64)
        groups = {name: term for name, term in terms.items() if name != "skip"}
        total = np.sum(list(groups.values()), axis=0) + bias
        # Renormalised outputs do not add up to the full ones, so all of them are stored.
        kept = kinds["attention"] or {name: term + bias for name, term in groups.items()}
        return {
            "attention": {"full": total, **kept},
            "residual": {"full": total + terms.get("skip", 0.0), **terms},
            "values": {"full": np.sum(list(values.values()), axis=0), **values},
            "block": kinds["block"],
            "embedding": kinds["embedding"],
        }


class _OneShotRun(ModelRun[OneShotConfig]):
    """One model over labelled images."""

    def __init__(self, vit: ViTAdapter, given: LabelledImages, config: OneShotConfig) -> None:
        self._labels = [label for label, images in given.classes.items() for _ in images]
        images, preprocessed = given.list_images(), given.preprocessed
        image_set = make_image_set(vit, images, config, preprocessed=preprocessed)
        super().__init__(vit, replace(image_set, described=False), config)
        self._given = given
        self._narrow: list[str] = []

    @cached_property
    def plan(self) -> Plan:
        """All that the numbers depend on."""
        return self.make_plan(
            OneShotSummary.KIND,
            **digest_sets(images=self.images),
            labels=_digest(self._labels),
            **{name: getattr(self.config, name) for name in _SETTINGS},
        )

    def execute(
        self, folder: Path, on_progress: OnProgress | None, on_draw: OnProgress | None
    ) -> None:
        with plain_disk_errors(folder):
            features = TemporaryDirectory(prefix="vitscope-features-", dir=folder)
        with features as scratch:
            images = self._extract(Path(scratch), on_progress)
            self._finish(folder, images, on_draw)

    def _finish(self, folder: Path, images: _Images, on_draw: OnProgress | None) -> None:
        groups = group_images(images.labels, images.ids)
        classes = {label: members for label, members in groups.items() if len(members) > 1}
        if len(classes) < 2:
            raise VitscopeError(
                f"of {len(self._given.classes)} classes {len(classes)} hold two different "
                f"readable images ({len(self.failures)} images could not be read): at "
                "least two such classes are needed"
            )
        pairs = draw_pairs(list(classes.values()), self.config.draws, self.config.seed)
        scores: list[DrawScore] = []
        # Many small products: on a busy machine BLAS threads that wait for each other make them a
        # hundred times slower, and the number of threads would change the last digits.
        with threadpool_limits(limits=1, user_api="blas"):
            for draw, pair in enumerate(pairs):
                scores += self._classify(draw, images.make_outputs(pair.T))
                if on_draw is not None:
                    on_draw(draw + 1, len(pairs))
        top1, top5 = chance_accuracy(len(classes))
        summary = OneShotSummary(
            model=self.describe_model(),
            settings=Settings(renormalize=self.config.renormalize, cls_term=self.config.cls_term),
            preprocessing=self.describe_preprocessing(),
            data=self._describe_data(images, classes),
            layer=self.vit.last_layer,
            draws=len(pairs),
            readout="attention",
            accuracy=average_scores(scores),
            chance=Chance(top1=top1, top5=top5),
        )
        write_draws(folder, scores)
        write_result(
            folder,
            summary,
            failures=self.failures,
            provenance={
                **self.make_provenance(),
                "plan": self.plan,
                "drawn": _digest(images.ids[place] for place in pairs.flat),
            },
        )

    def _extract(self, scratch: Path, on_progress: OnProgress | None) -> _Images:
        labels: list[str] = []
        ids: list[str] = []
        bias = np.empty(0)  # the same for every image
        files = RowFiles(scratch)
        with self.placed():

            def take(batch: ImageBatch) -> None:
                nonlocal bias
                features, bias = self._decompose(batch)
                files.append(features)
                names = self.name_images(batch)
                ranges = zip(names, batch.level_ranges, strict=True)
                self._narrow += [name for name, part in ranges if part < NARROW]
                labels.extend(self._labels[index] for index in batch.indices)
                ids.extend(batch.ids)

            for batch in self.iter_batches(on_progress):
                self.apply(batch, take)
        self.check_some_read()
        self.failures += self._given.failures
        return _Images(labels, ids, files.open_rows(), bias)

    def _decompose(self, batch: ImageBatch) -> tuple[dict[str, np.ndarray], np.ndarray]:
        layer = self.vit.last_layer
        with self.plain_errors(batch):
            row = decompose_layers(
                self.vit,
                batch.pixels,
                [layer],
                renormalize=self.config.renormalize,
                tolerance=balance_tolerance(self.config.torch_dtype, self.device),
                cls_term=self.config.cls_term,
            )[layer]
            features = row.features | _keep_skip_alone(self.vit, row)
        wanted = {n: f for n, f in features.items() if n.partition("/")[0] in _KINDS}
        return {name: rows.numpy() for name, rows in wanted.items()}, row.bias.numpy()

    def _classify(self, draw: int, outputs: Outputs) -> Iterator[DrawScore]:
        chosen = self.config.classifier
        for classifier in CLASSIFIERS if chosen == "both" else (chosen,):
            for readout, parts in outputs.items():
                score = CLASSIFIERS[classifier](parts["full"][0])
                for part, (_, test) in parts.items():
                    accuracy = compute_accuracy(score(test))
                    yield DrawScore(draw, classifier, readout, part, accuracy)

    def _describe_data(self, images: _Images, classes: Mapping[str, Sequence[int]]) -> OneShotData:
        num_read = sum(label in classes for label in images.labels)
        num_images = sum(len(members) for members in classes.values())
        left_out = set(self._given.classes) - set(classes)
        dropped = sorted([*self._given.too_small, *left_out])
        return OneShotData(
            num_images=num_images,
            num_failed=len(self.failures),
            num_repeated=num_read - num_images,
            notes=(*self._given.notes, *note_narrow(self._narrow, len(images.labels))),
            num_classes=len(classes),
            num_unlabelled=self._given.num_unlabelled,
            dropped_classes=tuple(printable_path(Path(label)) for label in dropped),
        )


def _digest(names: Iterable[str]) -> str:
    return blake2b("\0".join(names).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _keep_skip_alone(vit: ViTAdapter, rows: LayerRows) -> dict[str, Tensor]:
    # Block output and global feature of skip + bias, as if no token were attended to.
    if "term/skip" not in rows.features:
        return {}
    block = vit.finish_block(vit.last_layer, rows.features["term/skip"] + rows.bias)
    found = {"block/skip": block, "embedding/skip": vit.embed(block)}
    for name, part in found.items():
        check_rows_finite(part.isfinite().all(dim=-1), f"of {name} ", vit.last_layer)
    return found
