"""What a comparison of remedies keeps: what was measured, interrupted runs; and what it refuses."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from audits import tiny_vit
from images import write_images
from vitscope import AuditConfig, audit
from vitscope.errors import ResultError, UnsupportedModelError, UsageError
from vitscope.figures.saved import load_results
from vitscope.files.tensor_files import read_tensors, write_tensors
from vitscope.remedies.registry import REMEDIES as REMEDY_NAMES
from vitscope.remedies.registry import parse_remedy
from vitscope.remedies.remedy import Origin
from vitscope.remedies.remedy_files import load_remedy, save_remedy
from vitscope.remedies.statistics import Thresholds
from vitscope.remedies.tokens import ReplaceTokens, Skip
from vitscope.results.remedy_result import RemedyResult
from vitscope.runs import remedy_loop
from vitscope.runs.model_run import make_image_set
from vitscope.runs.remedy_fit import edited, fit_remedy
from vitscope.runs.remedy_loop import compare_remedies


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("photos"), 26)


def original_config():
    from vitscope import AuditConfig

    return AuditConfig(dtype="float64", gallery=0, num_workers=0)


@pytest.mark.parametrize(
    "name", [n for n in REMEDY_NAMES if n not in {"skip", "mask", "unread", "zero"}]
)
def test_whatever_is_measured_is_saved_and_restored(name, photos, tmp_path):
    settings = {
        "attentive-head": ":epochs=1",
        "test-time-registers": ":threshold=1,depth=1",
        "sinks": ":concentration=0,small_value=100",
    }
    vit, config = tiny_vit().hashed(), original_config()
    remedy = parse_remedy(name + settings.get(name, ""))
    if "tokens" in vars(remedy) and remedy.tokens == "high_norm":
        remedy = replace(
            remedy, thresholds=Thresholds({1: 2.0}), measured_on=Origin("", remedy.label)
        )
    fitted = fit_remedy(vit, remedy, make_image_set(vit, photos, config), config)
    saved = load_remedy(save_remedy(fitted, tmp_path / "saved.safetensors"))
    assert saved.describe() == fitted.describe()
    for key, measured in fitted.list_measured().items():
        assert measured.tell() == saved.list_measured()[key].tell()


def test_overwriting_leaves_no_audit_of_the_earlier_comparison(photos, tmp_path):
    settings = {"limit": 5, "gallery": 0, "num_workers": 0, "out": tmp_path / "out"}
    compare_remedies(tiny_vit(), photos, ["zero", "mean"], **settings)
    (tmp_path / "out" / "01-zero" / "mine.txt").write_text("kept")
    compare_remedies(tiny_vit(), photos, ["skip"], overwrite=True, **settings)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    # What holds something else is no result of ours alone.
    assert left == {"original", "01-skip", "comparison", "01-zero"}


def test_a_remedy_file_of_the_user_is_never_replaced_unasked(photos, tmp_path):
    settings = {"limit": 5, "gallery": 0, "num_workers": 0}
    vit, mine = tiny_vit(), tmp_path / "out" / "01-mean.safetensors"
    config = AuditConfig(**settings)
    fitted = fit_remedy(vit, parse_remedy("mean"), make_image_set(vit, photos, config), config)
    mine.parent.mkdir()
    before = save_remedy(fitted, mine).read_bytes()
    with pytest.raises(UsageError, match="is already there"):
        compare_remedies(vit, photos, ["mean"], out=tmp_path / "out", **settings)
    assert [path.name for path in mine.parent.iterdir()] == [mine.name]  # nothing ran
    # One that an earlier comparison did not write is not deleted with it either.
    compare_remedies(vit, photos, ["zero"], out=tmp_path / "out", **settings)
    save_remedy(fitted, kept := tmp_path / "out" / "01-zero.safetensors")
    compare_remedies(vit, photos, ["skip"], out=tmp_path / "out", overwrite=True, **settings)
    assert mine.read_bytes() == before
    assert kept.is_file()


def test_audits_that_replaced_the_compared_ones_are_not_taken_for_them(photos, tmp_path):
    settings = {"gallery": 0, "num_workers": 0, "out": tmp_path / "out"}
    compare_remedies(tiny_vit(), photos, ["zero"], limit=5, **settings)
    with stopped(remedy_loop, "_time_passes"):
        compare_remedies(tiny_vit(), photos, ["zero"], limit=7, overwrite=True, **settings)
    left = RemedyResult.load(tmp_path / "out" / "comparison")
    with pytest.raises(ResultError, match="has replaced the audit"):
        left.read_audit()
    assert left.read_audit("zero").summary.data.num_images == 5
    with pytest.raises(ResultError, match="finish the run"):
        load_results([tmp_path / "out"])
    compare_remedies(tiny_vit(), photos, ["zero"], limit=7, overwrite=True, resume=True, **settings)
    again = RemedyResult.load(tmp_path / "out" / "comparison")
    assert again.read_audit().summary.data.num_images == 7
    assert {one.kind for one in load_results([tmp_path / "out"])} == {"audit", "remedies"}


@contextmanager
def stopped(module, name, *, model="", resume=False):
    """Interrupts where a function of a module is called with this model."""
    own = getattr(module, name)

    def stop(vit, *rest, **named):
        if vit.info.id.endswith(model):
            raise KeyboardInterrupt
        return own(vit, *rest, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, name, stop)
        with pytest.raises(KeyboardInterrupt) as caught:
            yield
    (told,) = caught.value.__notes__
    assert told.startswith("finished audits are kept in ")
    assert told.endswith(": the same call resumes it" if resume else ": give resume=True to resume")


@pytest.fixture
def measured(monkeypatch):
    """Labels of the remedies that are measured."""
    labels, measure = [], ReplaceTokens.measure

    def note(remedy, vit, read):
        labels.append(remedy.label)
        return measure(remedy, vit, read)

    monkeypatch.setattr(ReplaceTokens, "measure", note)
    return labels


def test_a_resumed_comparison_measures_nothing_again(photos, tmp_path, measured):
    settings = {"limit": 4, "gallery": 0, "num_workers": 0, "out": tmp_path}
    with stopped(remedy_loop, "AuditRun", model="+mean"):
        compare_remedies(tiny_vit(), photos, ["mean"], **settings)
    assert load_remedy(tmp_path / "01-mean.safetensors").label == "mean"
    with stopped(remedy_loop, "_time_passes", resume=True):
        compare_remedies(tiny_vit(), photos, ["mean"], resume=True, **settings)
    assert measured == ["mean"]
    given = ReplaceTokens(by="mean").fitted(tiny_vit(), lambda: [torch.randn(2, 3, 32, 32)])
    with stopped(remedy_loop, "AuditRun", model="+mean", resume=True):
        compare_remedies(tiny_vit(), photos, [given], resume=True, **settings)
    assert load_remedy(tmp_path / "01-mean.safetensors").describe() == given.describe()
    measured.clear()
    # What another run measured, on other images, is not taken.
    with stopped(remedy_loop, "fit_remedy"):
        compare_remedies(tiny_vit(), photos, ["mean"], overwrite=True, seed=1, **settings)
    found = compare_remedies(tiny_vit(), photos, ["mean"], resume=True, seed=1, **settings)
    assert measured == ["mean"]
    told = load_remedy(tmp_path / "01-mean.safetensors").describe()
    assert f"edited: {told}" in found.read_audit("mean").summary.model.notes
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("01-mean", "01-mean.safetensors", "comparison", "original")
    ]


def test_the_trace_is_left_out_for_an_edit_that_it_cannot_go_through(photos):
    found = compare_remedies(
        tiny_vit(),
        photos,
        ["shuffle", "skip:scale=0.5"],
        limit=7,
        trace=2,
        gallery=2,
        maps=["traced", "attention"],
        num_workers=0,
    )
    shuffled, scaled = found.summary.remedies
    audits = [found.read_audit(), *map(found.read_audit, ("shuffle", "skip:scale=0.5"))]
    assert shuffled.traces == (audits[0].summary.trace, None)
    assert scaled.traces == (audits[0].summary.trace, audits[2].summary.trace)
    assert "no trace goes through it" in found._repr_html_()
    galleries = [audit.gallery for audit in audits]
    assert [[*one.images[0].maps] for one in galleries] == [
        *(["traced", "attention"], ["attention"], ["traced", "attention"])
    ]
    ids = [[image.image_id for image in one.images] for one in galleries]
    assert ids[0] == ids[1] == ids[2]
    # Those that the edited models' own numbers would choose are others.
    assert {image.why for image in galleries[1].images} == {"original"}


def test_a_trace_through_such_an_edit_is_refused_before_anything_runs(photos, measured):
    vit, config = tiny_vit(), replace(original_config(), trace=2)
    message = "no trace goes through the edit shuffle.*: leave out trace and traced maps, or this"
    with (
        pytest.raises(UnsupportedModelError, match=message),
        edited(vit, ["skip", "shuffle"], photos, config),
    ):
        pass
    assert measured == []
    with edited(vit, ["shuffle"], photos, original_config()) as other:
        for settings in ({"trace": 2}, {"gallery": 2, "maps": ["traced"]}):
            with pytest.raises(UnsupportedModelError, match=message):
                audit(other, photos, limit=3, num_workers=0, **settings)


def test_a_saved_remedy_is_the_same_and_of_one_model_alone(photos, tmp_path):
    vit = tiny_vit().hashed()
    config = original_config()
    images = make_image_set(vit, photos, config)
    fitted = fit_remedy(vit, ReplaceTokens(by="shuffle"), images, config)
    saved = load_remedy(save_remedy(fitted, tmp_path / "shuffle.safetensors"))
    assert saved.describe() == fitted.describe()
    pixels = torch.randn(2, 3, 32, 32)
    with fitted.applied(vit) as one:
        before = one.run(pixels)
    with saved.applied(vit) as one:
        assert torch.equal(one.run(pixels), before)
    other = tiny_vit("dinov3")
    with pytest.raises(UsageError, match="measured on another model"), saved.applied(other):
        pass
    with (
        Skip(scale=0.5).applied(vit) as scaled,
        pytest.raises(UsageError, match="other weights or edits"),
        saved.applied(scaled),
    ):
        pass
    with pytest.raises(UsageError, match="measured on another model than tiny/dinov3"):
        compare_remedies(other, photos, [saved], limit=3, num_workers=0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()  # nothing ran before
    changed = replace(saved, layers=(0,))
    assert (changed.measured_on, changed.statistics) == (None, None)
    assert replace(saved, tokens="registers").describe() == saved.describe()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((tmp_path / "shuffle.safetensors").read_bytes()[:-8])
    with pytest.raises(ResultError, match="cannot be read"):
        load_remedy(broken)
    with pytest.raises(UsageError, match="measures nothing"):
        save_remedy(Skip(), tmp_path / "skip.safetensors")


@pytest.mark.parametrize("name", ["mean", "deviation", "lent"])
def test_a_file_whose_tensors_were_changed_is_no_remedy(name, photos, tmp_path):
    vit, config, path = tiny_vit(), original_config(), tmp_path / "noise.safetensors"
    fitted = fit_remedy(vit, ReplaceTokens(by="noise"), make_image_set(vit, photos, config), config)
    save_remedy(fitted, path)
    tensors, metadata = read_tensors(path)
    key = next(key for key in tensors if f".{name}/" in key)
    own = tensors[key]
    for other in (own.flatten(), own.mT, own[..., :-1], own + 1):
        write_tensors(path, tensors | {key: other.contiguous()}, metadata)
        with pytest.raises(ResultError, match="is no saved remedy, or damaged"):
            load_remedy(path)


@pytest.mark.parametrize("told", [{"remedy": 5}, {"remedy": "sinks"}, "[" * 10**5])
def test_a_foreign_file_is_no_remedy(tmp_path, told):
    path = tmp_path / "foreign.safetensors"
    tensors = {f"sinks.{name}": torch.full((1, 4), 99) for name in ("places", "numbers", "groups")}
    text = told if isinstance(told, str) else json.dumps(told | {"weights_hash": "0"})
    save_file(tensors, path, {"vitscope_remedy": text})
    with pytest.raises(ResultError, match="is no saved remedy, or damaged"):
        load_remedy(path)


@pytest.mark.parametrize(
    ("remedies", "settings", "told"),
    [
        ([], {}, "no remedy was given"),
        ("zero", {}, "expected a list"),
        ([3], {}, "a remedy was given as int"),
        (["zero", "skip", "zero"], {}, "the remedy zero is given twice"),
        (["zero"], {"features": "drop"}, "needs features='keep'"),
        (["zero"], {"shard": (1, 2)}, "needs shard=None"),
        (["zero"], {"resume": True}, "resume needs `out`"),
        (["interpolate"], {"limit": 4}, "no high-norm patches were found in 4 images"),
    ],
)
def test_wrong_use_is_one_sentence(photos, remedies, settings, told):
    with pytest.raises(UsageError, match=told):
        compare_remedies(tiny_vit(), photos, remedies, gallery=0, num_workers=0, **settings)


@pytest.mark.parametrize(
    ("remedy", "told"),
    [
        ("zero", "has no registers"),
        ("mean", "has no registers"),
        ("skip:layers=7", "has no block 7"),
        ("sinks:layers=7", "has no block 7"),
        ("position-mean:layers=7", "has no block 7"),
        ("skip:layers=-3", "from -2 to -1"),
        ("test-time-registers:at=registers", "has no registers"),
        ("test-time-registers:depth=9,threshold=1", "depth was given as 9"),
        ("test-time-registers:highest=9", "highest was given as 9"),
    ],
)
def test_an_edit_that_cannot_apply_is_refused_before_anything_runs(photos, tmp_path, remedy, told):
    with pytest.raises((UsageError, UnsupportedModelError), match=told):
        compare_remedies(tiny_vit("dinov2"), photos, ["skip", remedy], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
