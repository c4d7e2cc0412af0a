"""What does an audit cost compared with three forward passes, two of them masked?"""

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from benchmarks.audits import make_config, time_audit
from benchmarks.images import decoded_images
from benchmarks.measuring import compare
from benchmarks.page import Section, Table
from benchmarks.settings import Plan, Settings
from benchmarks.timm_models import load_dinov2_reg
from vitscope import decompose, restrict
from vitscope.images.image_set import ImageBatch
from vitscope.ledger import merge_groups
from vitscope.models.base import Pixels, ViTAdapter

_FULL = Plan("small", images=7 * 8, batch_size=8)
_TINY = Plan("tiny", images=2 * 2, batch_size=2)


def measure(settings: Settings) -> Section:
    """Time of the audit and of the passes; difference of their outputs."""
    plan = _TINY if settings.tiny else _FULL
    audited, masked = load_dinov2_reg(plan.model), load_dinov2_reg(plan.model)

    def run_passes(batch: ImageBatch) -> None:
        run_masked(masked, batch.pixels)

    config = make_config(plan.batch_size, renormalize=True, cls_term="registers")
    with decoded_images(audited, plan, settings.images) as images:
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
            f"timm's dinov2-{plan.model}-reg, batches of {plan.batch_size}, {plan.num_batches - 1} "
            "rounds: one audit with `--renormalize` and `--cls-term registers` against three "
            "forward passes, one of the full model and two with an attention mask in the last "
            "block that keeps patches only, or registers and [CLS] only. The audit's readout "
            "`embedding` is the same number: given is the largest relative difference over a batch."
        ),
        tables=[Table(("", ""), rows)],
    )


def run_masked(vit: ViTAdapter, pixels: Pixels) -> dict[str, Tensor]:
    """Three passes of the model."""
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
    """How far the masked passes are from the ledger's restricted outputs."""
    ledger = merge_groups(decompose(vit, pixels), "cls", into="registers")
    ours = restrict(vit, ledger, renormalize=True)["embedding"]
    passes = run_masked(vit, pixels)
    return {
        name: float(((output - ours[name]).norm(dim=-1) / output.norm(dim=-1)).max())
        for name, output in passes.items()
    }


def _masked(block: torch.nn.Module, mask: Tensor | None) -> RemovableHandle:
    return block.attn.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "attn_mask": mask}), with_kwargs=True
    )
