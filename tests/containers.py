"""Archives and tables of images for the tests, intact and damaged."""

import tarfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def make_tar(members: Mapping[str, bytes] | Iterable[tuple[str, bytes]], **options) -> bytes:
    """A tar archive of regular files, in the given order; a name may occur twice."""
    buffer = BytesIO()
    pairs = members.items() if isinstance(members, Mapping) else members
    with tarfile.open(fileobj=buffer, mode="w", errors="surrogateescape", **options) as archive:
        for name, content in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return buffer.getvalue()


def make_header(name: str, **fields) -> bytes:
    """The header of a member, without content or end of archive."""
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def make_image_column(contents: Iterable[bytes | None]) -> pa.Array:
    """Images in the format of Hugging Face's datasets."""
    rows = [{"bytes": content, "path": f"{row}.png"} for row, content in enumerate(contents)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def write_parquet(path: Path, columns: Mapping[str, object], **options) -> Path:
    pq.write_table(pa.table(dict(columns)), path, **options)
    return path
