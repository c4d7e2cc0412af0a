"""A folder as something to send to another machine."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from vitscope.errors import ResultError
from vitscope.files.disk_errors import plain_disk_errors


def pack_folder(folder: Path) -> dict[str, bytes]:
    """Read a folder of a few files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def unpack_folder(files: Mapping[str, bytes], folder: Path) -> None:
    """Write what `pack_folder` read."""
    for name, content in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ResultError(f"a file called {name!r} was sent: expected names within a part")
        target = folder / path
        with plain_disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
