"""Several results in one report: their table, what is left out of it, images side by side."""

from dataclasses import replace

import numpy as np
from rich.console import Console

from made_remedies import write_comparison, write_gallery
from made_results import change, make_audit, write_result
from vitscope.figures.saved import load_results, tell_apart
from vitscope.report.embedded_images import collect_images
from vitscope.report.side_by_side import list_compared
from vitscope.report.verdicts import tabulate_compared
from vitscope.results.gallery import read_gallery
from vitscope.results.image_maps import ImageMaps, write_maps
from vitscope.terminal import make_comparison


def write_runs(folder, *names, galleries=()):
    """Runs of one model, with galleries of some images."""
    for number, name in enumerate(names):
        summary, columns = make_audit(n=40)
        place = write_result(folder / str(number), summary, columns, name=name)
        if galleries:
            write_gallery(place, columns["image_id"], galleries[number], value=number + 1)
    return folder


def test_a_table_has_a_row_a_result_with_its_run_and_its_numbers(tmp_path):
    write_runs(tmp_path, "cats", "dogs")
    write_result(tmp_path / "large", *make_audit("DINOv2", "L", 304.4, n=60))
    results = tell_apart(load_results([tmp_path]))
    table = tabulate_compared(results)
    assert table.columns == (
        *("model", "run", "images", "params", "patch attention", "patches' share"),
        *("CKA(r, patches)", "main other source", "verdict"),
    )
    (rows,) = table.sections
    assert [row[:4] for row in rows] == [
        ("DINOv2 S (cats)", "cats", "40", "22 M"),
        ("DINOv2 S (dogs)", "dogs", "40", "22 M"),
        ("DINOv2 L", "–", "60", "304 M"),
    ]
    share = results[2].audit.last.variance_share["residual"]["patches"]
    assert rows[2][5].numbers == (share.value, *share.ci95)
    assert rows[2][3].numbers[0] == 304_400_000


def test_the_terminal_has_the_same_numbers(tmp_path):
    summaries = [make_audit(n=40)[0], make_audit("DINOv2", "L", 304.4, n=40)[0]]
    console = Console(width=400, record=True)
    console.print(make_comparison(summaries))
    told = console.export_text()
    write_result(tmp_path / "one", *make_audit(n=40))
    (rows,) = tabulate_compared(load_results([tmp_path])).sections
    assert all(cell in told for cell in rows[0][3:])


def test_results_that_differ_in_a_choice_have_no_table(tmp_path):
    summary, columns = make_audit(n=40)
    write_result(tmp_path / "a", summary, columns)
    write_result(tmp_path / "b", change(summary, "patches", "settings", "cls_term"), columns)
    told = tabulate_compared(load_results([tmp_path]))
    assert told.startswith("no table of all models: its results differ in where [CLS]")


def test_edits_are_compared_with_their_original_alone(tmp_path):
    folder = write_comparison(tmp_path / "edits", [(0, 1), (0, 1)], edits=["skip"])
    write_runs(tmp_path / "others", "cats")
    found = [one.folder.name for one in list_compared(load_results([folder, tmp_path / "others"]))]
    assert found == ["0"]


def test_an_image_that_several_galleries_have_stands_side_by_side(tmp_path):
    write_runs(tmp_path, "cats", "dogs", "birds", galleries=[(0, 1, 2), (2, 1), (7,)])
    data = collect_images(tell_apart(load_results([tmp_path])))
    *own, found = data["galleries"]
    assert [one["side_by_side"] for one in own] == ["", "", ""]
    assert found["label"] == "Side by side: DINOv2 S (cats), DINOv2 S (dogs)"
    assert found["note"].startswith("2 of the 3 images in DINOv2 S (cats)’s gallery")
    maps = {
        image["name"]: {one["title"]: one["scale"] for one in image["maps"].values()}
        for image in found["images"]
    }
    assert maps == {
        "1.png": {"DINOv2 S (cats)": [11], "DINOv2 S (dogs)": [21]},
        "2.png": {"DINOv2 S (cats)": [12], "DINOv2 S (dogs)": [22]},
    }
    assert all("view" not in one for image in found["images"] for one in image["maps"].values())


def test_a_map_lies_on_what_its_model_saw_of_the_image(tmp_path):
    write_runs(tmp_path, "cats", "dogs", galleries=[(1,), (1,)])
    gallery = read_gallery(tmp_path / "1")
    one = gallery.read_maps(0).maps["attention"]
    place = tmp_path / "1" / gallery.images[0].file
    place.unlink()
    wider = replace(one, values=np.full((3, 4), 5, np.float32))
    image = np.full((24, 32, 3), 9, np.uint8)
    write_maps(place, ImageMaps(image=image, maps={"attention": wider}))
    (found,) = collect_images(load_results([tmp_path]))["galleries"][-1]["images"]
    first, second = found["maps"].values()
    assert "view" not in first
    assert (found["grid"], second["view"]["grid"]) == ([2, 3], [3, 4])
    assert (found["size"], second["view"]["size"]) == ([24, 16], [32, 24])
    assert second["view"]["thumbnail"] != found["thumbnail"]
