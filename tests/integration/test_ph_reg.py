"""Students of PH-Reg, as modules and as files, against the twin of their code.

Their forward is the twin's to the last bit. DINOv2 with registers of transformers has its registers
after [CLS], to which attention pays no heed: with the same weights it gives the same, up to
rounding, for which 1e-12 in float64 is a generous multiple.
"""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from ph_reg_twin import SIZE, RegDINOv2Base, make_base, make_student
from vitscope import load_model, wrap_model
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.maps.passes import run_blocks
from vitscope.testing.randomize import randomize

NUM_REGISTERS = 3
SIZES = [(32, 32), (16, 40)]
TRAINED = ("registers", "model.embeddings.pos", "model.embeddings.patch", "model.encoder.layer.1.")
"""Starts of the names of what the published training changes: the last block, and these."""


def draw(size=(16, 40)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def read_cls(student, pixels):
    return student(pixels)["last_hidden_state"][:, NUM_REGISTERS]


@pytest.mark.parametrize("size", SIZES)
def test_the_global_feature_is_the_students(size):
    student = make_student()
    vit = wrap_model(student)
    pixels = draw(size)
    assert torch.equal(vit.run(pixels), read_cls(student, pixels))
    assert (vit.info.family, vit.info.num_registers) == ("ph-reg/dinov2", NUM_REGISTERS)
    assert vit.info.num_params == sum(p.numel() for p in student.parameters())


def test_it_is_dinov2_with_registers_but_for_the_order():
    student = make_student().double()
    config = Dinov2WithRegistersConfig(**SIZE, num_register_tokens=NUM_REGISTERS)
    other = Dinov2WithRegistersModel(config).double().eval()
    weights = student.model.state_dict() | {"embeddings.register_tokens": student.registers}
    other.load_state_dict(weights)
    pixels = draw((32, 32)).double()
    with torch.no_grad():
        expected = other(pixels).pooler_output
    found = wrap_model(student).run(pixels)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_what_the_layout_says(size):
    student = make_student()
    vit = wrap_model(student)
    layout = vit.make_layout(*size)
    assert layout.query == layout.groups["cls"].start == NUM_REGISTERS
    assert layout.grid == (size[0] // 8, size[1] // 8)
    tokens = run_blocks(vit, draw(size)).streams[0]
    registers = student.registers.expand(2, -1, -1)
    assert torch.equal(tokens[:, layout.groups["registers"]], registers)
    embedded = student.embed(draw(size))
    assert torch.equal(tokens[:, layout.groups["cls"]], embedded[:, :1])
    assert torch.equal(tokens[:, layout.groups["patches"]], embedded[:, 1:])


# --- files -------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "dinov2"
    make_base().save_pretrained(folder)
    return folder


def make_trained(base):
    """A student whose weights differ from the base where they are trained."""
    student = RegDINOv2Base(copy.deepcopy(base))
    other = randomize(RegDINOv2Base(make_base()))
    with torch.no_grad():
        for (name, own), new in zip(student.named_parameters(), other.parameters(), strict=True):
            own.requires_grad_(name.startswith(TRAINED))
            if own.requires_grad:
                own.copy_(new + 0.1)
    return student.eval()


def list_trainable(student):
    return {name: p for name, p in student.named_parameters() if p.requires_grad}


def save_trainable(student, path):
    optimizer = torch.optim.AdamW(list_trainable(student).values())
    read_trainable = {name: p.detach() for name, p in list_trainable(student).items()}
    torch.save(
        {
            "trainable_state_dict": read_trainable,
            "optimizer_state_dict": optimizer.state_dict(),
        },
        path,
    )


def save_alone(student, path):
    """As `safetensors.torch.save_model` does: each weight under one of its names."""
    save_file({n: p for n, p in student.state_dict().items() if not n.startswith("model.")}, path)


FILES = {
    "whole.pth": lambda student, path: torch.save(student.state_dict(), path),
    "parallel.pth": lambda student, path: torch.save(
        {f"module.{name}": value for name, value in student.state_dict().items()}, path
    ),
    "trainable.pth": save_trainable,
    "alone.safetensors": save_alone,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_the_student_that_was_saved(name, base, tmp_path):
    student = make_trained(make_base())
    path = tmp_path / name
    FILES[name](student, path)
    vit = load_model(f"ph-reg:{base}@{path}")
    assert torch.equal(vit.run(draw()), read_cls(student, draw()))
    assert (vit.info.id, vit.info.source) == (f"ph-reg:{base}@{path}", str(path))
    notes = [note for note in vit.info.notes if "not in the file" in note]
    left = len(vit.module.state_dict()) - len(list_trainable(student))
    expected = [f"{left} of {len(vit.module.state_dict())} weights are {base}'s, not in the file"]
    assert notes == (expected if name == "trainable.pth" else [])
    assert vit.hashed().weights_hash == wrap_model(student).hashed().weights_hash


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"cls_token": torch.zeros(1, 1, 32)}, "no student of PH-Reg: expected the weights of Reg"),
        ({"registers": torch.zeros(3, 32)}, "with registers of shape 1 x number x width"),
        ({"registers": torch.zeros(1, 3, 64)}, "of another shape: registers; give"),
        ({"registers": torch.zeros(1, 3, 32), "gate": torch.zeros(1)}, "unexpected: gate"),
    ],
)
def test_files_that_are_no_student(weights, message, base, tmp_path):
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(UsageError, match=message):
        load_model(f"ph-reg:{base}@{tmp_path / 'other.pth'}")


def test_a_student_is_a_file():
    with pytest.raises(UsageError, match="as in ph-reg:a/b@student"):
        load_model("ph-reg:a/b")


# --- what is refused ---------------------------------------------------------------------------


class StudentCLIP(nn.Module):
    pass


def test_the_student_of_clip_is_refused(base, tmp_path):
    message = "its .CLS. output reads nothing but .CLS., so it is no sum over attention"
    with pytest.raises(UnsupportedModelError, match=f"^StudentCLIP is PH-Reg's .*{message}$"):
        wrap_model(StudentCLIP())
    path = tmp_path / "clip.pth"
    torch.save({"visual.class_embedding": torch.zeros(4), "registers": torch.zeros(16, 4)}, path)
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(f"ph-reg:{base}@{path}")


def change_part(student):
    student.encoder = copy.deepcopy(student.encoder)


def add_parameter(student):
    student.positions = nn.Parameter(torch.zeros(1))


def freeze_registers(student):
    registers = student.registers.detach()
    del student.registers
    student.register_buffer("registers", registers)


def change_base(student):
    config = Dinov2WithRegistersConfig(**SIZE)
    student.__init__(Dinov2WithRegistersModel(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_part, "parts that are not those of its model"),
        (add_parameter, "a part 'positions': "),
        (lambda student: student.add_module("head", nn.Identity()), "a part 'head': "),
        (freeze_registers, "registers that are no parameter"),
        (change_base, "a base model of transformers/dinov2_with_registers, not of"),
        (lambda student: student.register_forward_hook(print), "forward hooks of its own"),
    ],
)
def test_other_students_are_refused(change, message):
    student = make_student()
    change(student)
    with pytest.raises(UnsupportedModelError, match=message):
        wrap_model(student)
