"""The one loop: pictures through a model, rows into sums, sums into a result."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import Tensor

from vitscope.config import AuditConfig, parse_layers
from vitscope.decomposition import (
    LayerRows,
    choose_groups,
    choose_tolerance,
    decompose_layers,
)
from vitscope.errors import UsageError
from vitscope.files.storage import is_result, never, scratch_folder, staged_folder
from vitscope.ledger import ScalarPath, check_rows_finite, cosine
from vitscope.metrics.audit_sums import AuditSums
from vitscope.metrics.jackknife import block_of
from vitscope.models.base import ViTAdapter
from vitscope.models.token_states import name_tokens
from vitscope.pictures.addresses import Source
from vitscope.pictures.images import ImageBatch, ImageSet
from vitscope.results.audit_result import AuditResult
from vitscope.results.finishing import finish_result
from vitscope.results.gallery import GalleryCandidates
from vitscope.results.manifest import Manifest
from vitscope.results.records import RecordWriter
from vitscope.runs.model_run import (
    ModelRun,
    OnProgress,
    PlacedBatch,
    choose_preprocessing,
    describe_model,
)
from vitscope.trace import StreamTrace, TokenStates


def audit(
    vit: ViTAdapter,
    images: ImageSet | Source | Sequence[Source],
    config: AuditConfig | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> AuditResult:
    """Audit a model on a set of pictures.

    Args:
        vit: The model; it runs on the configured device in the configured precision, and is left
            as it was.
        images: A prepared set, or folders, files and lists of paths to make one of with the
            model's own preprocessing. A prepared set is taken as it is, so `limit`, `size`, `seed`
            and `masks` must be left alone.
        config: Settings; the defaults if None.
        out: Folder to write the result into; a temporary one if None.
        overwrite: Whether an earlier result in `out` is replaced.
        on_progress: Called with (pictures done, pictures in all) after every batch.

    Returns:
        The result.

    Raises:
        UsageError: If settings, pictures or folder do not fit.
        ImageReadError: If no picture could be read.
        ImbalanceError: If a ledger does not balance.
        NonFiniteError: If an activation is not finite.
        VitscopeError: If the disk does not take the result.
    """
    config = config or AuditConfig()
    run = AuditRun(vit, make_image_set(vit, images, config), config)
    if out is None:
        with scratch_folder() as folder:
            run.execute(folder, on_progress)
        return AuditResult.own(folder)
    with staged_folder(Path(out), replaces=is_result if overwrite else never) as staging:
        run.execute(staging, on_progress)
    return AuditResult(Path(out))


def make_image_set(
    vit: ViTAdapter, images: ImageSet | Source | Sequence[Source], config: AuditConfig
) -> ImageSet:
    """The pictures of an audit as a set.

    Args:
        vit: The model, whose own preprocessing a set is made with.
        images: As `audit` takes them.
        config: Settings.

    Returns:
        The set.

    Raises:
        UsageError: If a source holds no picture, or a setting is for sources and a prepared set was
            given.
    """
    if isinstance(images, ImageSet):
        for name in ("limit", "size", "seed", "masks"):
            if getattr(config, name) != getattr(AuditConfig(), name):
                raise UsageError(
                    f"{name} is set, but the pictures come as a prepared ImageSet: choose them and "
                    "their size there, or give folders and files"
                )
        return images
    preprocessing = choose_preprocessing(vit, config)
    return ImageSet.from_sources(
        images, preprocessing, limit=config.limit, seed=config.seed, masks=config.masks
    )


class AuditRun:
    """One model over one set of pictures, into one folder."""

    def __init__(self, vit: ViTAdapter, images: ImageSet, config: AuditConfig) -> None:
        """Prepare the run; the model is not touched yet.

        Args:
            vit: The model.
            images: The pictures.
            config: Settings.
        """
        self._layers = vit.select_layers(parse_layers(config.layers))
        self._run = ModelRun(vit, images, config)
        self._vit = vit
        self._images = images
        self._config = config
        self._manifest = self._make_manifest()

    def execute(
        self,
        folder: Path,
        on_progress: OnProgress | None = None,
        *,
        batches: Iterable[ImageBatch] | None = None,
    ) -> None:
        """Take in all pictures and write the result.

        Args:
            folder: Folder to write into.
            on_progress: Called with (pictures done, pictures in all) after every batch.
            batches: The pictures already decoded; they are read if None.

        Raises:
            ImageReadError: If no picture could be read.
            ImbalanceError: If a ledger does not balance.
            NonFiniteError: If an activation is not finite.
        """
        sums = self._manifest.make_sums(folder)
        candidates = GalleryCandidates()
        with ExitStack() as stack:
            stack.enter_context(self._run.placed())
            writers = self._open_writers(folder, stack)
            for batch in self._run.iter_batches(on_progress, batches):
                self._take_batch(batch, sums, writers, candidates)
        finish_result(
            folder,
            self._manifest,
            sums,
            failures=self._run.failures,
            provenance=self._run.make_provenance(),
        )
        if self._config.gallery:
            candidates.write_gallery(folder, self._images, self._config.gallery)

    def _open_writers(self, folder: Path, stack: ExitStack) -> dict[int, RecordWriter]:
        keep = self._config.features == "keep"
        last = self._manifest.last_layer
        writers = {n: RecordWriter(folder, n, last, keep_features=keep) for n in self._layers}
        for writer in writers.values():
            stack.callback(writer.close)
        return writers

    def _take_batch(
        self,
        batch: PlacedBatch,
        sums: AuditSums,
        writers: Mapping[int, RecordWriter],
        candidates: GalleryCandidates,
    ) -> None:
        streams: list[StreamTrace] = []
        with self._run.plain_errors(batch):
            rows = self._decompose(batch, streams, candidates)
            (stream,) = streams
            patch_norms = stream.patch_norms.cpu()
            # No row under study looks at what the last block makes of the patches.
            finite = patch_norms.isfinite().flatten(1).all(dim=-1)
            check_rows_finite(finite, "of patches ", self._manifest.last_layer)
        blocks = [block_of(image_id) for image_id in batch.ids]
        sums.patch_norms.update(patch_norms)
        scalars_of_last = _describe_stream(stream.rows, patch_norms)
        scalars_of_last |= {("covariate", k): v for k, v in batch.covariates.items()}
        for layer, row in rows.items():
            sums.features[layer].update(row.features, blocks)
            scalars = dict(row.scalars)
            if row.tokens is not None:
                sums.tokens[layer].update(row.tokens.states, blocks)
                scalars |= _describe_tokens(row.tokens)
            if layer == self._manifest.last_layer:
                scalars |= scalars_of_last
            identities = list(zip(batch.paths, batch.ids, strict=True))
            writers[layer].append(identities, scalars, row.features, {"bias": row.bias})

    def _decompose(
        self, batch: PlacedBatch, streams: list[StreamTrace], candidates: GalleryCandidates
    ) -> dict[int, LayerRows]:
        wanted = self._config.gallery > 0 and any(map(candidates.wants, batch.ids))
        return decompose_layers(
            self._vit,
            batch.pixels,
            self._layers,
            renormalize=self._config.renormalize,
            tolerance=self._manifest.tolerance,
            cls_term=self._config.cls_term,
            on_stream=streams.append,
            on_maps=partial(candidates.update, batch.indices, batch.ids) if wanted else None,
        )

    def _make_manifest(self) -> Manifest:
        vit, config = self._vit, self._config
        size = self._images.preprocessing.size
        layout = vit.make_layout(*size)
        return Manifest(
            model=describe_model(vit, size, config.dtype),
            weights_hash=self._run.weights_hash,
            layers=self._layers,
            listed_layers=config.layers != "last",
            groups=choose_groups(layout, config.cls_term),
            has_skip=layout.query is not None,
            tokens=() if layout.query is None else name_tokens(layout),
            renormalize=config.renormalize,
            cls_term=config.cls_term,
            dtype="float64" if config.dtype == "float64" else "float32",
            preprocessing=asdict(self._images.preprocessing),
            has_masks=bool(self._images.masks),
            tolerance=choose_tolerance(config.torch_dtype, self._run.device),
        )


def _describe_stream(rows: Tensor | None, patch_norms: Tensor) -> dict[ScalarPath, Tensor]:
    scalars: dict[ScalarPath, Tensor] = {}
    if rows is not None:
        exact = rows.cpu().double()
        for depth in range(exact.shape[1]):
            scalars["layer_similarity", f"{depth:02d}"] = cosine(exact[:, depth], exact[:, -1])
    for depth, highest in enumerate(patch_norms.amax(dim=-1).unbind(dim=1)):
        scalars["highest_patch_norm", f"{depth:02d}"] = highest
    return scalars


def _describe_tokens(tokens: TokenStates) -> dict[ScalarPath, Tensor]:
    norms = zip(tokens.names, tokens.norms.unbind(dim=1), strict=True)
    scalars: dict[ScalarPath, Tensor] = {("token_norm", name): norm for name, norm in norms}
    return scalars | {("token_norm", "patches"): tokens.mean_patch_norm}
