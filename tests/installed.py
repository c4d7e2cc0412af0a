"""An installed package that adds to vitscope, written on the spot."""

import textwrap


def write_package(folder, code, *, group, points, package="vitscope-mine", version="1.2"):
    """A module `mine` in a folder of the path, and the metadata of the package that it is of."""
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata)
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (folder / "mine.py").write_text(textwrap.dedent(code))
