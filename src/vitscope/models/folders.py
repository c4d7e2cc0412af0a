"""Whether a model's id is a folder on this machine."""

from pathlib import Path


def find_folder(name: str) -> Path | None:
    """The local folder that a name stands for.

    Args:
        name: Anything a person gave as a model's id; "~" is their home.

    Returns:
        The folder, or None where there is none, or the name cannot be a path at all: too long for
        the file system, with a NUL byte, or under the home of somebody unknown.
    """
    if not name:
        return None
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None
