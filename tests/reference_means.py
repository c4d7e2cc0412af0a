"""Means that come with vitscope, made anew from the weights and photographs of the demo extra.

python tests/reference_means.py    writes src/vitscope/runs/references/ (two minutes)

To be run where weights hash, preprocessing or the photographs change; a test says when.
"""

import tempfile
from pathlib import Path

import vitscope
from vitscope import AuditConfig, audit, load_model
from vitscope.images.photographs import write_demo_photographs
from vitscope.runs.references import write_shipped
from vitscope.weights.embedded import EMBEDDED_NAME

TARGET = Path(vitscope.__file__).parent / "runs" / "references" / f"{EMBEDDED_NAME}.safetensors"


def describe(photographs):
    return (
        f"that come with vitscope: {photographs.crops_per_photograph} crops of each of "
        f"{len(photographs.credits)} openly licensed photographs"
    )


def main():
    config = AuditConfig(features="drop", gallery=0)
    with tempfile.TemporaryDirectory() as folder:
        photographs = write_demo_photographs(Path(folder) / "images")
        result = audit(load_model(EMBEDDED_NAME), Path(folder) / "images", config)
    TARGET.unlink(missing_ok=True)
    write_shipped(TARGET, result, describe(photographs))


if __name__ == "__main__":
    main()
