"""What does an audit cost compared with the bare forward pass?"""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.audits import AuditTimes, bare_forward, sum_rounds, time_audit
from benchmarks.images import Decoded, decoded_images
from benchmarks.measuring import compare
from benchmarks.models import build_dinov2, load_dinov2
from benchmarks.page import Section, Table
from benchmarks.settings import Plan, Settings
from vitscope import AuditConfig
from vitscope.runs.resources import choose_pass_size

_AUDITS: dict[str, dict[str, Any]] = {
    "last layer": {"layers": "last"},
    "all layers": {"layers": "all"},
    "last layer, bfloat16": {"layers": "last", "dtype": "bfloat16"},
}
"""What is audited; all else is the default."""

_FORWARDS = ("forward", "forward in passes")


_FULL = Plan("small", 224, images=1024, batch_size=32, rounds=4)
_TINY = Plan("tiny", 32, images=16, batch_size=4, rounds=2)


def measure(settings: Settings) -> Section:
    """Time every kind of audit against the float32 forward."""
    plan = _TINY if settings.tiny else _FULL
    vit = load_dinov2(plan.model)
    pass_size = choose_pass_size(vit, (plan.size, plan.size), torch.device("cpu"))
    with decoded_images(vit, plan, settings.images) as images:
        rows = list(_measure_rows(plan, images, pass_size))
    columns = (
        "audit",
        "audit / forward",
        "audit / forward in passes",
        "whole run / forward",
        "once per run",
    )
    return Section(
        title="An audit compared with the bare forward pass",
        how=(
            f"dinov2-{plan.model}, {plan.size} px, {plan.images} decoded images in batches of "
            f"{plan.batch_size}, {plan.rounds} rounds of "
            f"{plan.num_batches // plan.rounds} batches. Before each batch of the "
            "audit the bare float32 model (sdpa, inference mode) runs on the same batch, first on "
            f"all of it, then in passes of {pass_size} images as in an audit on a CPU. *whole run* "
            f"includes what happens *once per run*, over these {plan.images} images."
        ),
        tables=[Table(columns, rows)],
    )


def _measure_rows(plan: Plan, images: Decoded, pass_size: int | None) -> Iterator[list[str]]:
    for name, settings in _AUDITS.items():
        # Two models, for the audit may have its own in another precision while it goes on.
        vit, module = load_dinov2(plan.model), build_dinov2(plan.model)
        config = AuditConfig(
            batch_size=plan.batch_size, device="cpu", **{"dtype": "float32"} | settings
        )
        forwards = [bare_forward(module, pass_size=size) for size in (None, pass_size)]
        times = time_audit(vit, images, config, dict(zip(_FORWARDS, forwards, strict=True)))
        yield [name, *_describe(times, plan)]


def _describe(times: AuditTimes, plan: Plan) -> list[str]:
    audit = sum_rounds(times.audit, plan.rounds)
    forwards = [times.others[name] for name in _FORWARDS]
    return [
        *(str(compare(audit, sum_rounds(seconds, plan.rounds))) for seconds in forwards),
        f"{times.whole_run('forward'):.3f}",
        f"{times.once:.2f} s",
    ]
