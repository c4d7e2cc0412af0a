"""Targets of whole runs: a class, a second image, a vector; what results tell of them."""

import pytest
import torch
from PIL import Image

from audits import tiny_vit
from classifiers import CLASSIFIERS
from images import write_images
from vitscope import Explanation, JudgeResult, explain, judge, map_tokens, wrap_model
from vitscope.adapters.transformers import load_transformers
from vitscope.cli import main
from vitscope.errors import ImageReadError, UnsupportedModelError, UsageError
from vitscope.images.image_set import load_pixels
from vitscope.maps.chosen_target import choose_target
from vitscope.maps.references import make_references
from vitscope.maps.targets import explain_pair
from vitscope.testing.randomize import randomize

FEW = {"maps": ["traced", "cdam"], "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 6, size=(40, 40))


@pytest.fixture(scope="module")
def paths(folder):
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a trained classifier of transformers."""
    place = tmp_path_factory.mktemp("models") / "classifier"
    randomize(CLASSIFIERS["dinov2"]()).save_pretrained(place)
    return place


def read(vit, paths):
    return torch.stack([load_pixels(path, vit.preprocessing) for path in paths])


def open_image(path):
    with Image.open(path) as opened:
        return opened.copy()


# --- a second image ------------------------------------------------------------------------------


def test_a_second_image_is_prepared_like_the_others(paths):
    vit, (own, other, *more) = tiny_vit(), paths
    pixels, references = read(vit, [own]), read(vit, more)
    wanted = explain_pair(vit.run(read(vit, [other]))[0].detach())
    found = map_tokens(vit, pixels, ["traced"], target=wanted, references=references)["traced"]
    prepared = read(vit, [other])
    for target in (f"image:{other}", other, open_image(other), prepared[0], prepared):
        made = map_tokens(vit, pixels, ["traced"], target=target, references=references)
        torch.testing.assert_close(made["traced"], found, rtol=1e-5, atol=1e-6)
    # s of the second image itself is 1, and that of the average image 0.
    mean = make_references(vit, [references]).mean_feature
    features = vit.run(prepared).detach()
    ends = wanted(features, make_references(vit, [references])).measure
    torch.testing.assert_close(ends(features), torch.ones(1))
    torch.testing.assert_close(ends(mean.unsqueeze(0)), torch.zeros(1))


def test_an_explanation_tells_its_second_image(paths):
    own, other, *more = paths
    made = explain(tiny_vit(), own, target=f"image:{other}", references=more, **FEW)
    assert made.read_image(0).maps["traced"].about.target == f"image {other.name}"
    same = explain(tiny_vit(), own, target=open_image(other), references=more, **FEW)
    told = [one.provenance["target"].split() for one in (made, same)]
    assert told[0][:2] == ["image", other.name]
    assert told[0][2] == told[1][1]  # the digest of the same pixels
    another = explain(tiny_vit(), own, target=own, references=more, **FEW).provenance["target"]
    assert another.split()[2] != told[0][2]


def test_a_query_of_an_address_is_not_told(paths, monkeypatch):
    pixels = read(tiny_vit(), paths[:1])[0]
    monkeypatch.setattr("vitscope.maps.chosen_target.load_pixels", lambda *_: pixels)
    vit = tiny_vit()
    target = "image:https://host/a/photo.png?token=secret"
    chosen = choose_target(vit, target, vit.preprocessing, has_references=True)
    assert chosen.told.split()[:2] == ["image", "photo.png"]


def test_a_second_image_is_read_once_beside_a_judgement(paths, monkeypatch):
    vit, settings = tiny_vit(), {"target": paths[1], "size": 16, "device": "cpu"}
    made = judge(vit, paths[2:], maps=["cdam"], gallery=0, limit=2, **settings)
    read = []
    monkeypatch.setattr(
        "vitscope.maps.chosen_target.load_pixels",
        lambda *given: read.append(given) or load_pixels(*given),
    )
    explain(vit, paths[0], judged=made, references=paths[2:4], maps=["attention"], **settings)
    assert len(read) == 1


def test_preprocessed_images_take_a_preprocessed_second_image(paths):
    vit = tiny_vit()
    pixels = list(read(vit, paths))
    settings = {**FEW, "preprocessed": True, "references": pixels[2:]}
    with pytest.raises(UsageError, match="give it preprocessed too, as a tensor"):
        explain(vit, pixels[:1], target=paths[1], **settings)
    made = explain(vit, pixels[:1], target=pixels[1], **settings)
    assert made.read_image(0).maps["traced"].about.target == "image"


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("image:absent.png", "absent.png"),
        ("image:", "no target is called 'image:'"),
        ("image:{folder}", "6 images were given: expected one"),
        (torch.zeros(2, 3, 32, 32), "given as 2 images: expected one"),
        (torch.zeros(1, 4, 32, 32), "pixels were given as a tensor of shape"),
        ("image", "no target is called 'image'"),
    ],
)
def test_what_is_no_second_image_is_refused(folder, paths, target, told):
    target = target.format(folder=folder) if isinstance(target, str) else target
    with pytest.raises(UsageError, match=told):
        explain(tiny_vit(), paths[0], target=target, references=paths[2:], **FEW)


def test_a_second_image_that_cannot_be_read_is_named(paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for target in (broken, f"image:{broken}"):
        with pytest.raises(ImageReadError, match=r"the target image broken\.png cannot be read: "):
            explain(tiny_vit(), paths[0], target=target, references=paths[2:], **FEW)


def test_a_second_image_needs_references(paths):
    with pytest.raises(UsageError, match=r"the target 'image 0001\.png .*' compares an image with"):
        explain(tiny_vit(), paths[0], target=paths[1], maps=["cdam"])


# --- a vector ------------------------------------------------------------------------------------


def test_a_vector_of_another_width_is_refused_before_the_model_runs(paths, monkeypatch):
    monkeypatch.setattr("vitscope.runs.explain_loop.ExplainRun.execute", pytest.fail)
    monkeypatch.setattr("vitscope.runs.judge_run.JudgeRun.execute", pytest.fail)
    monkeypatch.setattr("vitscope.maps.method.run_blocks", pytest.fail)
    vit = tiny_vit("clip")
    for run in (explain, judge):
        with pytest.raises(UsageError, match="a vector of 32 numbers: expected 12, the width"):
            run(vit, paths, target=torch.ones(32), **FEW | {"maps": ["cdam"]})
    with pytest.raises(UsageError, match="a vector of 32 numbers: expected 12"):
        map_tokens(vit, read(vit, paths), ["cdam"], target=torch.ones(32))


# --- a class -------------------------------------------------------------------------------------


def test_an_explanation_of_a_class_is_told_with_its_name(saved, paths, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["explain", str(paths[0]), "--model", str(saved), "--out", str(out)]
    arguments += ["--maps", "attention,traced", "--references", str(paths[1].parent)]
    assert main([*arguments, "--target", "logit:dog", "--dtype", "float64"]) == 0
    made = Explanation.load(next(path for path in out.iterdir() if path.name != "figures"))
    about = made.read_image(0).maps["traced"].about
    assert about.target == "logit 1 (dog)"
    assert made.provenance["target"] == "logit 1 (dog)"
    # The verdict and its reference are of the tower, the class of the whole model.
    vit = load_transformers(str(saved))
    assert made.provenance["weights_hash"] == vit.hashed().weights_hash
    assert made.provenance["classifier_hash"] != vit.hashed().weights_hash
    capsys.readouterr()
    assert main([*arguments, "--overwrite", "--target", "logit:fox"]) == 2
    assert "has no class of this name" in capsys.readouterr().err


def test_maps_of_a_class_are_judged_and_resumed(saved, paths, tmp_path):
    out = tmp_path / "judged"
    settings = {**FEW, "removals": ["mean"], "out": out, "gallery": 1, "size": 32}

    def stop(done, _):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(str(saved), paths[:3], target="logit:1", on_progress=stop, **settings)
    for other in ("logit:2", "logit", paths[5]):
        with pytest.raises(UsageError, match="target"):
            judge(str(saved), paths[:3], target=other, resume=True, **settings)
    changed = load_transformers(str(saved))
    with torch.no_grad():
        changed.classifier.head.bias[0] += 1
    hooked = load_transformers(str(saved))
    hooked.classifier.head.register_forward_hook(lambda _, __, logits: logits.flip(1))
    for other in (changed, hooked):
        with pytest.raises(UsageError, match="the model's classifier differs"):
            judge(other, paths[:3], target="logit:1", resume=True, **settings)
    made = judge(str(saved), paths[:3], target="logit:dog", resume=True, **settings)
    assert JudgeResult.load(out).summary.target == "logit 1 (dog)"
    assert made.summary.data.num_images == 3
    # With all patches present, the curves begin at the library's own logit.
    vit = load_transformers(str(saved))
    pixels = torch.stack([load_pixels(p, vit.preprocessing.with_size((32, 32))) for p in paths[:3]])
    with torch.no_grad():
        logits = vit.classifier.module(pixels).logits[:, 1].tolist()
    rows = made.scores.to_pylist()
    found = {row["path"]: row["deletion_curve"][0] for row in rows if row["map"] == "traced"}
    assert sorted(found.values()) == pytest.approx(sorted(logits), abs=1e-5)
    again = {"judged": made, "target": "logit:1", "size": 32, "device": "cpu"}
    for other in (changed, hooked):
        with pytest.raises(UsageError, match="with another classifier"):
            explain(other, paths[0], references=paths[1:], **again)


def test_what_a_bare_model_is_asked_about_classes_is_refused(paths):
    for run in (explain, judge):
        with pytest.raises(UnsupportedModelError, match="tiny/dinov2_reg has no classifier"):
            run(tiny_vit(), paths, target="logit:1", references=paths[3:], **FEW)


def test_legrad_is_not_judged_where_a_token_has_no_logit(paths):
    vit = wrap_model(randomize(CLASSIFIERS["timm_avg"]()))
    with pytest.raises(UnsupportedModelError, match="a single token has no logit"):
        judge(vit, paths, target="logit", maps=["legrad"], device="cpu")
