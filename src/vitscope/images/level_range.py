"""How much of the range from black to white an image uses.

12-bit numbers in a 16-bit file, or the numbers of classes in a label map, are read as what they are
stored as: nearly black. They are counted, so that a result says so.
"""

import numpy as np
from PIL import Image

NARROW = 1 / 8
"""An image that uses less of the range is counted: 12 bits in 16 use 1/16."""


def measure_range(image: Image.Image | np.ndarray) -> float:
    """Part of the range from black to white between the darkest and the brightest sample."""
    levels = np.asarray(image)
    return (int(levels.max()) - int(levels.min())) / 255


def note_narrow(num_narrow: int, num_images: int) -> list[str]:
    """What a result says of images that use little of the range."""
    if not num_narrow:
        return []
    return [
        f"{num_narrow} of {num_images} images use less than 1/8 of the range from black to white, "
        "as 12-bit numbers in 16-bit files and label maps do: check that they look as they should"
    ]
