"""An installed package that extends vitscope, written for the tests."""

import textwrap


def write_package(folder, code, *, group, points, package="vitscope-mine", version="1.2"):
    """Write a module `mine` into a folder on the path, with the metadata of its package."""
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata)
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (folder / "mine.py").write_text(textwrap.dedent(code))
