"""`vitscope merge`."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from vitscope.errors import UsageError
from vitscope.files.printable import printable_path
from vitscope.terminal import make_report


def merge(*results: Path, out: Path, overwrite: bool = False) -> None:
    """Merge audits of different images, such as those of --shard 1/16 to 16/16.

    The results must be of the same model, weights and settings, and share no image. The numbers are
    those of one audit of all the images.

    Example:  vitscope merge results-a/dinov2-small results-b/dinov2-small --out merged

    Args:
        results: Audits: folders with a summary.json.
        out: Folder for the merged result.
        overwrite: Replace an earlier result there.

    Raises:
        UsageError: If fewer than two results are named.
    """
    if len(results) < 2:
        raise UsageError(f"{len(results)} results were given: name two or more folders to merge")
    from vitscope.files.storage import check_target, is_result, never
    from vitscope.results.audit_result import AuditResult

    check_target(out, is_result if overwrite else never)
    first, *others = (AuditResult.load(folder) for folder in results)
    merged = first.merge(*others, out=out, overwrite=overwrite)
    console = Console()
    console.print(make_report(merged.summary))
    if (missing := merged.missing_shards) is None:
        told = "these are shards of different lists of images: missing shards cannot be determined"
        console.print(Text(told), soft_wrap=True)
    elif missing:
        console.print(Text(f"still missing: {', '.join(missing)}"), soft_wrap=True)
    console.print(Text(f"written to {printable_path(out)}"), soft_wrap=True)
