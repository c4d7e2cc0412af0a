"""Files that several folders hold and no one changes."""

import os
import shutil
from pathlib import Path


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that is never changed a second name; across file systems, copy it.

    Args:
        source: The file; what has another name lasts when this one is removed.
        target: The new name, in a folder that exists.

    Raises:
        FileExistsError: If something has that name.
        OSError: If the disk does not take it.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # another file system, or one without links
        with source.open("rb") as old, target.open("xb") as new:
            shutil.copyfileobj(old, new)
