"""The benchmarks run from end to end at tiny size and say what they promise; no time is judged."""

import math
import multiprocessing
import os
from functools import partial
from operator import call, mul
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from made_judgements import make_judgement
from made_remedies import make_remedies

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def repository_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def one_process(monkeypatch):
    """What runs in a fresh process runs in this one: starting each takes seconds."""
    from benchmarks import measuring

    def call(function, *args, environment=None):
        assert set(environment or {}) <= {"GLIBC_TUNABLES"}
        return function(*args)

    monkeypatch.setattr(measuring, "run_fresh", call)


def measure(module, **settings):
    from importlib import import_module

    from benchmarks.page import render_section
    from benchmarks.settings import Settings

    section = import_module(f"benchmarks.{module}").measure(Settings(tiny=True, **settings))
    text = render_section(section)
    assert text.startswith(f"## {section.title}\n")
    for table in section.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    return section


def names(section, column=0):
    return [row[column] for table in section.tables for row in table.rows]


def median(cell):
    return float(cell.split(" ")[0])


def test_every_module_imports():
    from importlib import import_module

    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        try:
            import_module(f"benchmarks.{path.stem}")
        except ModuleNotFoundError as absent:  # a package that is compared with
            if absent.name.split(".")[0] in {"benchmarks", "vitscope"}:
                raise


def test_audit_beside_the_forward(images, one_process):
    section = measure("audit_against_forward", images=(images,))
    assert names(section) == ["last layer", "all layers", "last layer, bfloat16"]
    for row in section.tables[0].rows:
        assert median(row[1]) > 0
        assert median(row[2]) > 0
        assert float(row[3]) > 0


@pytest.mark.parametrize(("pass_size", "expected"), [(None, [5]), (2, [2, 2, 1]), (8, [5])])
def test_a_bare_forward_may_go_in_passes(images, pass_size, expected):
    from benchmarks.audits import bare_forward
    from benchmarks.images import decoded_images
    from benchmarks.models import load_dinov2
    from benchmarks.settings import Plan

    seen = []
    forward = bare_forward(lambda pixels: seen.append(len(pixels)), pass_size=pass_size)
    with decoded_images(load_dinov2("tiny"), Plan("tiny", 32, images=5, batch_size=5)) as decoded:
        forward(decoded.batches[0])
    assert seen == expected


def test_every_batch_is_timed_once():
    from benchmarks.audits import time_audit
    from benchmarks.images import decoded_images
    from benchmarks.models import load_dinov2
    from benchmarks.settings import Plan

    from vitscope import AuditConfig

    vit, seen = load_dinov2("tiny"), []
    with decoded_images(vit, Plan("tiny", 32, images=5, batch_size=2)) as decoded:
        config = AuditConfig(batch_size=2, device="cpu")
        times = time_audit(vit, decoded, config, {"look": lambda batch: seen.append(batch.indices)})
    first, *timed = seen
    assert first == timed[0]
    assert timed == [[0, 1], [2, 3], [4]]
    assert len(times.audit) == len(times.others["look"]) == 3
    assert min(times.audit) > 0
    assert times.once > 0


def test_rounds_and_whole_runs_add_up():
    from benchmarks.audits import AuditTimes, sum_rounds

    times = AuditTimes(audit=[1.0, 2.0, 3.0, 4.0, 5.0], others={"forward": [2.0] * 5}, once=5.0)
    assert times.whole_run("forward") == 2.0
    assert sum_rounds(times.audit, 2) == [3.0, 7.0]


def test_copies_have_identities_of_their_own(images, tmp_path):
    from benchmarks.images import write_images

    sources = sorted(images.glob("*.png"))
    for name, given in (("copied", (images,)), ("made", ())):
        folder = tmp_path / name
        folder.mkdir()
        write_images(folder, len(sources) + 2, given)
        written = sorted(folder.iterdir())
        assert len({path.read_bytes() for path in written}) == len(sources) + 2
    copied = sorted((tmp_path / "copied").iterdir())
    again, original = (np.asarray(Image.open(p)) for p in (copied[len(sources)], sources[0]))
    np.testing.assert_array_equal(again, original)


def test_eager_attention(one_process):
    section = measure("eager_attention")
    assert names(section) == [
        "audit",
        "bare forward",
        "eager attention",
        "eager attention, plain loop",
    ]


def test_masked_passes_give_the_restricted_outputs(one_process):
    section = measure("masked_passes")
    differences = [float(cell) for cell in names(section, 1)[1:]]
    # float32, two ways of adding up the same softmax.
    assert len(differences) == 3
    assert max(differences) < 1e-5


def test_a_mask_changes_the_output():
    from benchmarks.masked_passes import run_masked
    from benchmarks.timm_models import load_dinov2_reg

    outputs = run_masked(load_dinov2_reg("tiny"), torch.rand(2, 3, 32, 32))
    assert (outputs["patches"] - outputs["full"]).abs().max() > 1e-3
    assert (outputs["registers"] - outputs["patches"]).abs().max() > 1e-3


def test_full_gram(one_process):
    section = measure("full_gram")
    assert names(section) == ["60"]
    assert max(float(cell) for cell in names(section, 5)) < 1e-12


def test_cka_packages(one_process):
    section = measure("cka_packages")
    rows = {row[0]: row for row in section.tables[0].rows}
    for name in ("vitscope, unbiased", "vitscope, biased"):
        assert all(abs(float(cell)) < 1e-10 for cell in rows[name][2:5])
    found = {name.split(".")[0] for name in rows} - {"vitscope, unbiased", "vitscope, biased"}
    absent = {note.split(" ")[0] for note in section.notes if "not installed" in note}
    assert found | absent == {"ckatorch", "cka_pytorch", "torch_cka"}
    assert not found & absent


def test_the_gram_references_are_the_definitions():
    from benchmarks.gram_cka import biased_cka, minibatch_cka

    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 4)) + 3
    y = x[:, :3] + rng.standard_normal((9, 3))
    n = len(x)
    centre = np.eye(n) - 1 / n

    def biased(a, b):
        return np.trace(a @ a.T @ centre @ b @ b.T @ centre)

    assert biased_cka(x, y) == pytest.approx(
        biased(x, y) / math.sqrt(biased(x, x) * biased(y, y)), rel=1e-12
    )

    def unbiased(a, b):  # Σ over four distinct images: what the estimator is the short form of
        k, l = a @ a.T, b @ b.T  # noqa: E741
        total = 0.0
        for i, j, q, r in np.ndindex(n, n, n, n):
            if len({i, j, q, r}) == 4:
                total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
        return total / (n * (n - 1) * (n - 2) * (n - 3))

    assert minibatch_cka([x], [y]) == pytest.approx(
        unbiased(x, y) / math.sqrt(unbiased(x, x) * unbiased(y, y)), rel=1e-10
    )


def test_half_precision(one_process, images):
    section = measure("half_precision", images=(images,))
    kinds = names(section)
    assert {"cka", "variance_share", "attention_mass", "layer_similarity"} <= set(kinds)
    largest, *halves = ([float(row[k]) for row in section.tables[0].rows] for k in range(1, 4))
    assert all(number >= 0 for number in largest)
    # They differ, and a tiny model's numbers stay within a few percent of what is largest.
    assert all(0 < max(half) < 0.2 * max(largest) for half in halves)


def test_throughput(one_process):
    section = measure("throughput")
    assert names(section, 1) == ["32", "48"]
    assert all(float(cell) > 0 for cell in names(section, 3))


def test_passes_of_every_size_beside_the_chosen_one(one_process):
    (table,) = measure("pass_size").tables
    assert list(table.columns[4:]) == ["1", "2", "4"]
    assert [row[2] for row in table.rows] == ["float32", "bfloat16"]
    for row in table.rows:
        assert row[3] == "128"
        assert all(float(cell) > 0 for cell in row[4:])


def test_both_readings_of_planted_and_random_models(one_process):
    section = measure("verdicts")
    assert names(section) == [
        "random tiny DINOv2",
        *("planted patches", "planted half_and_half"),
        *("planted skip_copy", "planted registers_copy"),
    ]
    shares = dict(zip(names(section), names(section, 2), strict=True))
    assert median(shares["planted skip_copy"]) < 0.02
    assert median(shares["planted patches"]) > 0.9
    # 24 images are too few for a verdict.
    assert set(names(section, 4)) == {"not enough images"}


def test_a_rare_kind_of_image_is_missed_in_few_images(one_process):
    rows = measure("few_images").tables[0].rows
    assert [row[:2] for row in rows] == [(p, n) for p in ("2%", "5%") for n in ("20", "100")]
    for row in rows:
        assert all(0 <= float(cell) <= 1 for cell in row[2:])
    # Without a least number many of twenty sets of 20 images would be judged wrongly.
    assert float(rows[0][3]) > 0.2


def test_simulated_intervals_hold_a_truth_or_do_not(one_process):
    (row,) = measure("coverage").tables[0].rows
    assert row[:2] == ["4", "50"]
    assert all(0 <= float(share) <= 1 for cell in row[2:] for share in cell.split(" to "))


def test_edited_models(one_process):
    from benchmarks.edited_models import _EDITS

    section = measure("edited_models")
    assert names(section) == [*_EDITS, "search for the neurons of test-time-registers"]
    assert all(median(cell) > 0 for cell in names(section, 1))


def test_many_rows_without_a_model(capsys):
    from benchmarks.million_rows import main

    main(rows=520, dim=4)
    told = capsys.readouterr().out.splitlines()
    assert [line.split(": peak")[0] for line in told[2:]] == [
        *("imported", "2 parts written", "merged", "summarised")
    ]


def test_map_costs(one_process, images):
    for package in ("captum", "pytorch_grad_cam", "torchcam"):
        pytest.importorskip(package, reason=f"{package} is not installed (dev extra)")
    from vitscope.maps.registry import METHODS

    costs, judged = measure("map_costs", images=(images,)).tables
    found = {row[0]: row for row in costs.rows}
    assert set(METHODS) < set(found)
    assert all(found[name][1] == method.cost for name, method in METHODS.items())
    assert all(median(row[2]) >= 0 for row in costs.rows)
    # The numbers are the same by every route; they are of the order of 1.
    assert [row[1].split("'")[0].split(",")[0] for row in judged.rows] == [
        *("vitscope", "torch-cam", "pytorch-grad-cam"),
        *("vitscope", "captum", "captum"),
    ]
    assert all(not row[3] or float(row[3]) < 1e-5 for row in judged.rows)


def test_page_faults(one_process):
    assert names(measure("page_faults")) == ["as it comes", "freed memory kept"]


def test_giant_tried_on_the_cpu(one_process):
    section = measure("giant_on_gpu")
    assert names(section, 2) == ["bfloat16", "autocast"]
    assert all(cell.endswith("%") for cell in names(section, 4))


def test_operations_are_counted():
    from benchmarks.giant_on_gpu import count_operations
    from benchmarks.timm_models import load_dinov2_reg

    vit = load_dinov2_reg("tiny")
    tokens = vit.make_layout(32, 32).num_tokens
    blocks = [m for m in vit.module.blocks.modules() if isinstance(m, torch.nn.Linear)]
    linear = sum(2 * tokens * m.weight.numel() for m in blocks)
    assert count_operations(vit, 32) > linear
    # Attention and patch embedding besides; at this size less than all the rest.
    assert count_operations(vit, 32) < 2 * linear


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    from benchmarks.giant_on_gpu import measure
    from benchmarks.settings import Settings

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    section = measure(Settings())
    assert list(section.notes) == ["There is no GPU here: not run"]
    assert not section.tables


def test_memory_is_of_a_fresh_process():
    from benchmarks.measuring import measure_memory

    held = np.ones(3 * 2**25)  # 768 MiB here, which the fresh process must not be charged with
    memory = measure_memory(partial, mul, b"x", 64 * 2**20)
    assert 60 < memory.added < 80
    assert memory.before < held.nbytes / 2**20


def test_contenders_take_turns():
    from benchmarks.measuring import alternate, compare

    ran = []
    seconds = alternate({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, 2)
    assert "".join(ran) == "ab" + "ab" + "ba"
    assert [len(each) for each in seconds.values()] == [2, 2]
    assert str(compare([1.0, 4.0, 3.0], [1.0, 2.0, 1.0])) == "2.000 (1.000 to 3.000)"


def test_an_environment_lasts_for_one_process(monkeypatch):
    from benchmarks.measuring import run_fresh

    monkeypatch.setenv("VITSCOPE_A", "before")
    assert run_fresh(os.getenv, "VITSCOPE_A", environment={"VITSCOPE_A": "x"}) == "x"
    assert os.environ["VITSCOPE_A"] == "before"


def test_one_command_survives_a_part_that_fails(tmp_path, capsys, monkeypatch):
    from benchmarks import measuring, parts
    from benchmarks.__main__ import app

    run_fresh, forked = parts.run_fresh, multiprocessing.get_context("fork")

    def run(function, name, settings):
        # One process of its own is enough, and a new interpreter imports for seconds.
        return (run_fresh if name == "masked" else call)(function, name, settings)

    monkeypatch.setattr(measuring.multiprocessing, "get_context", lambda _: forked)
    monkeypatch.setattr(parts, "run_fresh", run)
    page = tmp_path / "page.md"
    nowhere = tmp_path / "no images"
    code = app(
        [str(nowhere), "--tiny", "--only", "masked", "gram", "--out", str(page)],
        result_action="return_value",
    )
    assert code == 1
    text = page.read_text()
    assert "Failed: FileNotFoundError" in text
    assert "## Streamed CKA" in text
    assert text.startswith("# Benchmarks\n\nMade by `python -m benchmarks")
    assert "torch 2." in text
    assert "## Streamed CKA" in capsys.readouterr().out


def test_unknown_parts_are_refused():
    from benchmarks.__main__ import app

    with pytest.raises(SystemExit, match="no part nothing: expected forward, eager"):
        app(["--only", "nothing"], result_action="return_value")


def test_a_judgement_as_markdown():
    from benchmarks.judged_maps import describe_result

    summary = make_judgement(("attention", "traced"), removals=("shuffle",), masks=True)
    scores, plausible = describe_result(summary).tables
    assert names(describe_result(summary))[:4] == ["Oracle", "Traced", "Attention", "Random orders"]
    traced = dict(zip(scores.columns, scores.rows[1], strict=True))
    found = summary.removals["shuffle"]["traced"]
    assert median(traced["skill"]) == round(found.scores["skill"].value, 2)
    assert traced["gap less attention's"].endswith(found.against_attention.answer)
    assert {row[0] for row in plausible.rows} == {"Traced", "Attention"}


def test_a_comparison_as_markdown():
    from benchmarks.compared_remedies import describe_comparison

    summary = make_remedies()
    (table,) = describe_comparison(summary).tables
    original, *edits = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert original["edit"] == summary.model.id
    assert [row["edit"] for row in edits] == [one.edit for one in summary.remedies]
    change = summary.remedies[0].changes["cka_patches"]
    assert median(original["CKA(r, patches)"]) == round(change.before.value, 2)
    told = edits[0]["CKA(r, patches)"].replace("−", "-")
    assert median(told) == round(change.difference.value, 2)
