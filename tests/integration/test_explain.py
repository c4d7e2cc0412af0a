"""Explaining images as a whole: maps against plain full attention, shapes, references, files.

Tolerance of maps: 1e-6 relative to the largest number. The model runs in float64 on both sides;
its pixels are normalised in float32.
"""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from audits import tiny_vit
from images import write_images
from reference import make_reference
from vitscope import AuditConfig, AuditResult, Explanation, RunConfig, audit, explain
from vitscope.errors import ImageReadError, ResultError, UsageError
from vitscope.files.json_files import read_json
from vitscope.images.image_set import ImageSet
from vitscope.results.schema import DataSummary

FLOAT64 = RunConfig(dtype="float64")
HEADS = 4


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """A wide, a tall and a square image."""
    folder = tmp_path_factory.mktemp("shaped")
    for name, size in (("wide", (90, 40)), ("tall", (40, 71)), ("square", (50, 50))):
        (written,) = write_images(folder / name, 1, size=size).iterdir()
        written.rename(folder / f"{name}.png")
        (folder / name).rmdir()
    return folder


def layer_norm(x, norm):
    x = x - x.mean(dim=-1, keepdim=True)
    x = x / (x.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
    return x * norm.weight + norm.bias


@torch.no_grad()
def plain_reference(module, layer, image, preprocessing):
    """The last row by full attention, from the image that the result says the model saw."""
    mean, std = np.float32(preprocessing.mean), np.float32(preprocessing.std)
    levels = (image.astype(np.float32) / np.float32(255) - mean) / std
    pixels = torch.from_numpy(levels).permute(2, 0, 1)[None].double()
    module, streams = copy.deepcopy(module).double(), []
    block = module.blocks[layer]
    block.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    module(pixels)
    x = layer_norm(streams[0], block.norm1)
    projected = x @ block.attn.qkv.weight.T + block.attn.qkv.bias
    q, k, v = projected.reshape(1, x.shape[1], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    return make_reference(
        q,
        k,
        v,
        scale=q.shape[-1] ** -0.5,
        out_weight=block.attn.proj.weight,
        out_bias=block.attn.proj.bias,
        layer_scale=getattr(block.ls1, "gamma", None),
        stream=streams[0],
        query=0,
    )


def assert_close(found, expected):
    expected = expected.numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("layer", [0, 1])
def test_maps_equal_full_attention(shaped, layer):
    vit = tiny_vit()
    result = explain(vit, shaped, FLOAT64, layer=layer)
    assert len(result) == 3
    for index in range(3):
        one = result.read_image(index)
        reference = plain_reference(vit.module, layer, one.image, vit.preprocessing)
        contributions, r = reference.token_contributions[0, 5:], reference.r[0]
        assert_close(
            one.maps["attention"].heads, reference.attention[0, :, 5:].reshape(HEADS, *one.grid)
        )
        assert_close(one["attention"], reference.attention[0, :, 5:].mean(dim=0).reshape(one.grid))
        assert_close(one["contribution_norm"], contributions.norm(dim=-1).reshape(one.grid))
        assert_close(one["share"], (contributions @ r / (r @ r)).reshape(one.grid))
        weighted = reference.token_values[0, 5:].reshape(-1, HEADS, 8)
        weight = vit.module.blocks[layer].attn.proj.weight.detach().double()
        weight = (weight * vit.module.blocks[layer].ls1.gamma.detach().double()[:, None]).reshape(
            -1, HEADS, 8
        )
        of_heads = torch.einsum("nhd,ehd,e->hn", weighted, weight, r) / (r @ r)
        assert_close(one.maps["share"].heads, of_heads.reshape(HEADS, *one.grid))


def test_numbers_equal_the_definitions(shaped):
    vit = tiny_vit()
    one = explain(vit, shaped / "wide.png", FLOAT64).read_image(0)
    reference = plain_reference(vit.module, 1, one.image, vit.preprocessing)
    tokens = reference.token_contributions[0]
    terms = {"cls": tokens[0], "registers": tokens[1:5].sum(0), "patches": tokens[5:].sum(0)}
    masses = reference.attention[0].mean(dim=0)
    t, r, bias = reference.t[0], reference.r[0], reference.bias

    def cos(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    numbers, near = one.numbers, {"rel": 1e-5}
    mass = {"cls": masses[0], "registers": masses[1:5].sum(), "patches": masses[5:].sum()}
    mass = {name: float(value) for name, value in mass.items()}
    assert numbers.attention_mass == pytest.approx(mass, **near)
    share = mass["patches"] / (mass["patches"] + mass["registers"])
    assert numbers.patch_share == pytest.approx(share, **near)
    of_t = {
        "cosine": cos(terms["patches"], t),
        "restricted_cosine": cos(terms["patches"] + bias, t),
    }
    for name, expected in of_t.items():
        assert getattr(numbers, name)["attention"]["patches"] == pytest.approx(expected, **near)
    terms |= {"skip": reference.skip[0]}
    varying = {k: float(v @ (r - bias) / (r - bias).norm() ** 2) for k, v in terms.items()}
    assert numbers.share_without_bias == pytest.approx(varying, **near)
    assert one.verdict.status == "cannot tell"
    assert np.isnan(one.verdict.share)
    shares = {k: float(v @ r / r.norm() ** 2) for k, v in (terms | {"bias": bias}).items()}
    assert numbers.share == pytest.approx(shares, **near)
    assert sum(numbers.share.values()) == pytest.approx(1, abs=1e-10)
    # One account: the map's patches are the patches of the account.
    assert one["share"].sum() == pytest.approx(numbers.share["patches"], abs=1e-10)
    assert one.maps["share"].heads.sum(axis=0) == pytest.approx(one["share"], abs=1e-12)


# --- shapes --------------------------------------------------------------------------------------


def test_images_keep_their_shape(shaped):
    result = explain(tiny_vit(), shaped)
    found = {Path(e.path).stem: e for e in result.summary.images}
    assert {name: entry.grid for name, entry in found.items()} == {
        "wide": (4, 9),
        "tall": (7, 4),
        "square": (4, 4),
    }
    assert {entry.framing for entry in found.values()} == {"whole"}
    for index in range(3):
        one = result.read_image(index)
        assert one.image.shape[:2] == tuple(8 * side for side in one.grid)


def test_a_model_of_one_size_crops_and_says_so(shaped):
    result = explain(tiny_vit("deit3"), shaped)
    framings = {Path(e.path).stem: e.framing for e in result.summary.images}
    assert framings == {"wide": "cropped", "tall": "cropped", "square": "whole"}
    assert all(e.grid == (4, 4) for e in result.summary.images)


def test_the_shorter_side_gets_the_size_asked_for(shaped):
    wide = shaped / "wide.png"
    # 90 x 40 px at a height of 48: 108 px, 13.5 patches.
    (entry,) = explain(tiny_vit(), wide, RunConfig(size=48)).summary.images
    assert entry.input_size == (48, 112)
    for size in ((24, 40), (48, 48)):
        (entry,) = explain(tiny_vit(), wide, RunConfig(size=size)).summary.images
        assert (entry.input_size, entry.framing) == (size, "cropped")
    with pytest.raises(UsageError, match="does not fit the patch size"):
        explain(tiny_vit(), wide, RunConfig(size=30))


def test_images_prepared_at_a_size_that_is_not_square_keep_it(shaped):
    vit = tiny_vit()
    images = ImageSet.from_sources(shaped / "wide.png", vit.preprocessing.with_size((24, 40)))
    (entry,) = explain(vit, images).summary.images
    assert (entry.input_size, entry.framing) == ((24, 40), "cropped")


def test_one_pass_gives_the_row_and_other_maps(shaped, monkeypatch):
    alone = explain(tiny_vit(), shaped / "wide.png").read_image(0)
    monkeypatch.setattr("vitscope.models.base.ViTAdapter.trace", pytest.fail)
    one = explain(tiny_vit(), shaped / "wide.png", maps=["share", "rollout"]).read_image(0)
    np.testing.assert_array_equal(one["share"], alone["share"])
    assert one.numbers == alone.numbers


def test_attention_pooling_has_no_skip(shaped):
    one = explain(tiny_vit("siglip"), shaped / "tall.png").read_image(0)
    assert set(one.numbers.share) == {"patches", "bias"}
    assert one.verdict.status == "most"
    assert one.verdict.main_other_source is None


# --- references: see references/ -------------------------------------------------------------


def test_a_summary_is_read_once_for_all_its_images(shaped, monkeypatch):
    result, read = explain(tiny_vit(), shaped), []
    monkeypatch.setattr(
        "vitscope.results.schema.read_json", lambda path: read.append(path) or read_json(path)
    )
    assert [result.read_image(index).image_id for index in range(len(result))] == result.image_ids
    assert read == [result.folder / "summary.json"]


def test_references_that_do_not_fit_are_refused(result, shaped, tmp_path):
    one = shaped / "wide.png"
    other = tiny_vit()
    other.module.blocks[0].attn.proj.bias.data += 1
    with pytest.raises(UsageError, match="with other weights; give an audit of the model"):
        explain(other, one, reference=result)
    with pytest.raises(UsageError, match=r"has layers \[1\], not 0: give an audit of layer 0"):
        explain(tiny_vit(), one, layer=0, reference=result)
    with pytest.raises(UsageError, match=r"audited with size \(32, 32\).*\(40, 40\)"):
        explain(tiny_vit(), one, RunConfig(size=40), reference=result)
    few = audit(tiny_vit(), write_images(tmp_path / "few", 3))
    with pytest.raises(UsageError, match="has 3 images, too few for a reference"):
        explain(tiny_vit(), one, reference=few)
    merged = audit(tiny_vit(), write_images(tmp_path / "m", 20), AuditConfig(cls_term="patches"))
    with pytest.raises(UsageError, match="audit with cls_term='own'"):
        explain(tiny_vit(), one, reference=merged)
    explanation = explain(tiny_vit(), one, out=tmp_path / "explained")
    with pytest.raises(ResultError, match="kind 'explanation'"):
        AuditResult.load(explanation.folder)


# --- what cannot be asked, what cannot be read ---------------------------------------------------


def test_settings_without_meaning_are_refused(shaped):
    with pytest.raises(UsageError, match="renormalize is set, which has no effect on maps"):
        explain(tiny_vit(), shaped, RunConfig(renormalize=True))
    with pytest.raises(UsageError, match="cls_term is set"):
        explain(tiny_vit(), shaped, RunConfig(cls_term="patches"))
    told = "tiny/dinov2_reg has no layer 7 to analyse: choose from 0 to 1"
    with pytest.raises(UsageError, match=told):
        explain(tiny_vit(), shaped, layer=7)


def test_unreadable_images_are_named_and_the_others_explained(shaped, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    Image.new("RGB", (900, 100)).save(tmp_path / "strip.png")
    bad = [tmp_path / "broken.jpg", tmp_path / "strip.png", tmp_path / "missing.png"]
    (tmp_path / "list.txt").write_text("\n".join(str(path) for path in bad))
    done = []
    result = explain(
        tiny_vit(),
        [tmp_path / "list.txt", shaped / "wide.png"],
        on_progress=lambda *counts: done.append(counts),
    )
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert result.summary.data == DataSummary(num_images=1, num_failed=3)
    reasons = dict(result.failures)
    assert "damaged" in reasons[str(bad[0])]
    assert "has an aspect ratio above 8" in reasons[str(bad[1])]
    assert "cannot be read" in reasons[str(bad[2])]
    with pytest.raises(ImageReadError, match="none of the 3 images could be read"):
        explain(tiny_vit(), tmp_path / "list.txt")


def test_hostile_names_survive(shaped, tmp_path):
    name = b"<b>&$x_1$\n\xff.png"
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_bytes((shaped / "tall.png").read_bytes())
    result = explain(tiny_vit(), path, out=tmp_path / "out")
    one = Explanation.load(tmp_path / "out").read_image(0)
    assert one.path.endswith("<b>&$x_1$\\n\\xff.png")
    assert len(result) == 1


def test_results_are_replaced_only_when_asked(shaped, tmp_path):
    first = explain(tiny_vit(), shaped / "wide.png", out=tmp_path / "out")
    with pytest.raises(UsageError, match="already holds a result"):
        explain(tiny_vit(), shaped / "tall.png", out=tmp_path / "out")
    assert first.read_image(0).grid == (4, 9)
    explain(tiny_vit(), shaped / "tall.png", out=tmp_path / "out", overwrite=True)
    assert Explanation.load(tmp_path / "out").read_image(0).grid == (7, 4)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("summary.json", "maps", "provenance.json", "failures.csv")
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("layer", [0, None])
def test_half_precisions_are_held_to_their_own_tolerance(shaped, layer, dtype):
    found = explain(tiny_vit(), shaped, RunConfig(dtype=dtype), layer=layer)
    assert found.summary.model.dtype == dtype
    ledger = found.summary.ledger
    # Really in half precision, and held to its tolerance.
    assert 1e-4 < ledger.max_balance_error <= ledger.tolerance == 3e-2
    assert all(np.isfinite(found.read_image(index)["share"]).all() for index in range(3))


def test_a_temporary_result_can_be_kept(shaped, tmp_path):
    explain(tiny_vit(), shaped / "wide.png").save(tmp_path / "kept")
    assert Explanation.load(tmp_path / "kept").provenance["config"]["dtype"] == "float32"
