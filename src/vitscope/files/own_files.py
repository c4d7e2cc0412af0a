"""Indexes that distinguish the files vitscope wrote in a folder from other files."""

from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vitscope.errors import ResultError, UsageError
from vitscope.files.json_files import read_json, write_json
from vitscope.files.printable import name_some, printable_path
from vitscope.files.storage import MARKER, check_target, is_result, never

FIGURES, INDEX = "figures", "index.json"
"""Kind of a folder of figures, and the name of its index file."""


def write_index(
    folder: Path, content: Mapping[str, Any], *, kind: str = FIGURES, index: str = INDEX
) -> None:
    """Write an index with a digest of every file in the folder."""
    digests = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    write_json(folder / index, {"kind": kind, **content, "digests": digests})


def list_own_files(folder: Path, *, kind: str = FIGURES, index: str = INDEX) -> set[str]:
    """Names of the files that vitscope wrote and that are unchanged since."""
    try:
        found = read_json(folder / index)
    except ResultError:
        return set()
    if not isinstance(found, dict) or found.get("kind") != kind:
        return set()
    digests = found.get("digests")
    listed = digests.items() if isinstance(digests, dict) else ()
    return {index} | {name for name, digest in listed if _is_unchanged(folder, name, digest)}


def list_other_files(folder: Path, *, kind: str = FIGURES, index: str = INDEX) -> list[str]:
    """Names of all other files in a folder, including those changed since they were written."""
    own = list_own_files(folder, kind=kind, index=index)
    return sorted({path.name for path in folder.iterdir()} - own)


def find_own(folder: Path, names: Collection[str]) -> set[str]:
    """Find what vitscope wrote in a folder: all of a result, or the figures listed in an index."""
    if MARKER in names and is_result(folder):
        return set(names)
    return list_own_files(folder) if INDEX in names else set()


def describe_skipped(folders: Sequence[Path]) -> str:
    """Describe which folders an image search skipped because vitscope wrote them."""
    named = name_some([printable_path(folder) for folder in folders])
    count = f"{len(folders)} folder{'s' * (len(folders) != 1)}"
    return f"{count} written by vitscope skipped in the search for images: {named}"


def is_figures(folder: Path) -> bool:
    """Whether a folder holds only unchanged figures of vitscope."""
    return not list_other_files(folder)


def check_figures_target(target: Path, *, overwrite: bool) -> None:
    """Raise an error if writing figures to a folder would lose other files."""
    if not overwrite and list_own_files(target):
        raise UsageError(
            f"{printable_path(target)} already holds figures: choose another folder or give "
            "overwrite=True"
        )
    check_nothing_else(target)
    check_target(target, is_figures if overwrite else never)


def check_nothing_else(target: Path, *, kind: str = FIGURES, index: str = INDEX) -> None:
    """Raise an error if a folder written by vitscope holds other or changed files."""
    if not list_own_files(target, kind=kind, index=index):
        return  # not written by vitscope at all
    if others := list_other_files(target, kind=kind, index=index):
        raise UsageError(
            f"{printable_path(target)} also holds {printable_path(Path(others[0]))}, which was not "
            "written by vitscope or was changed since: move it away or choose another folder"
        )


def _is_unchanged(folder: Path, name: str, digest: object) -> bool:
    path = folder / name
    if Path(name).name != name or path.is_symlink() or not path.is_file():
        return False
    try:
        return _digest(path) == digest
    except OSError:
        return False


def _digest(path: Path) -> str:
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()
