"""Local model folders and the settings files in them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitscope.errors import ModelUnreachableError, UnsupportedModelError, first_line


def find_folder(name: str) -> Path | None:
    """Find the local folder that a name refers to; None if there is none."""
    if not name:
        return None
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except PermissionError as error:
        raise _make_unreadable(name, error) from None
    except (OSError, RuntimeError, ValueError):
        return None


def read_json_object(path: Path, name: str) -> dict[str, Any]:
    """Read a settings file of a model."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _make_unreadable(f"{path.name} of {name}", error) from None
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(
            f"{path.name} of {name} is damaged ({first_line(error)})"
        ) from None
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path.name} of {name} is damaged (no object at its top)")
    return content


def check_readable(folder: Path, names: Iterable[str]) -> None:
    """Raise an error for unreadable files, which libraries report as something else."""
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                file.read(1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _make_unreadable(folder / name, error) from None


def _make_unreadable(what: str | Path, error: OSError) -> ModelUnreachableError:
    return ModelUnreachableError(f"{what} cannot be read ({error.strerror}): check its permissions")
