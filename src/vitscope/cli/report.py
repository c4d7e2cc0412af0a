"""`vitscope report`."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from vitscope.errors import UsageError
from vitscope.files.printable import printable_path


def report(*results: Path, out: Path = Path("report.html"), overwrite: bool = False) -> None:
    """Write saved results as one HTML file without external resources.

    Verdicts, charts side by side and a gallery of images with their maps. No model is loaded.

    Example:  vitscope report results --out report.html

    Args:
        results: Results, or folders containing results.
        out: File to write.
        overwrite: Replace an earlier report there.

    Raises:
        UsageError: If no result is named.
    """
    if not results:
        raise UsageError("no result was given: name one or more folders of results")
    from vitscope.report import write_report  # here, for what it imports is slow

    write_report(results, out, overwrite=overwrite)
    size = out.stat().st_size / 2**20
    where = f"report written to {printable_path(out)} ({size:.1f} MB)"
    Console().print(Text(where), soft_wrap=True)
