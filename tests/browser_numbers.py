"""Numbers that a page must show, read from the result."""


def numbers_by_name(result, number):
    """A number of the gallery's images, by file name."""
    rows = {row["image_id"]: row[number] for row in result.images.to_pylist()}
    return {p.path.rsplit("/", 1)[-1]: rows[p.image_id] for p in result.gallery.images}
