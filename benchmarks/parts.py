"""The parts, each run in a process of its own, so that what happens to one leaves the others be."""

import traceback
from importlib import import_module

from benchmarks.measuring import submit_fresh
from benchmarks.page import Section, render_section
from benchmarks.settings import Settings

PARTS = {
    "forward": "audit_against_forward",
    "eager": "eager_attention",
    "masked": "masked_passes",
    "gram": "full_gram",
    "coverage": "coverage",
    "cka": "cka_packages",
    "half": "half_precision",
    "throughput": "throughput",
    "passes": "pass_size",
    "faults": "page_faults",
    "verdicts": "verdicts",
    "few": "few_images",
    "maps": "map_costs",
    "remedies": "edited_models",
    "gpu": "giant_on_gpu",
}
"""Names for `--only`, and the module that answers each question."""


def run_part(name: str, settings: Settings) -> tuple[str, bool]:
    """Run one part in a fresh process.

    Args:
        name: Its name.
        settings: The run's settings.

    Returns:
        Its section as text, and whether it failed; then the section says why.
    """
    future = submit_fresh(_measure, name, settings)
    error = future.exception()
    if error is None:
        return future.result(), False
    traceback.print_exception(error)
    section = Section(title=f"Part {name}", how=f"Failed: {type(error).__name__}: {error}")
    return render_section(section), True


def _measure(name: str, settings: Settings) -> str:
    return render_section(import_module(f"benchmarks.{PARTS[name]}").measure(settings))
