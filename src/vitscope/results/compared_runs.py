"""Which runs a comparison of remedies is of."""

from collections.abc import Mapping

from vitscope.errors import ResultError
from vitscope.files.printable import printable_path
from vitscope.results.saved_result import SavedResult


def read_runs(comparison: SavedResult) -> Mapping[str, str]:
    """The run of each audit that was compared, by its folder; empty in earlier versions."""
    runs = comparison.provenance.get("audits")
    return runs if isinstance(runs, dict) else {}


def check_run(comparison: SavedResult, audit: SavedResult) -> None:
    """Refuse an audit that has replaced the one that was compared, in a run that did not finish."""
    run = read_runs(comparison).get(audit.folder.name)
    if run is not None and audit.provenance.get("run") != run:
        raise ResultError(
            f"{printable_path(audit.folder)} has replaced the audit that "
            f"{printable_path(comparison.folder)} is of: finish the run that replaced it, with "
            "resume=True and overwrite=True, or compare again"
        )
