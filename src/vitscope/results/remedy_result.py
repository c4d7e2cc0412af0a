"""The saved comparison of a model with edits of it."""

from pathlib import Path

from vitscope.errors import ResultError
from vitscope.files.printable import printable_path
from vitscope.files.storage import is_result
from vitscope.results.audit_result import AuditResult
from vitscope.results.saved_result import SavedResult, check_run, saved_summary
from vitscope.results.schema import RemediesSummary
from vitscope.results.schema_remedies import EDITED, ORIGINAL, PLACES


class RemedyResult(SavedResult):
    """A comparison on disk, beside the audits that it is made of."""

    summary = saved_summary(RemediesSummary)
    """Every number, before and after; `ResultError` if it is damaged or of another kind."""

    def __str__(self) -> str:
        told = (f"{one.edit}: {one.text}" for one in self.summary.remedies)
        return "\n".join([self.summary.model.id, *told])

    def read_audit(self, edit: str | None = None) -> AuditResult:
        """Open the audit of the original or of an edited model.

        Args:
            edit: The edit, as in the summary; the original if None.

        Returns:
            The audit.

        Raises:
            ResultError: If there is no such edit, or the audits are not beside the comparison.
        """
        folders = {None: ORIGINAL} | {one.edit: one.folder for one in self.summary.remedies}
        if edit not in folders:
            known = ", ".join(repr(one.edit) for one in self.summary.remedies)
            raise ResultError(f"no edit {edit!r} was compared: choose from {known}")
        name = folders[edit]
        folder = self.folder.parent / name
        if Path(name).name != name or name == ".." or not folder.is_dir():
            raise ResultError(
                f"{printable_path(folder)} is missing: audits stay beside the comparison; give "
                "`out` to keep them"
            )
        audit = AuditResult(folder, keeper=self.keeper)
        check_run(self, audit)
        return audit

    def list_results(self) -> set[Path]:
        """Folders of the results beside the comparison that belong to it.

        Returns:
            Resolved paths; links, and folders that hold something else, are left out.

        Raises:
            ResultError: If it is not a comparison of this schema, or damaged.
        """
        named = {one.folder for one in self.summary.remedies if EDITED.fullmatch(one.folder)}
        folder = self.folder.parent.resolve()
        paths = [folder / place / name for place in PLACES for name in (ORIGINAL, *named)]
        return {path for path in paths if path.resolve() == path and is_result(path)}
