"""A precision left to choose: what it is tried on, and what is said where it was chosen wrongly."""

from contextlib import contextmanager

import pytest
import torch

from audits import tiny_vit
from images import write_images
from vitscope import AuditConfig, RunConfig, audit, explain
from vitscope.errors import ImbalanceError, MemoryShortageError

AUTO = AuditConfig(dtype="auto", device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "set", 10)


@pytest.fixture(autouse=True)
def _native_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


@contextmanager
def altered(vit, change):
    """The last attention branch, changed where the model runs in bfloat16."""
    handle = vit.blocks[vit.last_layer].branch.register_forward_hook(
        lambda _, __, out: change(out) if torch.is_autocast_enabled("cpu") else out
    )
    try:
        yield
    finally:
        handle.remove()


def test_images_that_do_not_balance_after_all_are_told_what_was_chosen(images):
    vit = tiny_vit()
    # The eight that are tried come in one batch.
    with (
        altered(vit, lambda out: out if len(out) == 8 else out * 1.1),
        pytest.raises(
            ImbalanceError, match=r"bfloat16, .*chosen by dtype auto.*give dtype='float32'"
        ),
    ):
        audit(vit, images, AUTO)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_is_said_of_half_precisions_where_there_is_none(images, dtype):
    vit = tiny_vit()
    handle = vit.blocks[vit.last_layer].branch.register_forward_hook(lambda _, __, out: out * 1.1)
    with pytest.raises(ImbalanceError) as error:
        audit(vit, images, AuditConfig(dtype=dtype, device="cpu"))
    handle.remove()
    assert "chosen by dtype" not in str(error.value)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_what_memory_does_not_hold_is_tried_on_fewer_images(images, error):
    vit, sizes = tiny_vit(), []

    def fill(out):
        sizes.append(len(out))
        if len(out) > 3:
            raise error
        return out

    with altered(vit, fill):
        result = audit(vit, images, AUTO)
    assert sizes[:3] == [8, 4, 2]
    assert result.provenance["config"]["dtype"] == "bfloat16"
    assert len(result.images) == 10


@pytest.mark.parametrize("run", [audit, explain])
def test_memory_for_not_even_one_image_is_said_in_plain_words(images, run):
    vit = tiny_vit()
    config = AUTO if run is audit else RunConfig(dtype="auto", device="cpu")

    def fill(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with (
        altered(vit, fill),
        pytest.raises(MemoryShortageError, match="not enough memory on cpu for 1 image"),
    ):
        run(vit, images, config)
    assert vit.dtype == torch.float32


def test_any_other_error_of_the_trial_comes_as_it_is(images):
    vit = tiny_vit()

    def fail(_):
        raise RuntimeError("shapes do not match")

    with altered(vit, fail), pytest.raises(RuntimeError, match="shapes do not match"):
        audit(vit, images, AUTO)
