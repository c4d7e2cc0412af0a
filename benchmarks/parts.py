"""The parts, each run in a process of its own, so that what happens to one leaves the others be."""

import traceback
from importlib import import_module

from benchmarks.measuring import run_fresh
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
    """Run a part in a fresh process: its section as text, and whether it failed."""
    try:
        return run_fresh(_measure, name, settings), False
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the other parts still run
        traceback.print_exception(error)
        section = Section(title=f"Part {name}", how=f"Failed: {type(error).__name__}: {error}")
        return render_section(section), True


def _measure(name: str, settings: Settings) -> str:
    return render_section(import_module(f"benchmarks.{PARTS[name]}").measure(settings))
