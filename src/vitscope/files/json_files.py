"""Standard JSON files."""

import json
import math
import os
from pathlib import Path
from typing import Any

from vitscope.errors import ResultError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.printable import printable_path
from vitscope.files.reading import read_bounded

_MAX_BYTES = 2**28  # of one file; enough for 80,000 explained images


def write_json(path: Path, content: object) -> None:
    """Write standard JSON."""
    write_text(path, dump_json(content) + "\n")


def dump_json(content: object) -> str:
    """Standard JSON as text: NaN and infinities become null."""
    return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Write text; characters that are not valid Unicode are backslash-escaped."""
    with plain_disk_errors(path):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """Read a JSON file of a result."""
    if not os.path.lexists(path):
        name = printable_path(path.parent)
        if not os.path.lexists(path.parent):
            raise ResultError(f"there is no folder {name}: expected a result of vitscope")
        raise ResultError(f"{name} is not a vitscope result: {path.name} is missing")
    try:
        return json.loads(read_bounded(path, _MAX_BYTES), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ResultError(f"{printable_path(path)} cannot be read: {reason}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def _plain(content: object) -> Any:
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
