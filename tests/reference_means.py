"""Regenerates the means that come with vitscope from the weights and photographs of the demo extra.

python tests/reference_means.py    writes src/vitscope/runs/references/ (two minutes)

Run it when the weights hash, the preprocessing or the photographs change; a test says when.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import vitscope
from vitscope import AuditConfig, audit, load_model
from vitscope.files.tensor_files import write_tensors
from vitscope.images.photographs import write_demo_photographs
from vitscope.models.identity import Behaviour
from vitscope.runs.references import Wanted, read_reference
from vitscope.weights.embedded import EMBEDDED_NAME

TARGET = Path(vitscope.__file__).parent / "runs" / "references" / f"{EMBEDDED_NAME}.safetensors"


def describe(photographs):
    return (
        f"that come with vitscope: {photographs.crops_per_photograph} crops of each of "
        f"{len(photographs.credits)} openly licensed photographs"
    )


def write_shipped(path, audited, images):
    """Write the means of an audit in the format of the shipped files."""
    manifest = audited.manifest
    preprocessing = manifest.preprocessing
    tensors = {}
    for layer in manifest.layers:
        wanted = Wanted(
            weights_hash=manifest.weights_hash,
            behaviour=Behaviour(manifest.behaviour_hash, manifest.unknown),
            layer=layer,
            preprocessing=preprocessing,
        )
        reference = read_reference(audited, wanted)
        tensors |= {f"{layer:03d}/{name}": mean for name, mean in reference.means.items()}
    content = {
        "model_id": reference.about.model_id,
        "weights_hash": manifest.weights_hash,
        "behaviour_hash": manifest.behaviour_hash,
        "layers": manifest.layers,
        "preprocessing": {k: v for k, v in asdict(preprocessing).items() if k != "changed"},
        "terms": sorted(reference.means),
        "images": images,
        "num_images": reference.about.num_images,
    }
    write_tensors(path, tensors, {"reference": json.dumps(content)})


def main():
    config = AuditConfig(features="drop", gallery=0)
    with tempfile.TemporaryDirectory() as folder:
        photographs = write_demo_photographs(Path(folder) / "images")
        result = audit(load_model(EMBEDDED_NAME), Path(folder) / "images", config)
    TARGET.unlink(missing_ok=True)
    write_shipped(TARGET, result, describe(photographs))


if __name__ == "__main__":
    main()
