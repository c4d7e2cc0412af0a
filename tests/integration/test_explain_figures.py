"""The figure of an explained image: all of it is there, and nothing lies over anything else."""

import csv
import os
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from audits import tiny_vit
from blank_figures import blank_figures
from images import write_images
from vitscope import Explanation, RunConfig, explain
from vitscope.cli import main
from vitscope.errors import UsageError
from vitscope.figures import ModelResult, draw_figure, plot
from vitscope.figures.draw import draw_explanations
from vitscope.figures.rendering.maps import plot_explanations
from vitscope.files.own_files import is_figures


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """Images as wide, as tall and as hostile by name as they may be."""
    folder = tmp_path_factory.mktemp("shaped")
    (square,) = write_images(folder / "square", 1).iterdir()
    with Image.open(square) as image:
        names = (b"wide.png", b"tall.png", b"<b>$x_1$\n\xff\xe7.png")
        for name, size in zip(names, ((320, 40), (40, 320), (60, 40)), strict=True):
            with Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).open("wb") as file:
                image.resize(size).save(file, "png")
    square.unlink()
    square.parent.rmdir()
    return folder


@pytest.fixture(scope="module")
def explained(shaped):
    """By a model with registers, one that pools by attention and one of a single size."""
    return [explain(tiny_vit(name), shaped) for name in ("dinov2_reg", "siglip", "deit3")]


@pytest.fixture(scope="module")
def explained_by_many(shaped):
    """By eight maps besides the image: titles of two lines, standard errors, sums, targets."""
    names = ["attention", "contribution_norm", "share", "rollout_norm", "chefer", "traced"]
    names += ["random_keep", "centre"]
    wide = shaped / "wide.png"
    return explain(tiny_vit(), wide, maps=names, references=shaped / "tall.png", size=16)


@pytest.fixture
def blank():
    """Files of figures are empty, for tests of their names and tables."""
    with blank_figures():
        yield


def words_of(figure):
    return [text.get_text() for text in figure.texts]


def flatten(words):
    return " ".join(" ".join(words).replace("\u00a0", " ").split())


def boxes_of(figure):
    """Where every text and every map ends up, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    texts = [text.get_window_extent(renderer) for text in figure.texts]
    # A bar's labels are part of it.
    return texts + [axes.get_tightbbox(renderer) for axes in figure.axes]


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("image", [0, 1, 2])
def test_nothing_overlaps_and_nothing_leaves_the_page(explained, image, heads):
    assert_apart(plot_explanations(explained, explained[0].image_ids[image], heads=heads))


def assert_apart(figure):
    boxes = boxes_of(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    for a, b in combinations(boxes, 2):
        over = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        # One pixel of a hundredth of an inch is the width of a line.
        assert min(over) <= 1, (a, b)


def test_more_maps_than_columns_wrap_into_lines(explained_by_many):
    figure = plot_explanations([explained_by_many], explained_by_many.image_ids[0])
    assert_apart(figure)
    one = explained_by_many.read_image(0)
    maps = [axes.images[0] for axes in figure.axes if axes.images][1:]
    places = [image.axes.get_position() for image in maps]
    assert [len({round(p.x0, 3) for p in places}), len({round(p.y0, 3) for p in places})] == [3, 3]
    for image, each in zip(maps, one.maps.values(), strict=True):
        drawn = np.asarray(image.get_array())
        scale = 100 if each.about.is_part else 1
        assert drawn == pytest.approx(scale * each.values)
        low, high = image.get_clim()
        assert high == pytest.approx(scale * float(np.abs(each.values).max()))
        assert low == (-high if each.about.signed else 0)
    words = flatten(words_of(figure))
    for each in one.maps.values():
        assert each.about.title in words
    assert "target self" in words
    assert "mean standard error of a patch" in words
    assert f"together {one.maps['traced'].about.total:.3f}".replace("-", "−") in words


@pytest.mark.usefixtures("blank")
def test_a_map_with_errors_has_intervals_in_the_table(explained_by_many, tmp_path):
    draw_explanations([explained_by_many], tmp_path)
    with (tmp_path / "wide.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["panel"] == "random_keep"]
    one = explained_by_many.read_image(0).maps["random_keep"]
    assert len(rows) == one.values.size
    for row in rows:
        place = int(row["other"]), int(row["x"])
        half = float(row["high"]) - float(row["value"])
        assert half == pytest.approx(1.96 * float(one.error[place]), rel=1e-5)
        assert float(row["low"]) == pytest.approx(float(one.values[place]) - half, rel=1e-5)


def test_every_number_and_verdict_is_there(explained):
    figure = plot_explanations(explained, explained[0].image_ids[1])
    words = flatten(words_of(figure))
    for explanation in explained:
        one = explanation.read_image(1)
        numbers, verdict = one.numbers, one.verdict
        assert verdict.text[1:] in words
        assert verdict.basis in words
        assert f"cos(c_patches, t) = {numbers.cosine['attention']['patches']:.3f}" in words
        restricted = numbers.restricted_cosine["attention"]["patches"]
        assert f"cos(c_patches + bias, t) = {restricted:.3f}" in words
        assert f"on patches {100 * numbers.attention_mass['patches']:.1f} %" in words
        assert f"patch share {numbers.patch_share:.3f}" in words
        skip = numbers.share.get("skip")
        if skip is not None:
            assert f"skip connection {100 * skip:.1f} %".replace("-", "−") in words
    for label in ("tiny/dinov2_reg, layer 1 (of 0 to 1)", "tiny/siglip, attention pooling"):
        assert label in words
    assert "cropped to the input size" in words
    assert "nan" not in words.lower()


def test_maps_are_drawn_as_they_are(explained):
    figure = plot_explanations(explained[:1], explained[0].image_ids[1])
    one = explained[0].read_image(1)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    drawn = [np.asarray(image.get_array()) for image in images]
    assert np.array_equal(drawn[0], one.image)
    assert drawn[1] == pytest.approx(100 * one["attention"])
    assert np.array_equal(drawn[2], one["contribution_norm"])
    assert drawn[3] == pytest.approx(100 * one["share"])
    low, high = images[3].get_clim()
    assert low == -high
    assert [image.get_clim()[0] for image in images[1:3]] == [0, 0]
    for image in images:
        box = image.axes.get_window_extent()
        height, width = one.image.shape[:2]
        assert box.width / box.height == pytest.approx(width / height, rel=1e-6)


def test_every_head_is_drawn_on_one_scale(explained):
    one = explained[0].read_image(0)
    images = [
        axes.images[0]
        for axes in plot_explanations(explained[:1], explained[0].image_ids[0], heads=True).axes
        if axes.images
    ][4:]
    heads = [one.maps[name].heads for name in ("attention", "share")]
    assert len(images) == 2 * len(heads[0])
    assert len({image.get_clim() for image in images}) == 2
    for image, values in zip(images, [*heads[0], *heads[1]], strict=True):
        assert np.asarray(image.get_array()) == pytest.approx(100 * values)


def test_images_that_are_not_there_are_refused_and_who_lacks_one_is_named(explained, tmp_path):
    with pytest.raises(UsageError, match="image 3 does not exist: expected 0 to 2"):
        plot("maps", explained, image=3)
    other = explain(tiny_vit(), write_images(tmp_path / "others", 1))
    results = [ModelResult(result) for result in (explained[0], other)]
    data = draw_figure("maps", results).data
    assert [result.folder for result in data.shown] == [explained[0].folder]
    assert list(data.omitted.values()) == ["does not explain this image"]


def test_figures_are_named_by_their_images(explained, tmp_path):
    out = tmp_path / "figures"
    one = explained[1:2]
    files = draw_explanations(one, out, formats=("png", "svg", "pdf"))
    stems = {path.stem for path in files}
    assert {"wide", "tall"} < stems
    assert len(stems) == 3
    assert len(files) == 9
    tables = {f"{stem}.csv" for stem in stems}
    assert {path.name for path in out.iterdir()} == {
        *(f.name for f in files),
        *tables,
        "index.json",
    }
    for path in files:
        assert path.name.isascii()
        starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
        assert path.read_bytes().startswith(starts[path.suffix])
    assert is_figures(out)
    again = draw_explanations(one, tmp_path / "again")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in files if p.suffix == ".png"]


@pytest.mark.usefixtures("blank")
def test_each_patch_of_each_map_is_a_row_of_the_table(explained, tmp_path):
    draw_explanations(explained, tmp_path, heads=True)
    with (tmp_path / "wide.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    paths = [image.path for image in explained[0].summary.images]
    one = explained[0].read_image([path.endswith("wide.png") for path in paths].index(True))
    own = [row for row in rows if row["model"] == rows[0]["model"]]
    for name, values in (
        ("attention", one["attention"]),
        ("contribution_norm", one["contribution_norm"]),
        ("share", one["share"]),
        ("head_attention 1", one.maps["attention"].heads[1]),
    ):
        found = {
            (int(r["other"]), int(r["x"])): float(r["value"]) for r in own if r["panel"] == name
        }
        assert found == {place: pytest.approx(value) for place, value in np.ndenumerate(values)}
    assert {row["model_id"] for row in rows} == {e.summary.model.id for e in explained}


@pytest.mark.usefixtures("blank")
def test_equal_names_get_their_folders_and_equal_images_one_figure(tmp_path):
    for number, folder in enumerate(("a", "B")):
        write_images(tmp_path / folder, 1, start=number)
    twin = tmp_path / "twin.png"
    twin.write_bytes((tmp_path / "a" / "0000.png").read_bytes())
    result = explain(tiny_vit(), [tmp_path / "a", tmp_path / "B", twin])
    files = draw_explanations([result], tmp_path / "figures")
    assert [path.name for path in files] == ["0000.png", "0001.png"]
    (tmp_path / "B" / "0001.png").rename(tmp_path / "B" / "0000.PNG")
    result = explain(tiny_vit(), [tmp_path / "a", tmp_path / "B"])
    files = draw_explanations([result], tmp_path / "other")
    assert [path.name for path in files] == ["a-0000.png", "B-0000.png"]


def test_other_peoples_files_are_never_replaced(explained, tmp_path):
    (tmp_path / "wide.png").write_bytes(b"an image of the user's")
    with pytest.raises(UsageError, match="not written by vitscope"):
        draw_explanations(explained, tmp_path, overwrite=True)
    assert (tmp_path / "wide.png").read_bytes() == b"an image of the user's"


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    from tiny_configs import SIZE
    from vitscope.testing.randomize import randomize

    folder = tmp_path_factory.mktemp("models")
    for registers in (2, 4):
        settings = {k: v for k, v in SIZE.items() if k != "intermediate_size"}
        config = Dinov2WithRegistersConfig(**settings, num_register_tokens=registers)
        randomize(Dinov2WithRegistersModel(config)).save_pretrained(folder / f"reg{registers}")
    return folder / "reg2", folder / "reg4"


def run(capsys, *arguments):
    code = main(["explain", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.usefixtures("blank")
def test_explain_prints_verdicts_and_leaves_results_and_figures(
    capsys, model_folders, shaped, tmp_path
):
    a, b = model_folders
    out = tmp_path / "out"
    images = [shaped / "wide.png", shaped / "tall.png"]
    arguments = [*images, "--model", a, "--model", b, "--out", out, "--size", 32]
    arguments += ["--heads", "--overlays"]
    code, printed, err = run(capsys, *arguments, "--format", "svg", "--format", "png")
    assert code == 0, err
    said = " ".join(printed.split())
    for name in ("reg2", "reg4"):
        result = Explanation.load(out / name)
        assert len(result) == 2
        assert len(list((out / "overlays" / name).glob("tall__*__overlay.png"))) == 3
        for image in result.summary.images:
            assert " ".join(image.verdict.text.split()) in said
    assert "12 figures written to" in said
    stems = [f"{stem}__heads_by_layer__" for stem in ("tall", "wide")]
    names = sorted(path.stem for path in (out / "figures").glob("*.svg"))
    assert [sum(name.startswith(stem) for name in names) for stem in stems] == [2, 2]
    assert {"tall", "wide"} < set(names)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "already holds a result" in err
    code, _, _ = run(capsys, *arguments, "--overwrite")
    assert code == 0
    assert not list((out / "figures").glob("*.svg"))


def test_a_reference_for_each_model_or_none(capsys, model_folders, shaped, tmp_path):
    a, b = model_folders
    models = ["--model", a, "--model", b, "--out", tmp_path / "out"]
    code, _, err = run(capsys, shaped, *models, "--reference", tmp_path)
    assert code == 2
    assert "1 references for 2 models: give one per model, in the same order, or none" in err
    code, _, err = run(capsys, shaped, "--model", a, "--out", tmp_path, "--reference", tmp_path)
    assert code == 1
    assert "is not a vitscope result" in err


def test_what_is_done_is_drawn_though_a_later_model_fails(capsys, model_folders, shaped, tmp_path):
    a, _ = model_folders
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "dinov2"}')
    out = tmp_path / "out"
    arguments = ["--model", a, "--model", broken, "--out", out, "--size", 32]
    code, printed, err = run(capsys, shaped / "wide.png", *arguments)
    assert code != 0
    assert "Traceback" not in err
    assert "1 figure written" in printed
    assert (out / "figures" / "wide.png").is_file()


def test_a_long_file_name_is_shortened_and_not_broken(shaped, tmp_path):
    long = tmp_path / "holiday_in_the_mountains_with_everyone_0001.png"
    shutil.copyfile(shaped / "wide.png", long)
    explained = explain(tiny_vit(), long)
    lines = words_of(plot_explanations([explained], explained.image_ids[0]))
    assert "holiday_in_th…yone_0001.png" in "\n".join(lines)


def test_the_size_is_that_of_the_shorter_side(shaped):
    (entry,) = explain(tiny_vit(), shaped / "wide.png", RunConfig(size=16)).summary.images
    assert entry.input_size == (16, 128)
