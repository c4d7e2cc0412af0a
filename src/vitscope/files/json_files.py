"""JSON that any reader takes."""

import json
import math
from pathlib import Path
from typing import Any

from vitscope.errors import ResultError


def write_json(path: Path, content: Any) -> None:
    """Write JSON that any reader takes: NaN and infinities become null.

    Args:
        path: File to write.
        content: Dictionaries, sequences, strings, numbers.
    """
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """Read a JSON file of a result.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ResultError: If it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(
            f"{path.parent} is not a vitscope result: {path.name} is missing"
        ) from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read: {error}") from None


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
