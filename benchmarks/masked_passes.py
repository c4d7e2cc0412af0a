"""What does an audit cost compared with three forward passes, two of them masked?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.audits import make_config, time_audit
from benchmarks.images import decoded_images
from benchmarks.measuring import compare
from benchmarks.page import Section, Table
from benchmarks.settings import Settings
from benchmarks.timm_models import load_dinov2_reg
from vitscope import decompose, restrict
from vitscope.images.image_set import ImageBatch
from vitscope.ledger import merge_groups
from vitscope.models.base import Pixels, ViTAdapter


@dataclass(frozen=True)
class _Plan:
    model: str = "small"
    batch_size: int = 8
    batches: int = 7


_TINY = _Plan(model="tiny", batch_size=2, batches=2)


def measure(settings: Settings) -> Section:
    """Time of the audit and of the passes; difference of their outputs.

    Args:
        settings: The run's settings.

    Returns:
        One table.
    """
    plan = _TINY if settings.tiny else _Plan()
    audited, masked = load_dinov2_reg(plan.model), load_dinov2_reg(plan.model)

    def run_passes(batch: ImageBatch) -> None:
        run_masked(masked, batch.pixels)

    config = make_config(plan.batch_size, renormalize=True, cls_term="registers")
    count = plan.batches * plan.batch_size
    with decoded_images(
        audited, count, batch_size=plan.batch_size, sources=settings.images
    ) as images:
        times = time_audit(audited, images, config, {"passes": run_passes})
        differences = compare_outputs(masked, images.batches[0].pixels)
    ratio = compare(times.others["passes"][1:], times.audit[1:])
    rows = [["three passes, seconds / audit's", str(ratio)]]
    rows += [
        [f"{name}: difference of the outputs", f"{value:.1e}"]
        for name, value in differences.items()
    ]
    return Section(
        title="An audit compared with three masked forward passes",
        how=(
            f"timm's dinov2-{plan.model}-reg, batches of {plan.batch_size}, {plan.batches - 1} "
            "rounds: one audit with `--renormalize` and `--cls-term registers` against three "
            "forward passes, one of the full model and two with an attention mask in the last "
            "block that keeps patches only, or registers and [CLS] only. The audit's readout "
            "`embedding` is the same number: given is the largest relative difference over a batch."
        ),
        tables=[Table(("", ""), rows)],
    )


def run_masked(vit: ViTAdapter, pixels: Pixels) -> dict[str, Tensor]:
    """Three passes of the model.

    Args:
        vit: A model of timm with registers.
        pixels: Preprocessed images.

    Returns:
        The global feature of the full model, and with patches or registers and [CLS] alone.
    """
    layout = vit.make_layout(*pixels.shape[-2:])
    positions = layout.groups["patches"]
    patches = torch.zeros(1, 1, 1, layout.num_tokens, dtype=torch.bool)
    patches[..., positions.start : positions.stop] = True
    kept = {"full": None, "patches": patches, "registers": ~patches}
    outputs = {}
    for name, mask in kept.items():
        with torch.inference_mode(), _masked(vit.module.blocks[-1], mask):
            outputs[name] = vit.run(pixels)
    return outputs


def compare_outputs(vit: ViTAdapter, pixels: Pixels) -> dict[str, float]:
    """How far the masked passes are from the ledger's restricted outputs.

    Args:
        vit: A model of timm with registers.
        pixels: Preprocessed images.

    Returns:
        The largest relative difference over the images, by what is kept.
    """
    ledger = merge_groups(decompose(vit, pixels), "cls", into="registers")
    ours = restrict(vit, ledger, renormalize=True)["embedding"]
    passes = run_masked(vit, pixels)
    return {
        name: float(((output - ours[name]).norm(dim=-1) / output.norm(dim=-1)).max())
        for name, output in passes.items()
    }


@contextmanager
def _masked(block: torch.nn.Module, mask: Tensor | None) -> Iterator[None]:
    hook = block.attn.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "attn_mask": mask}), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()
