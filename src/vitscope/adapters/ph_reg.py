"""Students of PH-Reg: DINOv2 of transformers with registers before [CLS], by distillation.

Source: Chen et al., "Vision Transformers with Self-Distilled Registers" (NeurIPS 2025).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitscope.adapters.transformers import load_transformers, make_transformers_adapter
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.images.preprocessing import Preprocessing
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.info import count_parameters
from vitscope.models.parts import check_parts, lay_out, require
from vitscope.weights.catalogue import CATALOGUE
from vitscope.weights.checkpoints import load_weights, read_checkpoint

_ALIASES = {"embed": "embeddings", "encoder": "encoder", "layernorm": "layernorm"}
"""Second names of parts of `model`, under which its weights are saved once more."""


class StudentDINOv2(nn.Module):
    """The parts of a student: a Dinov2Model, which is shared, and registers without positions."""

    def __init__(self, model: nn.Module, registers: nn.Parameter) -> None:
        super().__init__()
        self.model: Any = model
        self.registers = registers


def make_ph_reg_adapter(
    module: nn.Module, *, preprocessing: Preprocessing | None = None, model_id: str | None = None
) -> ViTAdapter:
    """Adapt a student built by the code of PH-Reg."""
    name, kind = model_id or type(module).__name__, type(module).__name__
    if kind == "StudentCLIP":
        raise _make_clip_error(name)
    require(kind == "RegDINOv2Base", name, f"the architecture {kind}")
    given: Any = module.eval()
    check_parts(given, name, {"model", "registers", *_ALIASES})
    # StudentDINOv2 would hold a buffer as a plain tensor, outside the digest of the weights.
    require(isinstance(given.registers, nn.Parameter), name, "registers that are no parameter")
    vit = _check_base(
        make_transformers_adapter(given.model, preprocessing=preprocessing, model_id=name)
    )
    tower = vit.module
    same = all(getattr(given, a) is tower.get_submodule(part) for a, part in _ALIASES.items())
    require(same, name, "parts that are not those of its model")
    hooked = given._forward_pre_hooks or given._forward_hooks  # its forward is not called
    require(not hooked, name, "forward hooks of its own")
    return _add_registers(vit, StudentDINOv2(tower, given.registers))


def load_ph_reg(base: str, checkpoint: Path | None = None) -> ViTAdapter:
    """Load a student from a file; what is not in the file is the base model's own."""
    if checkpoint is None:
        raise UsageError(
            f"PH-Reg's students are files: give one, as in ph-reg:{base}@student.pth, after the "
            "DINOv2 that it was made from"
        )
    read = read_checkpoint(checkpoint)
    if any(name.endswith("class_embedding") for name in read.weights):
        raise _make_clip_error(str(checkpoint))
    weights = {_name(key): value for key, value in read.weights.items()}
    registers = weights.get("registers")
    if registers is None or registers.ndim != 3:
        raise UsageError(
            f"{checkpoint} is no student of PH-Reg: expected the weights of RegDINOv2Base, with "
            "registers of shape 1 x number x width"
        )
    entry = CATALOGUE.get(base)
    vit = _check_base(load_transformers(base if entry is None else entry.id))
    room = torch.zeros(1, registers.shape[1], vit.info.embed_dim)
    student = StudentDINOv2(vit.module, nn.Parameter(room)).eval()
    whole = student.state_dict()
    load_weights(student, whole | weights, checkpoint)
    adapter = _add_registers(vit, student)
    notes = read.notes
    if left := whole.keys() - weights.keys():
        notes = (*notes, f"{len(left)} of {len(whole)} weights are {base}'s, not in the file")
    source, model_id = str(checkpoint), f"ph-reg:{base}@{checkpoint}"
    return replace(adapter, info=adapter.info.noted(*notes, id=model_id, source=source))


def _name(weight: str) -> str:
    first, _, rest = weight.partition(".")
    return f"model.{_ALIASES[first]}.{rest}" if first in _ALIASES else weight


def _check_base(vit: ViTAdapter) -> ViTAdapter:
    found = vit.info.family == "transformers/dinov2"
    require(found, vit.info.id, f"a base model of {vit.info.family}, not of transformers/dinov2")
    return vit


def _add_registers(vit: ViTAdapter, student: StudentDINOv2) -> ViTAdapter:
    count = student.registers.shape[1]
    info = replace(
        vit.info,
        family="ph-reg/dinov2",
        num_params=count_parameters(student),
        num_registers=count,
    )
    order = {"registers": count, "cls": 1, "patches": 0}
    return replace(
        vit,
        module=student,
        info=info,
        make_layout=partial(lay_out, order, info.patch_size),
        run=partial(_run, student),
        classifier=None,
    )


def _run(student: StudentDINOv2, pixels: Pixels) -> Float[Tensor, "batch dim"]:
    # The published forward takes the first element of what a layer returns: since transformers 5
    # that is the first image, no longer the tokens of all. So the layers are run here.
    embedded = student.model.embeddings(pixels)
    tokens = torch.cat([student.registers.expand(len(embedded), -1, -1), embedded], dim=1)
    for layer in student.model.encoder.layer:
        tokens = layer(tokens)
    # More tokens are registers inserted before [CLS], fewer are patches dropped after it.
    at = max(student.registers.shape[1], tokens.shape[1] - embedded.shape[1])
    feature: Tensor = student.model.layernorm(tokens)[:, at]
    return feature


def _make_clip_error(name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name} is PH-Reg's student of CLIP, whose last block is a value projection alone: its "
        "[CLS] output reads nothing but [CLS], so it is no sum over attention"
    )
