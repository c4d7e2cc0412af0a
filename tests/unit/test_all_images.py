"""The table of all images in the report: every number comes back, within a limit of bytes."""

from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest

from made_results import make_audit, write_result
from vitscope import AuditResult
from vitscope.figures.saved import load_results
from vitscope.report.all_images import collect_tables, tabulate_failures
from vitscope.results.saved_result import write_failures

FAILURES = [(f"/{k}\x1b.png", "truncated") for k in range(502)]


@pytest.fixture
def results(tmp_path):
    summary, columns = make_audit("DINOv2 with registers", registers=4, n=60)
    failed = replace(summary, data=replace(summary.data, num_failed=502))
    for name in ("one", "two"):
        write_failures(write_result(tmp_path / name, failed, columns), FAILURES)
    return load_results([tmp_path])


def read_numbers(one, num_images):
    values = np.frombuffer(b64decode(one["values"]), "<f4").reshape(len(one["columns"]), num_images)
    return dict(zip(one["columns"], values, strict=True))


def test_every_number_of_every_image_is_there_and_paths_once(results):
    found = collect_tables(results, 2**20)
    assert len(found["tables"]) == 2
    (paths,) = found["lists"]
    rows = AuditResult.load(results[0].folder).images
    assert [paths["root"] + path for path in paths["paths"]] == rows["path"].to_pylist()
    numbers = read_numbers(found["tables"][0], 60)
    assert len(numbers) == 3
    for name, values in numbers.items():
        assert values == pytest.approx(rows[name].to_numpy(), rel=1e-6, nan_ok=True)


def test_of_too_many_images_some_at_even_steps_are_kept_and_that_is_said(results):
    whole = collect_tables(results, 2**20)
    found = collect_tables(results, 1000)
    assert "20 of 60 images, at even steps" in found["tables"][0]["note"]
    assert found["lists"][0]["paths"][1] == whole["lists"][0]["paths"][3]
    kept, every = read_numbers(found["tables"][0], 20), read_numbers(whole["tables"][0], 60)
    assert all(np.array_equal(kept[name], every[name][::3], equal_nan=True) for name in every)
    sizes = [len(one["values"]) for one in found["tables"]] + [
        sum(map(len, one["paths"])) for one in found["lists"]
    ]
    assert sum(sizes) <= 1000


def test_images_that_could_not_be_read_are_told_once(results):
    table = tabulate_failures(results)
    assert len(table.sections[0]) == 500
    assert table.sections[0][0] == (
        "/0\\x1b.png",
        "truncated",
        ", ".join(dict.fromkeys(result.label for result in results)),
    )
    assert table.caption == "2 more are in failures.csv."
