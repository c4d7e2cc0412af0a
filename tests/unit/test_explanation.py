"""The shares of one image against plain numpy, and what is kept of it on disk.

Tolerance 1e-10: both sides compute in float64, from numbers of size 1 to 100.
"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ledger import random_trace

from made_results import make_audit
from vitscope.errors import ImageReadError, ResultError
from vitscope.images.preprocessing import Preprocessing
from vitscope.ledger import make_ledger
from vitscope.results.explanation import (
    Explanation,
    ImageExplanation,
    compute_centred,
    compute_centred_map,
    compute_share_without_bias,
    measure_image,
    write_image,
)
from vitscope.results.image_maps import ImageMap
from vitscope.results.saved_result import write_result
from vitscope.results.schema import DataSummary, ExplanationSummary, LedgerSummary
from vitscope.results.schema_maps import MapSummary
from vitscope.results.schema_numbers import ImageNumbers
from vitscope.results.verdict import judge_image
from vitscope.runs.explain_run import fit_whole

GROUPS = {"cls": slice(0, 1), "registers": slice(1, 3), "patches": slice(3, 9)}


def make_case(seed=0, *, skip=True):
    """A ledger, and the terms of its reference as plain arrays (image, dim)."""
    order = None if skip else {"patches": 6}
    trace, reference = random_trace(seed, skip=skip, order=order)
    groups = GROUPS if skip else {"patches": slice(0, 6)}
    tokens = reference.token_contributions.numpy()
    terms = {name: tokens[:, part].sum(axis=1) for name, part in groups.items()}
    if skip:
        terms["skip"] = reference.skip.numpy()
    return make_ledger(trace), terms


def plain_cosine(a, b):
    return (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())


@pytest.mark.parametrize("skip", [True, False])
def test_shares_without_the_bias_equal_the_definition(skip):
    ledger, terms = make_case(1, skip=skip)
    found = compute_share_without_bias(ledger)
    whole = sum(terms.values())
    assert found.keys() == terms.keys()
    for name, term in terms.items():
        for image in range(len(whole)):
            expected = term[image] @ whole[image] / (whole[image] @ whole[image])
            assert float(found[name][image]) == pytest.approx(expected, abs=1e-10)
    assert torch.stack(list(found.values())).sum(dim=0).numpy() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("skip", [True, False])
def test_the_centred_shares_equals_the_definition(skip):
    ledger, terms = make_case(2, skip=skip)
    generator = np.random.default_rng(3)
    means = {name: generator.normal(size=term.shape[1]) for name, term in terms.items()}
    found = compute_centred(ledger, {n: torch.from_numpy(m) for n, m in means.items()})
    offsets = {name: term - means[name] for name, term in terms.items()}
    r = sum(offsets.values())
    t = r - offsets.get("skip", 0)
    for name, offset in offsets.items():
        for image in range(len(r)):
            share = offset[image] @ r[image] / (r[image] @ r[image])
            cosine = plain_cosine(offset[image], r[image])
            assert float(found["centred_share", name][image]) == pytest.approx(share, abs=1e-10)
            assert float(found["centred_cosine", "residual", name][image]) == pytest.approx(cosine)
            if name != "skip":
                of_t = plain_cosine(offset[image], t[image])
                got = float(found["centred_cosine", "attention", name][image])
                assert got == pytest.approx(of_t, abs=1e-10)
    assert ("centred_cosine", "attention", "skip") not in found


def test_a_image_that_is_its_own_mean_is_undefined_not_noise():
    ledger, terms = make_case(4)
    means = {name: torch.from_numpy(term[0] * (1 + 1e-15)) for name, term in terms.items()}
    found = compute_centred(ledger, means)
    for path, values in found.items():
        assert math.isnan(float(values[0])), path
        assert not math.isnan(float(values[1])), path


def test_a_constant_term_has_no_direction_but_the_others_keep_theirs():
    ledger, terms = make_case(5)
    means = {name: torch.zeros(term.shape[1]).double() for name, term in terms.items()}
    means["skip"] = torch.from_numpy(terms["skip"][0])
    found = compute_centred(ledger, means)
    assert math.isnan(float(found["centred_cosine", "residual", "skip"][0]))
    assert float(found["centred_share", "skip"][0]) == 0
    shares = [float(v[0]) for path, v in found.items() if path[0] == "centred_share"]
    assert sum(shares) == pytest.approx(1, abs=1e-10)


def make_single():
    trace, _ = random_trace(6)
    one = {f: getattr(trace, f)[:1] for f in ("logits", "values", "skip", "branch", "residual")}
    single = type(trace)(**{**trace.__dict__, **one, "output": trace.output[:1]})
    return make_ledger(single), single


def test_centred_numbers_are_there_where_there_are_means():
    ledger, trace = make_single()
    numbers = measure_image(ledger, None)
    assert numbers.centred_share == numbers.centred_cosine == {}
    assert sum(numbers.share.values()) == pytest.approx(1, abs=1e-10)
    means = {name: torch.ones(ledger.bias.shape[0]).double() for name in (*GROUPS, "skip")}
    numbers = measure_image(ledger, means)
    assert sum(numbers.centred_share.values()) == pytest.approx(1, abs=1e-10)
    # The map's patches are the patches of the account, whatever the means.
    found = compute_centred_map(trace, ledger, means)[0, :, GROUPS["patches"]]
    assert float(found.sum()) == pytest.approx(numbers.centred_share["patches"], abs=1e-10)


def test_the_centred_map_equals_the_definition():
    trace, reference = random_trace(7)
    ledger, terms = make_case(7)
    generator = np.random.default_rng(8)
    means = {name: generator.normal(size=term.shape[1]) for name, term in terms.items()}
    found = compute_centred_map(trace, ledger, {n: torch.from_numpy(m) for n, m in means.items()})
    r = sum(terms[name] - means[name] for name in terms)
    contributions = reference.token_contributions.numpy()
    num_patches = GROUPS["patches"].stop - GROUPS["patches"].start
    for image in range(len(r)):
        for token in range(GROUPS["patches"].start, GROUPS["patches"].stop):
            offset = contributions[image, token] - means["patches"] / num_patches
            expected = offset @ r[image] / (r[image] @ r[image])
            assert float(found[image, :, token].sum()) == pytest.approx(expected, abs=1e-10)


def test_there_is_no_centred_map_of_an_image_that_is_its_own_mean():
    ledger, trace = make_single()
    terms = {**ledger.residual_terms}
    means = {name: terms[name][0].double() for name in (*GROUPS, "skip")}
    assert compute_centred_map(trace, ledger, means) is None


# --- images in their own shape -----------------------------------------------------------------


def preprocessing(side):
    return Preprocessing(
        size=(side, side), resize="stretch", crop_fraction=0.875, mean=(0,) * 3, std=(1,) * 3
    )


@given(
    st.integers(1, 4000),
    st.floats(1, 8),
    st.booleans(),
    st.sampled_from([(14, 14), (16, 16), (8, 4)]),
    st.integers(1, 40),
)
@settings(max_examples=200)
def test_a_image_keeps_its_shape_to_half_a_patch(shorter, aspect, tall, patch, patches):
    longer = min(8 * shorter, round(shorter * aspect))
    width, height = (shorter, longer) if tall else (longer, shorter)
    side = patches * max(patch)
    found = fit_whole((width, height), preprocessing(side), patch)
    rows, columns = found.size
    assert rows % patch[0] == columns % patch[1] == 0
    assert min(rows, columns) == side
    scale = side / shorter
    assert abs(rows - height * scale) <= patch[0] / 2 + 1e-6
    assert abs(columns - width * scale) <= patch[1] / 2 + 1e-6
    assert (found.resize, found.crop_fraction) == ("cover", 1.0)


def test_a_strip_is_refused():
    with pytest.raises(ImageReadError, match="900 x 100 px has an aspect ratio above 8"):
        fit_whole((900, 100), preprocessing(224), (14, 14))


# --- on disk -------------------------------------------------------------------------------------


_TERMS = {"patches": 0.5, "skip": math.nan}
NUMBERS = ImageNumbers(
    attention_mass=_TERMS,
    patch_share=0.5,
    contribution_norm=_TERMS,
    cosine={"attention": _TERMS, "residual": _TERMS},
    restricted_cosine={"attention": _TERMS},
    share=_TERMS,
    share_without_bias=_TERMS,
    balance_error=1e-7,
)


def make_map(values, *, heads=None, error=None, **about):
    summary = MapSummary(title="T", signed=True, unplaced={"cls": 0.25, "skip": math.nan}, **about)
    return ImageMap(about=summary, values=values, heads=heads, error=error)


def make_image(path="a/dog.jpg", **changes):
    generator = np.random.default_rng(0)
    head_attention, head_share = generator.random((2, 3, 4, 5), dtype=np.float32)
    values = {
        "path": path,
        "image_id": "ab" * 16,
        "framing": "whole",
        "image": generator.integers(0, 256, (32, 40, 3), dtype=np.uint8),
        "maps": {
            "attention": make_map(head_attention.mean(axis=0), heads=head_attention),
            "contribution_norm": make_map(generator.random((4, 5), dtype=np.float32)),
            "share": make_map(head_share.sum(axis=0), heads=head_share),
            "measured_2": make_map(
                generator.random((4, 5)), error=generator.random((4, 5)), total=1.5, target="self"
            ),
        },
        "numbers": NUMBERS,
        "verdict": judge_image({"patches": 0.9, "skip": 0.1}, 30, "of an audit"),
    }
    return ImageExplanation(**values | changes)


def save(folder, *images):
    folder.mkdir()
    entries = [write_image(folder, i, image) for i, image in enumerate(images)]
    made, _ = make_audit()
    summary = ExplanationSummary(
        model=made.model,
        settings=made.settings,
        preprocessing=made.preprocessing,
        data=DataSummary(num_images=len(entries), num_failed=1),
        ledger=LedgerSummary(max_balance_error=1e-7, tolerance=1e-4),
        layer=1,
        reference=None,
        images=tuple(entries),
    )
    write_result(folder, summary, failures=[("b.jpg", "bad")], provenance={})
    return Explanation.load(folder)


def test_what_is_written_is_read_again(tmp_path):
    undefined = judge_image({"patches": math.nan, "skip": math.nan}, 30, "of an audit")
    of_all = np.random.default_rng(1).random((2, 3, 4, 5), dtype=np.float32)
    second = make_image("c.jpg", verdict=undefined, heads_by_layer=of_all)
    saved = save(tmp_path / "e", make_image(), second)
    assert len(saved) == 2
    assert saved.read_image(0).heads_by_layer is None
    assert np.array_equal(saved.read_image(1).heads_by_layer, of_all)
    assert saved.failures == [("b.jpg", "bad")]
    text = (saved.folder / "summary.json").read_text()
    assert "NaN" not in text
    original, found = make_image(), saved.read_image(0)
    assert np.array_equal(found.image, original.image)
    assert list(found.maps) == list(original.maps)
    for name, one in original.maps.items():
        read = found.maps[name]
        assert found[name] is read.values
        assert repr(read.about) == repr(one.about)  # NaN differs from itself
        for part in ("values", "heads", "error"):
            expected, got = getattr(one, part), getattr(read, part)
            assert (got is None) == (expected is None)
            if expected is not None:
                assert np.array_equal(got, expected)
                assert got.dtype == expected.dtype
    assert found.verdict == original.verdict
    assert found.grid == (4, 5)
    assert math.isnan(found.numbers.cosine["residual"]["skip"])
    again = saved.read_image(1)
    assert again.verdict.status == "cannot tell"
    assert math.isnan(again.verdict.share)
    assert again.verdict.main_other_source is None


def test_a_result_of_another_kind_is_refused(tmp_path):
    saved = save(tmp_path / "e", make_image())
    summary = json.loads((saved.folder / "summary.json").read_text()) | {"kind": "audit"}
    (saved.folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ResultError, match="kind 'audit': expected 'explanation'"):
        Explanation.load(saved.folder)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a saved array ran code",))


def replace_maps(saved, **changes):
    path = saved.folder / "maps" / "0000.npz"
    with np.load(path) as arrays:
        content = dict(arrays) | changes
    np.savez(path, **{name: array for name, array in content.items() if array is not None})


@pytest.mark.parametrize(
    "changes",
    [
        {"maps/share": np.array([Bomb()], dtype=object)},
        {"maps/share": np.zeros((5, 4))},
        {"maps/share": np.zeros((4, 5), dtype=np.int64)},
        {"heads/share": np.zeros((2, 4, 5))},
        {"heads/share": np.full((3, 4, 5), np.nan)},
        {"errors/measured_2": np.zeros((5, 4))},
        {"maps/contribution_norm": np.full((4, 5), np.nan)},
        {"maps/contribution_norm": None},
        {"image": None},
        {"maps/unknown": np.zeros((4, 5))},
        {"maps/../share": np.zeros((4, 5))},
        {"../../escaped": np.zeros((4, 5))},
        {"more/share": np.zeros((4, 5))},
        {"share": np.zeros((4, 5))},
        {"image": np.zeros((32, 40), dtype=np.uint8)},
        {"image": np.zeros((32, 40, 3))},
        {"heads_by_layer": np.zeros((2, 3, 5, 4))},
        {"heads_by_layer": np.zeros((3, 4, 5))},
        {"heads_by_layer": np.zeros((0, 3, 4, 5))},
        {"heads_by_layer": np.full((2, 3, 4, 5), np.nan)},
    ],
)
def test_damaged_maps_are_refused_and_never_run(tmp_path, changes):
    saved = save(tmp_path / "e", make_image())
    replace_maps(saved, **changes)
    with pytest.raises(ResultError, match=r"0000\.npz cannot be read"):
        saved.read_image(0)


def test_missing_cut_or_foreign_files_are_refused(tmp_path):
    saved = save(tmp_path / "e", make_image())
    path = saved.folder / "maps" / "0000.npz"
    data = path.read_bytes()
    for content in (data[: len(data) // 2], b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(ResultError, match="cannot be read"):
            saved.read_image(0)
    path.unlink()
    with pytest.raises(ResultError, match="cannot be read"):
        saved.read_image(0)
    with pytest.raises(ResultError, match="cannot be read"):
        saved.read_image(7)


def test_maps_are_read_from_the_result_alone_whatever_the_summary_says(tmp_path):
    saved = save(tmp_path / "e", make_image())
    summary = json.loads((saved.folder / "summary.json").read_text())
    summary["images"][0]["file"] = "../../etc/passwd"
    (saved.folder / "summary.json").write_text(json.dumps(summary))
    assert saved.read_image(0).grid == (4, 5)


@pytest.mark.parametrize("name", ["../../etc/passwd", "Share", "2share", "", "a/b", "share\n"])
def test_a_map_that_is_not_called_like_one_is_refused(tmp_path, name):
    saved = save(tmp_path / "e", make_image())
    summary = json.loads((saved.folder / "summary.json").read_text())
    maps = summary["images"][0]["maps"]
    maps[name] = maps.pop("share")
    (saved.folder / "summary.json").write_text(json.dumps(summary))
    replace_maps(
        saved, **{"maps/share": None, "heads/share": None, f"maps/{name}": np.ones((4, 5))}
    )
    with pytest.raises(
        ResultError, match=r"0000\.npz cannot be read as maps: .* is no name of a map"
    ):
        Explanation.load(saved.folder).read_image(0)


def test_an_image_without_maps_is_refused(tmp_path):
    saved = save(tmp_path / "e", make_image())
    summary = json.loads((saved.folder / "summary.json").read_text())
    summary["images"][0]["maps"] = {}
    (saved.folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ResultError, match=r"damaged at images\.0\.maps: expected at least one"):
        Explanation.load(saved.folder)
