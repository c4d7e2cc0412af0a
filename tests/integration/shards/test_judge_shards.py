"""Judgements of shards, merged: the result of one run, to the last bit, in any order."""

import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from audits import assert_same_numbers, read_strictly, tiny_vit
from images import write_images
from vitscope import JudgeConfig, audit, judge
from vitscope.cli import main
from vitscope.errors import ResultError, UsageError
from vitscope.files.json_files import read_json, write_json
from vitscope.maps.targets import explain_direction
from vitscope.results.saved_result import SCORES, write_table

CONFIG = JudgeConfig(maps=["share"], removals=["shuffle", "drop"], size=16, gallery=3, device="cpu")
NUM_IMAGES, NUM_SHARDS = 5, 3
UNTIMED = ("path", "removal", "map", "image_id")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = write_images(tmp_path_factory.mktemp("images"), NUM_IMAGES)
    (home / "0000 broken.png").write_bytes(b"no image")
    return home


@pytest.fixture(scope="module")
def masks(tmp_path_factory, folder):
    home = tmp_path_factory.mktemp("masks")
    for path in sorted(folder.iterdir())[2:]:  # the first shard has an image without one
        with Image.open(path) as image:
            mask = np.zeros((image.height, image.width), np.uint8)
            mask[:, : image.width // 2] = 255
            Image.fromarray(mask).save(home / path.name)
    return home


@pytest.fixture(scope="module")
def whole(folder, masks):
    return judge(tiny_vit(), folder, CONFIG, masks=masks)


@pytest.fixture(scope="module")
def shards(folder, masks):
    vit = tiny_vit()
    return [judge(vit, folder, CONFIG, masks=masks, shard=(k, NUM_SHARDS)) for k in (1, 2, 3)]


def untimed(summary):
    maps = {name: replace(one, seconds=0.0) for name, one in summary.maps.items()}
    return repr(vars(replace(summary, maps=maps)))


def test_shards_merge_to_one_run_whatever_their_order(shards, whole):
    for order in permutations(range(NUM_SHARDS)):
        first, *others = (shards[k] for k in order)
        merged = first.merge(*others)
        assert repr(merged.scores.to_pylist()) == repr(whole.scores.to_pylist())
        assert untimed(read_strictly(merged)) == untimed(whole.summary)
        assert merged.missing_shards == []
        assert len(merged.summary.images) == 3
        for index in range(3):
            ours, theirs = merged.read_maps(index), whole.read_maps(index)
            np.testing.assert_array_equal(ours.image, theirs.image)
            for name in theirs.maps:
                np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_merged_result_merges(shards, whole):
    nested = shards[2].merge(shards[0]).merge(shards[1])
    assert nested.missing_shards == []
    assert nested.identity == whole.identity
    for removal, maps in whole.summary.removals.items():
        assert_same_numbers(maps, nested.summary.removals[removal], 1e-12)
    some = shards[2].merge(shards[0])
    assert some.missing_shards == ["2/3"]
    assert some.summary.data.num_images == 3


def test_a_shard_is_compared_with_all_images(shards):
    assert [one.summary.data.num_images for one in shards] == [1, 2, 2]
    for one in shards:
        assert one.summary.reference.num_images == NUM_IMAGES
        assert one.summary.reference.source == "the judged images"


def test_an_image_counts_once(shards, whole, folder):
    for other in (shards[0], whole):
        with pytest.raises(ResultError, match="repeated or also in another result"):
            shards[0].merge(other)


@pytest.mark.parametrize(
    ("changed", "value", "told"),
    [
        ("removals", ["drop"], "its removals differs"),
        ("maps", ["attention"], "its maps differs"),
        ("seed", 1, "its seed differs"),
        ("target", "cosine", "its target differs"),
        ("layer", 0, "its layer differs"),
        ("sanity", True, "its sanity differs"),
        ("has_masks", False, "its has_masks differs"),
        ("preprocessing.size", [24, 24], "its preprocessing differs in size"),
        ("versions.torch", "1.0", r"its versions differs in torch \('1.0' against"),
        ("weights_hash", "f00", "its weights_hash differs"),
        ("behaviour_hash", "f00", "its model has the same weights and computes otherwise"),
        ("unknown", ["a hook"], "whether its model is the same cannot be verified"),
    ],
)
def test_judgements_that_differ_do_not_merge(shards, tmp_path, changed, value, told):
    other = shards[1].save(tmp_path / "other")
    path, (*outer, name) = other.folder / "provenance.json", changed.split(".")
    provenance = read_json(path)
    plan = provenance["plan"]
    for key in outer:
        plan = plan[key]
    assert plan[name] != value
    plan[name] = value
    path.unlink()
    write_json(path, provenance)
    with pytest.raises(ResultError, match=f"cannot be merged: {told}"):
        shards[0].merge(other)


def _forget_removals(table):
    place, column = table.column_names.index("removal"), table["removal"]
    return table.set_column(place, "removal", pa.nulls(len(column), column.type))


@pytest.mark.parametrize(
    "damage",
    [lambda table: table.slice(0, 0), lambda table: table.slice(len(table) // 2), _forget_removals],
    ids=["no rows", "half the rows", "nulls"],
)
def test_a_damaged_table_does_not_merge(shards, tmp_path, damage):
    others = [shards[k].save(tmp_path / str(k)) for k in (1, 2)]
    for other in others:
        write_table(other.folder / SCORES, damage(other.scores))
    for parts in ([shards[0], others[0]], others):
        with pytest.raises(ResultError, match=r"is damaged \(ValueError: the (column rem|tables)"):
            parts[0].merge(parts[1])


def test_damaged_maps_do_not_merge(shards, tmp_path):
    other = shards[1].save(tmp_path / "other")
    path = other.folder / "maps" / "0000.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ResultError, match=r"other/maps/0000\.npz cannot be read as maps"):
        shards[0].merge(other)


def test_judgements_with_other_references_do_not_merge(shards, folder, masks):
    files = sorted(folder.iterdir())
    other = judge(tiny_vit(), files[:4], CONFIG, masks=masks, shard=(2, 2))
    with pytest.raises(ResultError, match="its reference differs in num_images"):
        shards[0].merge(other)
    others = judge(tiny_vit(), files[1:3], CONFIG, masks=masks, references=folder)
    with pytest.raises(ResultError, match="its reference differs in source"):
        shards[0].merge(others)


def test_functions_as_targets_are_neither_sharded_nor_merged(folder):
    vit = tiny_vit()
    target = explain_direction(torch.ones(vit.info.embed_dim))
    with pytest.raises(UsageError, match="shard needs a target by name or a vector"):
        judge(vit, folder, CONFIG, target=target, shard=(1, 3))
    files = sorted(folder.iterdir())
    made = [
        judge(vit, part, CONFIG, target=target, references=folder)
        for part in (files[:2], files[2:])
    ]
    with pytest.raises(ResultError, match="its target is a function"):
        made[0].merge(made[1])


def test_other_results_do_not_merge_with_a_judgement(shards, folder):
    audited = audit(tiny_vit(), folder)
    with pytest.raises(UsageError, match="another result was given as AuditResult"):
        shards[0].merge(audited)
    (shards[0].folder / SCORES).rename(shards[0].folder / "aside")
    try:
        with pytest.raises(ResultError):
            shards[0].merge(shards[1])
    finally:
        (shards[0].folder / "aside").rename(shards[0].folder / SCORES)


def test_the_command_judges_a_shard_and_merges(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vitscope.load_model", lambda _: tiny_vit())
    arguments = ["judge", str(folder), "--model", "dinov2-small", "--maps", "share"]
    for k in (1, 2):
        out = str(tmp_path / str(k))
        assert main([*arguments, "--size", "56", "--shard", f"{k}/3", "--out", out]) == 0
    parts = [str(tmp_path / str(k) / "dinov2-small") for k in (1, 2)]
    capsys.readouterr()
    assert main(["merge", *parts, "--out", str(tmp_path / "merged")]) == 0
    printed = capsys.readouterr().out
    assert "verdict: cannot tell" in printed
    assert "still missing: 3/3" in printed
    content = json.loads((tmp_path / "merged" / "summary.json").read_text())
    assert content["data"]["num_images"] == 3
    with pytest.raises(UsageError, match="shard"):
        judge(tiny_vit(), folder, CONFIG, shard=(4, 3))
