"""Maps by name in explanations, galleries, figures and the command; what is refused before work.

Maps of one image at a time equal those of `map_tokens` to 1e-5 of the largest, in float32.
"""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from audits import tiny_vit
from images import write_images
from installed import write_package
from vitscope import AuditConfig, Explanation, JudgeConfig, audit, explain
from vitscope.cli import main
from vitscope.errors import ImageReadError, UnsupportedModelError, UsageError, VitscopeError
from vitscope.images.image_set import ImageSet, load_pixels
from vitscope.maps.chosen_target import open_target, read_vector
from vitscope.maps.token_maps import map_tokens
from vitscope.runs.explain_run import fit_whole
from vitscope.runs.judge_run import JudgeRun
from vitscope.runs.resources import list_versions

NAMES = ["traced", "attention", "rollout", "random_keep", "share"]
DIM = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 8, size=(40, 40))


@pytest.fixture(scope="module")
def explained(folder):
    """Two images, with four others to compare with."""
    paths = sorted(folder.iterdir())
    return explain(tiny_vit(), paths[:2], maps=NAMES, references=paths[2:6])


@pytest.fixture(scope="module")
def audited(folder, tmp_path_factory):
    config = AuditConfig(gallery=4, maps=NAMES)
    return audit(tiny_vit(), folder, config, out=tmp_path_factory.mktemp("audits") / "whole")


def test_maps_are_those_of_map_tokens_in_the_order_of_their_names(explained, folder):
    vit, paths = tiny_vit(), sorted(folder.iterdir())
    whole = fit_whole((40, 40), vit.preprocessing, vit.info.patch_size)
    pixels, others = (
        torch.stack([load_pixels(path, whole) for path in some]) for some in (paths[:2], paths[2:6])
    )
    expected = map_tokens(vit, pixels, NAMES, references=others)
    for index in range(2):
        one = explained.read_image(index)
        assert list(one.maps) == NAMES
        for name in NAMES:
            wanted = expected.on_grid(name)[index].numpy()
            assert one[name] == pytest.approx(wanted, abs=1e-5 * float(np.abs(wanted).max()))
        about = {name: each.about for name, each in one.maps.items()}
        for name in ("traced", "attention", "rollout"):
            outside = float(expected.unplaced(name)[index])
            assert sum(about[name].unplaced.values()) == pytest.approx(outside, abs=1e-5)
        # The share is of the whole output.
        assert sum(about["share"].unplaced.values()) + one["share"].sum() == pytest.approx(1)
        assert about["traced"].total == pytest.approx(one["traced"].sum(), abs=1e-3)
        assert {name: each.target for name, each in about.items()} == {
            "traced": "self",
            "attention": None,
            "rollout": None,
            "random_keep": "self",
            "share": None,
        }
        error = one.maps["random_keep"].error
        assert error.shape == one.grid
        assert (error > 0).all()
        assert [name for name, each in one.maps.items() if each.heads is not None] == [
            "attention",
            "share",
        ]
    assert explained.provenance["num_map_references"] == 4


def test_a_vector_is_a_target_and_centred_shares_come_with_shares(folder):
    vit = tiny_vit()
    reference = audit(vit, write_more(folder), AuditConfig(gallery=0))
    names = ["share", "single_deletion"]
    result = explain(vit, folder, maps=names, target=torch.ones(DIM), reference=reference)
    one = result.read_image(0)
    assert list(one.maps) == ["share", "centred_share", "single_deletion"]
    assert list(one.shown) == ["centred_share", "single_deletion"]
    assert one.maps["single_deletion"].about.target == "direction"
    outside = one.maps["centred_share"].about.unplaced
    assert set(outside) == {"cls", "registers", "skip"}
    assert sum(outside.values()) + one["centred_share"].sum() == pytest.approx(1, abs=1e-5)


def write_more(folder):
    return write_images(folder.parent / "more", 20, start=50)


def test_references_are_prepared_like_each_image(tmp_path):
    (wide,) = write_images(tmp_path / "wide", 1, size=(90, 40)).iterdir()
    others = write_images(tmp_path / "others", 3, size=(50, 50))
    one = explain(tiny_vit(), wide, maps=["traced"], references=others).read_image(0)
    assert one.framing == "whole"
    assert one.grid == (4, 9)
    assert np.isfinite(one["traced"]).all()


def test_the_gallery_of_an_audit_has_the_maps_that_were_asked_for(audited, folder):
    gallery = audited.gallery
    plain = audit(tiny_vit(), folder, AuditConfig(gallery=4)).gallery
    assert [image.image_id for image in gallery.images] == [i.image_id for i in plain.images]
    for index in range(4):
        maps, usual = gallery.read_maps(index), plain.read_maps(index)
        assert list(maps.maps) == NAMES
        assert list(usual.maps) == ["attention", "contribution_norm", "share"]
        assert np.array_equal(maps["attention"], usual["attention"])
        assert maps["traced"].sum() == pytest.approx(maps.maps["traced"].about.total, abs=1e-3)
        outside = usual.maps["share"].about.unplaced
        assert sum(outside.values()) + usual["share"].sum() == pytest.approx(1, abs=1e-5)


def test_merged_galleries_keep_their_maps(audited, folder, tmp_path):
    more = write_images(tmp_path / "other", 8, start=80)
    other = audit(tiny_vit(), more, AuditConfig(gallery=4, maps=["centre"]))
    gallery = audited.merge(other).gallery
    kept = {tuple(image.maps) for image in gallery.images}
    assert kept == {tuple(NAMES), ("centre",)}
    before = {image.image_id: index for index, image in enumerate(audited.gallery.images)}
    for index, image in enumerate(gallery.images):
        if image.image_id in before:
            original = audited.gallery.read_maps(before[image.image_id])
            assert np.array_equal(gallery.read_maps(index)["traced"], original["traced"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"maps": ["tracd"]}, "no map is called 'tracd': choose from attention,"),
        ({"maps": "traced"}, "maps was given as 'traced': expected names"),
        ({"maps": []}, "expected names"),
        ({"maps": ["traced"]}, "traced compares with other images, and none were given"),
        ({"maps": ["cdam"], "target": "self"}, "the target 'self' compares an image with the mean"),
        (
            {"maps": ["cdam"], "target": "me"},
            "no target is called 'me': expected self, cosine, ",
        ),
        ({"target": "cosine"}, r"target is set, but no map depends on it \(attention, "),
        (
            {"maps": ["rollout"], "references": np.zeros((9, 9, 3), np.uint8)},
            "references is set, but",
        ),
        ({"maps": ["cdam"], "target": torch.ones(5)}, "a vector of 5 numbers: expected 32"),
        ({"maps": ["cdam"]}, "cdam follows the gradient of the target, and a cosine of the image"),
        ({"maps": ["legrad"], "dtype": "bfloat16"}, "legrad compares numbers that bfloat16 rounds"),
    ],
)
def test_what_cannot_be_mapped_is_refused_before_the_work(folder, tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        explain(tiny_vit(), folder, out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"maps": ["tracd"]}, "no map is called 'tracd'"),
        ({"maps": ["traced"], "gallery": 0}, "maps is set, but gallery is 0"),
        ({"maps": ["traced"], "gallery": 1}, "the gallery keeps 1: expected two or more"),
        ({"maps": "traced"}, r"maps 'traced': expected names such as \['attention', 'traced'\]"),
    ],
)
def test_an_audit_refuses_maps_before_the_work(folder, settings, message):
    with pytest.raises(UsageError, match=message):
        audit(tiny_vit(), folder, **settings)


def test_a_map_that_the_model_does_not_have_is_refused_by_name(folder):
    with pytest.raises(UnsupportedModelError, match="legrad applies the final norm"):
        audit(tiny_vit("siglip"), folder, maps=["legrad"])


def test_references_that_cannot_be_read_are_named(folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"none")
    with pytest.raises(ImageReadError, match="none of the references could be read; the first,"):
        explain(tiny_vit(), folder, maps=["traced"], references=tmp_path)


def test_an_image_that_is_its_own_only_reference_is_refused(folder):
    (first, *_) = sorted(folder.iterdir())
    with pytest.raises(UsageError, match="there is nothing to explain"):
        explain(tiny_vit(), first, maps=["traced"], references=first)
    with pytest.raises(UsageError, match="its own and only reference"):
        explain(tiny_vit(), first, maps=["traced"], references=first, target="cosine")
    with pytest.raises(UsageError, match="there is nothing to explain"):
        explain(tiny_vit(), first, maps=["cdam"], references=first)


# --- a map of another package --------------------------------------------------------------------

ORANGE = """
    import torch
    from vitscope.maps.method import MapMethod, MapValues

    def make(given):
        red, _, blue = given.pixels.unbind(dim=1)
        pooled = torch.nn.functional.adaptive_avg_pool2d((red - blue)[:, None], given.layout.grid)
        return given.place(pooled.flatten(1))

    def fail(given):
        raise KeyError("orange")

    def describe(name, compute):
        return MapMethod(
            name=name, title="Orange <b>", compute=compute, signed=True, targeted=False,
            cost="0", source="made here",
        )

    orange, broken, other = describe("orange", make), describe("broken", fail), make
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    points = {name: f"mine:{name}" for name in ("orange", "broken", "other")}
    points["called_otherwise"] = "mine:orange"
    write_package(tmp_path, ORANGE, group="vitscope.maps", points=points)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield
    sys.modules.pop("mine", None)


@pytest.mark.usefixtures("installed")
def test_a_map_of_another_package_is_one_like_any_other(folder):
    explained = explain(tiny_vit(), folder, maps=["orange", "attention"])
    one = explained.read_image(0)
    assert list(one.maps) == ["orange", "attention"]
    assert one.maps["orange"].about.title == "Orange <b>"
    red, _, blue = np.moveaxis(one.image.astype(float), -1, 0)
    rows, columns = one.grid
    difference = (red - blue).reshape(rows, 8, columns, 8).mean(axis=(1, 3))
    assert np.corrcoef(one["orange"].ravel(), difference.ravel())[0, 1] > 0.9
    audited = audit(tiny_vit(), folder, AuditConfig(gallery=2, maps=["orange"]))
    assert list(audited.gallery.read_maps(0).maps) == ["orange"]
    # Whose package's version is told like those of the libraries.
    wanted = list_versions() | {"vitscope-mine": "1.2"}
    assert explained.provenance["versions"] == wanted
    assert audited.provenance["machines"][0]["versions"] == wanted
    assert audited.provenance["plan"]["versions"] == wanted
    images = ImageSet.from_sources(folder, tiny_vit().preprocessing)
    config = JudgeConfig(maps=["orange"])
    assert JudgeRun(tiny_vit(), images, images, config, None, given=True).plan["versions"] == wanted


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "map 'other' is a function in its package: expected a MapMethod"),
        ("called_otherwise", r"vitscope-mine 1\.2 declares the map 'orange' as 'called_otherwise'"),
        ("broken", r"^broken of the package vitscope-mine 1\.2 failed \(KeyError: 'orange'\)"),
    ],
)
def test_a_fault_of_the_package_is_one_line(folder, name, message):
    with pytest.raises(VitscopeError, match=message):
        explain(tiny_vit(), folder, maps=[name])


# --- targets from files --------------------------------------------------------------------------


def test_a_vector_is_read_from_any_of_the_formats(tmp_path):
    vector = torch.arange(5.0)
    save_file({"text": vector}, tmp_path / "a.safetensors")
    np.save(tmp_path / "a.npy", vector[None].numpy())
    torch.save(vector, tmp_path / "a.pt")
    torch.save({"one": vector}, tmp_path / "a.pth")
    for path in tmp_path.iterdir():
        assert torch.equal(read_vector(path), vector)


def test_a_name_stays_a_name_and_its_image_must_be_there(folder):
    for named in ("self", "logit", "logit:a cat", f"image:{folder}"):
        assert open_target(named) == named
    with pytest.raises(UsageError, match=r"absent\.png"):
        open_target(f"image:{folder / 'absent.png'}")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a target ran code",))


def test_what_is_no_vector_is_refused_and_never_run(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "two.safetensors")
    np.save(tmp_path / "grid.npy", np.ones((2, 3)))
    np.save(tmp_path / "code.npy", np.array([Bomb()], dtype=object))
    np.save(tmp_path / "words.npy", np.array(["a"]))
    torch.save(torch.tensor([1.0, float("nan")]), tmp_path / "nan.pt")
    torch.save(torch.tensor([1, 2]), tmp_path / "whole.pt")
    torch.save([Bomb()], tmp_path / "code.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x01")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name, message in {
        "two.safetensors": "holds 2 tensors: expected one",
        "grid.npy": r"has the shape \(2, 3\): expected one vector of finite numbers",
        "code.npy": "cannot be read: Object arrays",
        "words.npy": "is no tensor of floating-point numbers",
        "nan.pt": "expected one vector of finite numbers",
        "whole.pt": "is no tensor of floating-point numbers",
        "code.pt": "code in it is never executed",
        "cut.safetensors": "cannot be read",
        "empty.pt": "cannot be read",
        "absent.npy": "image:PATH, or a file with one vector",
        "selfie": "image:PATH, or a file with one vector",
    }.items():
        with pytest.raises(UsageError, match=message):
            open_target(str(tmp_path / name))


def test_the_command_takes_names_a_target_and_references(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vitscope.load_model", lambda _: tiny_vit())
    np.save(tmp_path / "text.npy", np.ones(DIM, np.float32))
    first = sorted(folder.iterdir())[0]
    out = tmp_path / "out"
    arguments = ["explain", str(first), "--model", "dinov2-small", "--out", str(out)]
    asked = ["--maps", "attention,traced,cdam", "--references", str(folder)]
    assert main([*arguments, *asked, "--target", str(tmp_path / "text.npy")]) == 0
    one = Explanation.load(out / "dinov2-small").read_image(0)
    assert list(one.maps) == ["attention", "traced", "cdam"]
    assert one.maps["cdam"].about.target == "direction"
    capsys.readouterr()
    assert main([*arguments, "--overwrite", "--maps", "traced"]) == 2
    assert "traced compares with other images, and none were given" in capsys.readouterr().err
