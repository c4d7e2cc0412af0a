"""Names of files and folders that hold no images of their owner's."""

_MADE_BY_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
"""Folders that hold other forms of the files beside them, or deleted ones."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over, with whatever is below it."""
    return name.startswith(".") or name in _MADE_BY_SYSTEMS
