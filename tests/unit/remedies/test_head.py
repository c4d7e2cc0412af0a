"""A head that reads patches alone: its account, what it finds on planted models, and its files."""

from dataclasses import replace

import pytest
import torch

from audits import tiny_vit
from support_table import TINY_MODELS
from vitscope import wrap_model
from vitscope.errors import UsageError
from vitscope.metrics.agreement import mean_cosine
from vitscope.remedies.editor import Editor, Running
from vitscope.remedies.head import AttentiveHead, DistilledHead, PoolingHead
from vitscope.remedies.registry import parse_remedy
from vitscope.remedies.remedy_files import load_remedy, save_remedy
from vitscope.testing import check_adapter
from vitscope.testing.planted import plant

FAMILIES = ("timm/dinov2_reg", "timm/siglip", "transformers/dinov3", "open_clip/plain")


def draw_images(count: int, side: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth images, whose mean patches differ."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, side)


def make_model(name: str = "timm/dinov2_reg"):
    return wrap_model(TINY_MODELS[name]()).to("cpu", torch.float64)


def fit(vit, pixels, **settings):
    return AttentiveHead(**{"epochs": 1, **settings}).fitted(vit, lambda: pixels.split(16))


@pytest.fixture(scope="module")
def small():
    vit = make_model()
    pixels = draw_images(30, vit.preprocessing.size[0])
    return vit, pixels, fit(vit, pixels)


def test_fitting_computes_what_the_head_does():
    torch.manual_seed(0)
    head = PoolingHead(8, 2).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    patches = torch.randn(3, 5, 8, dtype=torch.float64)
    assert torch.allclose(head.pool(head.input_norm(patches)), head(patches), atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_ledger_balances_and_the_model_is_left_as_it_was(name):
    vit = make_model(name)
    pixels = draw_images(40, vit.preprocessing.size[0])
    before = vit.run(pixels[:8])
    remedy = fit(vit, pixels)
    with remedy.applied(vit) as headed:
        worst = check_adapter(headed, pixels[:4])
        together = headed.run(pixels[:8])
        alone = torch.cat([headed.run(image) for image in pixels[:8].split(1)])
    assert max(worst.values()) < 1e-12
    assert torch.allclose(together, alone, atol=1e-12)
    assert torch.equal(vit.run(pixels[:8]), before)
    assert not torch.equal(together, before)


def test_its_keys_are_the_patches_alone(small):
    vit, pixels, remedy = small
    assert "registers" in vit.make_layout(*pixels.shape[-2:]).groups
    with remedy.applied(vit) as headed:
        layout = headed.make_layout(*pixels.shape[-2:])
        assert [*layout.groups] == ["patches"]
        assert headed.last_layer == vit.info.depth
        assert headed.info.global_feature == "attention pooling"
        assert headed.info.id != vit.info.id
        assert f"on {remedy.head.description.num_images} images" in headed.info.notes[-1]
        weights_hash = headed.hashed().weights_hash
        # Exactly the rows of the last block that belong to patches.
        streams = []
        handle = vit.encoder_blocks[-1].register_forward_hook(lambda *a: streams.append(a[-1]))
        feature = headed.run(pixels[:2])
        handle.remove()
        row = headed.module.head(streams[0][:, -layout.num_tokens :])
        assert torch.equal(feature, vit.embed_row(row))
    assert weights_hash != vit.hashed().weights_hash


def test_fidelity_is_that_of_the_model_with_its_head(small):
    vit, pixels, remedy = small
    seeds = Running(vit.make_layout(*pixels.shape[-2:]), pixels).seeds
    held = pixels[[seed % 5 == 0 for seed in seeds]]
    with torch.no_grad(), remedy.applied(vit) as headed:
        found = headed.run(held)
    own = vit.run(held)
    fidelity = remedy.head.description.fidelity
    assert fidelity.num_images == len(held)
    # Patches were kept in half precision.
    assert fidelity.cosine == pytest.approx(mean_cosine(own, found), abs=1e-5)


# As far as 20 epochs go. After 100 cosines are 1 to 1e-8 ("patches"), where half precision of the
# kept patches stays: relative errors of 2^-12, averaged over 64 patches, squared.
@pytest.mark.parametrize(("recipe", "tolerance"), [("patches", 1e-5), ("skip_copy", 3e-4)])
def test_a_feature_that_is_a_patch_average_is_found_in_the_patches(recipe, tolerance):
    vit = wrap_model(plant(recipe)).to("cpu", torch.float64)
    # In "skip_copy" too: the model takes the average from the skip connection, but it is there.
    found = AttentiveHead(epochs=20).fitted(vit, lambda: [draw_images(100, 64)]).head.description
    assert found.num_images + found.fidelity.num_images == 100
    assert found.fidelity.cosine == pytest.approx(1, abs=tolerance)
    assert found.fidelity.cka.unbiased == pytest.approx(1, abs=3 * tolerance)
    assert found.fidelity.knn_overlap > 0.98


def test_a_feature_of_the_skip_connection_alone_is_not_found():
    vit = wrap_model(plant("skip_copy")).to("cpu", torch.float64)
    editor = Editor(vit, "patches-lost")
    editor.edit_stream(1, lose_patches)
    with editor.applied() as edited:
        found = (
            AttentiveHead(epochs=20).fitted(edited, lambda: [draw_images(100, 64)]).head.description
        )
    assert found.fidelity.cosine < found.fidelity.cosine_of_mean + 0.02
    assert found.fidelity.cka.unbiased < 0.3
    low, high = found.fidelity.cka.ci95
    assert low < 0 < high < 0.9


def lose_patches(tokens, running):
    patches = running.layout.find_patches(tokens.shape[1])
    lost = tokens.clone()
    for image, seed in zip(lost, running.seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        image[patches.start : patches.stop] = torch.randn(
            len(patches), tokens.shape[-1], generator=generator
        )
    return lost


def test_a_head_depends_on_images_and_seed_alone(small):
    vit, pixels, remedy = small
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    again = fit(vit, pixels)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.describe() == remedy.describe()
    assert fit(vit, pixels, seed=1).describe() != remedy.describe()
    # An image that comes twice counts once.
    assert fit(vit, torch.cat([pixels[:16], pixels])).describe() == remedy.describe()
    assert not any(weight.requires_grad for weight in again.head.module.parameters())


def test_images_beyond_the_space_on_disk_are_left_out(small, monkeypatch):
    vit, pixels, _ = small
    monkeypatch.setattr("vitscope.remedies.head._MOST_BYTES", 1)
    description = fit(vit, pixels).head.description
    assert description.num_images + description.fidelity.num_images == 16


def test_a_saved_head_is_the_same(small, tmp_path):
    vit, pixels, remedy = small
    loaded = load_remedy(save_remedy(remedy, tmp_path / "head.safetensors"))
    assert loaded.describe() == remedy.describe()
    assert str(loaded.head.description) == str(remedy.head.description)  # NaN included
    assert loaded.fitted(vit, lambda: pytest.fail("it is fitted already")) is loaded
    with loaded.applied(vit) as one:
        found = one.run(pixels[:3])
    with remedy.applied(vit) as other:
        assert torch.equal(other.run(pixels[:3]), found)
    damaged = {name: tensor[1:] for name, tensor in remedy.head.save().items()}
    with pytest.raises(ValueError, match=r"Extra data|Expecting|size mismatch"):
        DistilledHead.load(damaged)


def test_a_model_is_the_same_in_any_precision(small):
    vit, pixels, remedy = small
    with vit.placed("cpu", torch.float32), remedy.applied(vit) as headed:
        assert headed.run(pixels[:2].float()).dtype == torch.float32


def test_it_reads_the_patches_of_an_edited_model(small):
    vit, pixels, _ = small
    shuffle = parse_remedy("test-time-registers:threshold=0.01,depth=1,top=2")
    with shuffle.fitted(vit, lambda: [pixels]).applied(vit) as edited:
        remedy = fit(edited, pixels)
        with remedy.applied(edited) as headed:
            assert headed.info.id.startswith(f"{vit.info.id}+test-time-registers")
            assert max(check_adapter(headed, pixels[:2]).values()) < 1e-12
    with pytest.raises(UsageError, match="other weights or edits"), remedy.applied(vit):
        pass


def test_wrong_use_is_refused(small):
    vit, pixels, remedy = small
    with (
        pytest.raises(UsageError, match="measured on another model"),
        remedy.applied(tiny_vit("dinov2")),
    ):
        pass
    with pytest.raises(UsageError, match="measured on images first"), AttentiveHead().applied(vit):
        pass
    with pytest.raises(UsageError, match="1 different images were given, 1 to fit a head to"):
        fit(vit, pixels[:1])
    with pytest.raises(UsageError, match="there are no images"):
        AttentiveHead().fitted(vit, list)
    with pytest.raises(UsageError, match="epochs was given as 0"):
        parse_remedy("attentive-head:epochs=0")


def test_a_head_is_given_by_hand_to_its_own_model_alone(small):
    vit, pixels, remedy = small
    given = AttentiveHead(head=remedy.head)
    assert given.fitted(vit, lambda: pytest.fail("it is fitted already")) is given
    with remedy.applied(vit) as one:
        expected = one.run(pixels[:2])
    with given.applied(vit) as other:
        assert torch.equal(other.run(pixels[:2]), expected)
    changed = make_model()
    with torch.no_grad():
        changed.parameter.add_(1e-3)
    with pytest.raises(UsageError, match="other weights or edits"), given.applied(changed):
        pass
    assert replace(given, epochs=2).head is None
