"""Inputs that memory cannot hold are refused before anything is decoded or computed."""

import os

import pytest
import timm
import torch
from PIL import Image

from vitscope import AuditConfig, OneShotConfig, audit, decompose, explain, map_tokens, one_shot
from vitscope.adapters.registry import wrap_model
from vitscope.errors import MemoryShortageError
from vitscope.models import memory
from vitscope.models.memory import check_memory, find_available_memory

SIDE = 100_000
WORDS = r"100000 x 100000 px would take \d+\.\d GB"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vit():
    return wrap_model(
        timm.create_model(
            "vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2, dynamic_img_size=True
        )
    )


@pytest.fixture
def folder(tmp_path):
    for label in "ab":
        for i in range(2):
            path = tmp_path / "images" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (i * 99, 0, 0)).save(path)
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def _no_image_is_decoded(monkeypatch):
    def fail(*_, **__):
        pytest.fail("an image was resized")

    monkeypatch.setattr(Image.Image, "resize", fail)


def test_an_audit(vit, folder):
    with pytest.raises(MemoryShortageError, match=WORDS) as caught:
        audit(vit, folder, AuditConfig(size=SIDE))
    assert "\n" not in str(caught.value)


def test_one_shot(vit, folder):
    with pytest.raises(MemoryShortageError, match=WORDS):
        one_shot(vit, folder, OneShotConfig(size=SIDE))


def test_an_explanation(vit, folder, tmp_path):
    from vitscope import RunConfig

    with pytest.raises(MemoryShortageError, match=WORDS):
        explain(vit, folder / "a" / "0.png", RunConfig(size=SIDE), out=tmp_path / "out")


@pytest.mark.parametrize("function", [decompose, map_tokens])
def test_one_batch_by_hand(vit, function):
    pixels = torch.zeros(1, 1, 1, 1).expand(1, 3, SIDE, SIDE)
    with pytest.raises(MemoryShortageError, match=WORDS):
        function(vit, pixels)


def test_a_batch_that_is_too_large_says_so(vit, monkeypatch):
    monkeypatch.setattr(memory, "find_available_memory", lambda: 10_000_000)
    check_memory(vit, (224, 224), CPU, decoded=1)
    with pytest.raises(MemoryShortageError, match=r"^64 images of .* smaller batch size or input"):
        check_memory(vit, (224, 224), CPU, decoded=64)


def test_on_a_gpu_the_tokens_are_not_the_systems(vit, monkeypatch):
    monkeypatch.setattr(memory, "find_available_memory", lambda: 0)
    check_memory(vit, (224, 224), torch.device("cuda"))
    with pytest.raises(MemoryShortageError):
        check_memory(vit, (224, 224), torch.device("cuda"), decoded=1)


def test_attention_that_is_kept_counts(vit, monkeypatch):
    # 2 heads of 197 x 197 weights and 8 widths of 197 tokens, in bytes.
    least = 4 * (2 * 197 * 197 + 8 * 32 * 197)
    attention = vit.module.blocks[0].attn
    monkeypatch.setattr(memory, "find_available_memory", lambda: least - 1)
    monkeypatch.setattr(attention, "fused_attn", True)
    check_memory(vit, (224, 224), CPU)
    monkeypatch.setattr(attention, "fused_attn", False)
    with pytest.raises(MemoryShortageError):
        check_memory(vit, (224, 224), CPU)


def test_where_the_system_does_not_say_nothing_is_refused(vit, monkeypatch):
    monkeypatch.setattr(memory, "find_available_memory", lambda: None)
    check_memory(vit, (1600, 1600), CPU, decoded=1000)


def test_the_memory_of_this_machine():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = find_available_memory()
    assert found is not None
    # Swap comes on top; no machine of the tests has more of it than ten times its memory.
    assert 1e8 < found < 11 * total


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    limit.write_text("123456789\n")
    monkeypatch.setattr(memory, "_MEMORY_LIMIT", limit)
    assert find_available_memory() == 123456789
    limit.write_text("max\n")
    assert find_available_memory() > 123456789


def test_systems_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMORY_INFO", tmp_path / "none")
    assert find_available_memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
