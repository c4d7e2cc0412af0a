"""Which images a gallery keeps, that order and merging do not matter, and files that are damaged.

Maps are kept in float32, so they are compared to 1e-6 of what float32 made.
"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audits import tiny_vit
from images import write_images
from vitscope import AuditConfig, AuditResult, audit
from vitscope.errors import ResultError, UsageError
from vitscope.images.decoding import decode_image, image_id, prepare_image
from vitscope.layout import make_layout
from vitscope.maps.method import MapInput
from vitscope.maps.targets import explain_cosine
from vitscope.results.gallery import GalleryCandidates, choose_images, read_gallery
from vitscope.row_maps import RowMaps

digests = st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")
values = st.one_of(st.floats(-2, 2), st.just(math.nan))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 30)


@pytest.fixture(scope="module")
def result(folder, tmp_path_factory):
    config = AuditConfig(batch_size=8, gallery=12, dtype="float64")
    return audit(tiny_vit(), folder, config, out=tmp_path_factory.mktemp("result") / "r")


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(digests, values, min_size=1, max_size=60), st.integers(1, 40))
def test_extremes_quantiles_and_draws_are_what_they_say(numbers, limit):
    chosen = choose_images(numbers, list(numbers.values()), limit)
    assert len(dict(chosen)) == len(chosen) == min(limit, len(numbers))
    finite = sorted((v, d) for d, v in numbers.items() if math.isfinite(v))
    by_why = {why: [d for d, w in chosen if w == why] for _, why in chosen}
    quarter = max(1, limit // 4)
    lowest, highest = by_why.get("lowest", []), by_why.get("highest", [])
    assert set(lowest) <= {d for _, d in finite[:quarter]}
    assert set(highest) <= {d for _, d in finite[-quarter:]}
    # What is called random owes nothing to the number: the smallest digests of what was left.
    drawn = by_why.get("random", [])
    others = set(numbers) - dict(chosen).keys()
    assert not drawn or not others or max(drawn) < min(others)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(digests, values, min_size=1, max_size=40), st.integers(1, 20), st.randoms())
def test_the_choice_does_not_depend_on_order(numbers, limit, random):
    shuffled = list(numbers.items())
    random.shuffle(shuffled)
    everyone = [value for _, value in shuffled]
    assert choose_images(numbers, list(numbers.values()), limit) == choose_images(
        dict(shuffled), everyone, limit
    )


def test_the_first_images_are_of_every_kind():
    numbers = {f"{i:032x}": i / 100 for i in range(100)}
    chosen = choose_images(numbers, list(numbers.values()), 16)
    assert [why for _, why in chosen[:4]] == ["lowest", "highest", "quantile", "random"]
    assert chosen[0][0] == f"{0:032x}"
    assert chosen[1][0] == f"{99:032x}"
    # The lowest of four quantiles' middles is at an eighth of the ranks.
    assert numbers[chosen[2][0]] == pytest.approx(0.12, abs=0.011)


def make_maps(count):
    layout = make_layout({"cls": 1, "patches": 6}, (2, 3))
    random = torch.Generator().manual_seed(0)
    attention = torch.rand(count, 2, 7, generator=random)
    return RowMaps(
        layout=layout,
        attention=attention,
        contribution_norm=attention[:, 0],
        share=attention[:, 1],
        head_share=attention,
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(digests, min_size=1, max_size=40, unique=True), st.data())
def test_candidates_are_the_smallest_digests_however_they_come(ids, data):
    maps = make_maps(len(ids))
    one = GalleryCandidates(max_bytes=5 * (2 * 2 + 2) * 7 * 4)  # room for five
    one.update(range(len(ids)), ids, maps)
    cut = data.draw(st.integers(0, len(ids)))
    parts = GalleryCandidates(max_bytes=5 * (2 * 2 + 2) * 7 * 4)
    for part in (range(cut, len(ids)), range(cut)):
        if part:
            rows = make_maps(len(ids))
            parts.update(
                list(part),
                [ids[i] for i in part],
                RowMaps(
                    layout=rows.layout,
                    attention=rows.attention[list(part)],
                    contribution_norm=rows.contribution_norm[list(part)],
                    share=rows.share[list(part)],
                    head_share=rows.head_share[list(part)],
                ),
            )
    expected = sorted(ids)[:5]
    for held in (one, parts):
        assert len(held) == len(expected)
        assert [d for d in ids if not held.wants(d) and d <= max(expected)] == [
            d for d in ids if d in expected
        ]


def test_maps_are_those_of_the_image_as_the_audit_saw_it(result, folder):
    gallery, vit = result.gallery, tiny_vit()
    assert len(gallery.images) == 12
    assert (gallery.number, gallery.num_images, gallery.num_candidates) == (
        "centred_share_patches",
        30,
        30,
    )
    vit.module.double()
    by_id = {image_id(path.read_bytes()): path for path in folder.iterdir()}
    for index, image in enumerate(gallery.images[:4]):
        kept = gallery.read_maps(index)
        data = by_id[image.image_id].read_bytes()
        seen, pixels = prepare_image(decode_image(data, background=0), vit.preprocessing)
        assert np.array_equal(kept.image, np.asarray(seen))
        maps = MapInput(vit=vit, pixels=pixels[None].double(), choice=explain_cosine).row
        found = {
            "contribution_norm": kept["contribution_norm"],
            "share": kept["share"],
            "head_share": kept.maps["share"].heads,
        }
        for name, values in found.items():
            expected = maps.on_grid(getattr(maps, name))[0].numpy()
            assert values == pytest.approx(expected, rel=1e-4, abs=1e-6)
        attention = maps.on_grid(maps.attention)[0].numpy()
        assert kept.maps["attention"].heads == pytest.approx(attention, rel=1e-4, abs=1e-6)
        assert kept["attention"] == pytest.approx(attention.mean(axis=0), rel=1e-4, abs=1e-6)


def test_maps_agree_with_the_numbers_of_the_table(result):
    table = result.images.select(["image_id", "attention_mass_patches", "share_patches"])
    rows = {row["image_id"]: row for row in table.to_pylist()}
    for index, image in enumerate(result.gallery.images):
        maps, row = result.gallery.read_maps(index), rows[image.image_id]
        assert maps["attention"].sum() == pytest.approx(row["attention_mass_patches"], abs=1e-5)
        assert maps["share"].sum() == pytest.approx(row["share_patches"], abs=1e-5)


def test_the_extremes_of_the_table_are_in_the_gallery(result):
    table = result.images.select(["image_id", "centred_share_patches"]).to_pylist()
    ranked = [
        row["image_id"] for row in sorted(table, key=lambda row: row["centred_share_patches"])
    ]
    why = {image.image_id: image.why for image in result.gallery.images}
    assert {d for d in ranked[:3] if why.get(d) == "lowest"} == set(ranked[:3])
    assert {d for d in ranked[-3:] if why.get(d) == "highest"} == set(ranked[-3:])


def test_merged_galleries_are_chosen_by_the_same_rule(folder, result):
    paths = sorted(folder.iterdir())
    config = AuditConfig(batch_size=8, gallery=12, dtype="float64")
    parts = [audit(tiny_vit(), part, config) for part in (paths[:13], paths[13:])]
    whole = parts[0].merge(parts[1])
    merged = whole.gallery
    assert (merged.num_images, merged.num_candidates, merged.limit) == (30, 30, 12)
    assert len(merged.images) == 12
    table = whole.images.select(["image_id", "centred_share_patches"]).to_pylist()
    numbers = {row["image_id"]: row["centred_share_patches"] for row in table}
    held = {p.image_id for part in parts for p in part.gallery.images}
    ranked = sorted(held, key=numbers.get)
    why = {image.image_id: image.why for image in merged.images}
    assert {d for d, reason in why.items() if reason == "lowest"} == set(ranked[:3])
    assert {d for d, reason in why.items() if reason == "highest"} == set(ranked[-3:])
    # The three smallest digests of all images are among those of the parts, and drawn first.
    drawn = sorted(set(numbers) - {d for d, reason in why.items() if reason != "random"})[:3]
    assert {d for d, reason in why.items() if reason == "random"} >= set(drawn)
    shares = {row["image_id"]: row["share_patches"] for row in whole.images.to_pylist()}
    for index, image in enumerate(merged.images):
        assert merged.read_maps(index)["share"].sum() == pytest.approx(
            shares[image.image_id], abs=1e-5
        )


def test_a_part_without_gallery_adds_none(folder):
    paths = sorted(folder.iterdir())
    with_one = audit(tiny_vit(), paths[:10], AuditConfig(gallery=4))
    without = audit(tiny_vit(), paths[10:20], AuditConfig(gallery=0))
    assert without.gallery is None
    merged = without.merge(with_one).gallery
    assert len(merged.images) == 4
    assert without.merge(audit(tiny_vit(), paths[20:], AuditConfig(gallery=0))).gallery is None


def test_images_are_chosen_by_plain_shares_where_features_are_dropped(folder):
    dropped = audit(tiny_vit(), folder, AuditConfig(gallery=4, features="drop"))
    assert dropped.gallery.number == "share_patches"


def test_a_image_that_changed_under_the_audit_is_left_out(tmp_path):
    folder = write_images(tmp_path / "images", 6)

    def change(done, total):
        if done == total:
            (folder / "0002.png").write_bytes((folder / "0003.png").read_bytes())
            (folder / "0004.png").unlink()

    result = audit(tiny_vit(), folder, AuditConfig(gallery=6), on_progress=change)
    assert sorted(p.path.rsplit("/")[-1] for p in result.gallery.images) == [
        "0000.png",
        "0001.png",
        "0003.png",
        "0005.png",
    ]


def test_a_result_with_a_gallery_is_replaced_like_any_other(folder, tmp_path):
    out = tmp_path / "out"
    audit(tiny_vit(), folder, AuditConfig(limit=5, gallery=2), out=out)
    audit(tiny_vit(), folder, AuditConfig(limit=5, gallery=3), out=out, overwrite=True)
    assert len(AuditResult.load(out).gallery.images) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("number"), "damaged: number is missing"),
        (lambda index: index["images"][0].update(why="<b>"), r"damaged at images\.0\.why"),
        (lambda index: index.update(images=3), "damaged at images"),
        (lambda index: index.update(num_images="x"), "damaged at num_images"),
        (lambda index: index.update(limit=None), "damaged at limit"),
        (lambda index: index.update(number=5), "damaged at number"),
        (lambda index: index["images"][0].update(path=7), r"damaged at images\.0\.path"),
        (lambda index: index["images"][0].update(image_id=[]), r"damaged at images\.0\.image_id"),
        (lambda index: index["images"].__setitem__(0, None), r"damaged at images\.0"),
    ],
)
def test_a_damaged_gallery_is_refused(result, tmp_path, change, message):
    folder = result.save(tmp_path / "copy").folder
    index = json.loads((folder / "gallery.json").read_text())
    change(index)
    (folder / "gallery.json").write_text(json.dumps(index))
    with pytest.raises(ResultError, match=message):
        read_gallery(folder)


def test_a_gallery_opens_none_but_its_own_files(result, tmp_path):
    folder = result.save(tmp_path / "copy").folder
    index = json.loads((folder / "gallery.json").read_text())
    index["images"][0].update(file="../../secret.npz")
    (folder / "gallery.json").write_text(json.dumps(index))
    found = read_gallery(folder).read_maps(0)
    np.testing.assert_array_equal(found.image, result.gallery.read_maps(0).image)


def test_damaged_maps_are_refused(result, tmp_path):
    gallery = result.save(tmp_path / "copy").gallery
    path = gallery.folder / gallery.images[0].file
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ResultError, match="cannot be read as maps"):
        gallery.read_maps(0)
    names = ["image", *(f"maps/{name}" for name in gallery.images[0].maps)]
    np.savez(path, **{name: np.array([None], dtype=object) for name in names})
    with pytest.raises(ResultError, match="cannot be read as maps: Object arrays"):
        gallery.read_maps(0)


def test_a_negative_number_of_images_is_refused():
    with pytest.raises(UsageError, match="gallery -1: expected 0 or more"):
        AuditConfig(gallery=-1)
