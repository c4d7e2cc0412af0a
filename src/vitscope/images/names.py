"""Names of files and folders that hold no images of their owner's."""

_MADE_BY_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
"""Folders that hold other forms of the files beside them, or deleted ones."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over, with whatever is below it.

    Args:
        name: Its name, without the folders above.

    Returns:
        True for .git, .DS_Store, ._photo.jpg and the like.
    """
    return name.startswith(".") or name in _MADE_BY_SYSTEMS
