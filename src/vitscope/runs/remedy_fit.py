"""Remedies by name, measured on images and applied to a model."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from vitscope.config import AuditConfig, RunConfig, check_kind
from vitscope.errors import UsageError
from vitscope.images.addresses import Images
from vitscope.images.image_set import ImageSet
from vitscope.maps.checks import make_untraced
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.remedies.remedy import ReadImages, Remedy
from vitscope.remedies.remedy_files import open_remedy
from vitscope.runs.model_run import ModelRun, OnProgress, make_image_set


def read_remedies(remedies: Sequence[Remedy | str]) -> list[Remedy]:
    """Remedies by name or as they are."""
    if isinstance(remedies, str | Remedy):
        raise UsageError(f"remedies was given as {remedies!r}: expected a list, [{remedies!r}]")
    found = []
    for remedy in remedies:
        check_kind("a remedy", remedy, (str, Remedy), "a name such as 'zero', or a remedy")
        found.append(open_remedy(remedy) if isinstance(remedy, str) else remedy)
    return found


@contextmanager
def edited(
    vit: ViTAdapter, remedies: Sequence[Remedy | str], images: ImageSet | Images, config: RunConfig
) -> Iterator[ViTAdapter]:
    """The adapter of a model with remedies applied in order, each measured on images first."""
    chosen = read_remedies(remedies)
    if isinstance(config, AuditConfig) and config.trace:
        for remedy in chosen:
            if not remedy.is_traced:
                raise make_untraced(remedy.label)
    with ExitStack() as stack:
        for remedy in chosen:
            image_set = make_image_set(vit, images, config).without_copies()
            fitted = fit_remedy(vit, remedy, image_set, config)
            vit = stack.enter_context(fitted.applied(vit))
        yield vit


def fit_remedy(
    vit: ViTAdapter,
    remedy: Remedy,
    images: ImageSet,
    config: RunConfig,
    on_progress: OnProgress | None = None,
) -> Remedy:
    """Measure on images what a remedy needs, unless it was measured before."""
    with _reading(vit, images, config, on_progress) as read:
        return remedy.fitted(vit, read)


def find_remedy(
    vit: ViTAdapter,
    remedy: Remedy,
    images: ImageSet,
    config: RunConfig,
    on_progress: OnProgress | None = None,
) -> tuple[Remedy, list[str]]:
    """Measure on images what a remedy needs, and tell what was found."""
    with _reading(vit, images, config, on_progress) as read:
        fitted = remedy.fitted(vit, read)
        told = [measured.tell() for measured in fitted.list_measured().values()]
        return fitted, [*told, *filter(None, [fitted.examine(vit, read)])]


@contextmanager
def _reading(
    vit: ViTAdapter, images: ImageSet, config: RunConfig, on_progress: OnProgress | None
) -> Iterator[ReadImages]:
    # The model is ready for what is measured on it.
    run = ModelRun(vit, images, config)

    def read() -> Iterator[Pixels]:
        for batch in run.iter_batches(on_progress):
            done = 0
            for pixels in torch.split(batch.pixels, run.pass_size or len(batch.pixels)):
                yield pixels
                done += len(pixels)
                run.tell_progress(done)

    with run.placed():
        yield read
