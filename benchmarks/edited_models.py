"""What does an edited model cost in an audit, compared with the original?"""

import time
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.images import decoded_images
from benchmarks.measuring import alternate, compare
from benchmarks.models import load_dinov2
from benchmarks.page import Section, Table
from benchmarks.settings import Plan, Settings
from vitscope.decomposition import decompose_layers
from vitscope.ledger import balance_tolerance
from vitscope.maps.passes import run_blocks
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.remedies.registers import TestTimeRegisters
from vitscope.remedies.registry import parse_remedy

_EDITS = (
    "test-time-registers:depth=1,threshold=0.001",
    "zero:tokens=cls",
    "shuffle:tokens=cls",
    "skip",
    "mask:tokens=cls",
    "unread:tokens=cls",
    "position-mean",
)
"""With random weights any neurons and patches do: the work is the same."""


_FULL = Plan("small", 224, images=8, batch_size=8, rounds=9)
_TINY = Plan("tiny", 32, images=2, batch_size=2, rounds=2)


def measure(settings: Settings) -> Section:
    """Time an audit's pass through edited models against that through the original."""
    plan = _TINY if settings.tiny else _FULL
    vit, twin = load_dinov2(plan.model), load_dinov2(plan.model)
    with decoded_images(vit, plan, settings.images) as decoded:
        pixels = decoded.batches[0].pixels
        rows = list(_time_edits(vit, twin, pixels, plan.rounds))
    return Section(
        title="Edited models",
        how=(
            f"dinov2-{plan.model}, {plan.size} px, a batch of {plan.images} images, {plan.rounds} "
            "rounds. An audit's pass, its ledger included, through the edited model and through "
            "the original in turn, within one context, as an audit has it; seconds of the process. "
            "The search for neurons is compared with a forward pass."
        ),
        tables=[Table(("edit", "edited / original"), rows)],
    )


def _time_edits(
    vit: ViTAdapter, twin: ViTAdapter, pixels: Pixels, rounds: int
) -> Iterator[list[str]]:
    # A model that is being edited does not run as the original: its twin does not share the module.
    def read() -> list[Pixels]:
        return [pixels]

    for text in _EDITS:
        remedy = parse_remedy(text).fitted(twin, read)
        with remedy.applied(twin) as edited:
            seconds = alternate(
                {
                    "original": partial(_audit, vit, pixels),
                    "edited": partial(_audit, edited, pixels),
                },
                rounds,
                clock=time.process_time,
            )
        yield [remedy.label, str(compare(seconds["edited"], seconds["original"]))]
    last = len(vit.encoder_blocks) - 1
    search = TestTimeRegisters(depth=1, threshold=0.001, highest=last).measure
    seconds = alternate(
        {
            "forward": partial(_run, vit, pixels),
            "search": partial(search, vit, read),
        },
        rounds,
        clock=time.process_time,
    )
    name = f"search for the neurons of {TestTimeRegisters.name}"
    yield [name, str(compare(seconds["search"], seconds["forward"]))]


def _run(vit: ViTAdapter, pixels: Pixels) -> None:
    with torch.inference_mode():
        for part in torch.split(pixels, 4):  # as the search runs them
            run_blocks(vit, part)


def _audit(vit: ViTAdapter, pixels: Pixels) -> None:
    tolerance = balance_tolerance(vit.dtype, pixels.device)
    layers = vit.select_layers("last")
    decompose_layers(vit, pixels, layers, renormalize=False, tolerance=tolerance)
