"""The command line as a person meets it: what it prints, what it leaves, how it ends."""

import os
import re
import resource
import signal
import time

import pytest
import torch

from forks import Fork
from images import write_images
from vitscope import AuditResult
from vitscope.cli import main
from vitscope.decomposition import decompose_layers
from vitscope.weights.embedded import embedded_available


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 24)


def run(capsys, *arguments):
    """Exit code, standard output and standard error, unwrapped."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def one_line(err):
    """The single line that an error is."""
    lines = [line for line in err.splitlines() if line.startswith("vitscope: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_audit_prints_a_table_and_a_verdict(capsys, model_folder, images, tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # set in processes of parallel tests
    code, out, _ = run(
        capsys, "audit", images, "--model", model_folder, "--out", tmp_path / "out", "--size", 32
    )
    assert code == 0
    folder, report = sorted((tmp_path / "out").iterdir())
    assert f"written to {folder}" in out
    assert f"open {report} in a browser" in out
    assert "<html" in report.read_text(encoding="utf-8")
    for words in ("patches", "registers", "skip", "verdict:", "24 images", "ledger balances"):
        assert words in out
    summary = AuditResult.load(folder).summary
    # Without a terminal nothing is wrapped: a line of the output is a line of the file it goes to.
    assert f"verdict: {summary.last.verdict.text}\n" in out
    assert {path.name for path in folder.iterdir()} == {
        *("summary.json", "images.parquet", "features", "sums.safetensors", "sums"),
        *("gallery.json", "gallery", "failures.csv", "provenance.json", "run.toml"),
    }


def test_several_models_end_in_a_comparison(capsys, model_folder, images, tmp_path):
    other = tmp_path / "twin"
    other.symlink_to(model_folder)
    arguments = ["--model", model_folder, "--model", other, "--out", tmp_path / "out"]
    code, out, _ = run(capsys, "audit", images, *arguments, "--size", 32, "--layers", "all")
    assert code == 0
    assert "Where the [CLS] output comes from" in out
    assert len(list((tmp_path / "out").glob("*/summary.json"))) == 2


def test_a_mistyped_second_model_is_told_before_the_first_is_run(
    capsys, model_folder, images, tmp_path
):
    models = ["--model", model_folder, "--model", "dinov2-smal"]
    code, _, err = run(capsys, "audit", images, *models, "--out", tmp_path / "out")
    assert code == 2
    assert "dinov2-small" in one_line(err)
    assert not (tmp_path / "out").exists()


def test_options_reach_the_result(capsys, model_folder, images, tmp_path):
    options = "--limit 9 --batch-size 4 --dtype float64 --layers 0 --size 16x40 --seed 3"
    options += " --num-workers 1 --device cpu --renormalize --features drop --gallery 2"
    options += " --cls-term patches --no-report --draft --verified 0.5 --shard 2/2 --shard-size 3"
    options += " --maps share,rollout --trace 4 --name second"
    where = ["--model", model_folder, "--out", tmp_path / "out"]
    code, out, err = run(capsys, "audit", images, *where, *options.split())
    assert code == 0
    assert "traced on 4 images: patches hold at least half" in " ".join(out.split())
    assert f"loading {model_folder}\n" in err  # without a terminal too
    assert "traced" in err  # a bar of its own
    (folder,) = (tmp_path / "out").iterdir()
    result = AuditResult.load(folder)
    assert result.name == "second"
    assert f"“second” written to {folder}" in out
    assert result.provenance["config"] == {
        "limit": 9,
        "batch_size": 4,
        "device": "cpu",
        "dtype": "float64",
        "layers": [0, 2],
        "size": [16, 40],
        "num_workers": 1,
        "seed": 3,
        "name": "second",
        "renormalize": True,
        "features": "drop",
        "gallery": 2,
        "maps": ["share", "rollout"],
        "cls_term": "patches",
        "masks": None,
        "draft": True,
        "verified": 0.5,
        "shard": [2, 2],
        "shard_size": 3,
        "metrics": None,
        "trace": 4,
    }
    assert list(result.gallery.read_maps(0).maps) == ["share", "rollout"]
    assert result.summary.data.num_images == 5
    assert result.summary.trace.num_images == 4
    assert [layer.index for layer in result.summary.layers] == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "{images}", "--out", "{out}", "--model"], "--model"),
        (["audit", "--model", "{model}", "--out", "{out}"], "IMAGES requires an argument"),
        (["audit", "{out}/nowhere", "--model", "{model}", "--out", "{out}"], "nowhere"),
        (["audit", "{images}", "--model", "dinov2-smal", "--out", "{out}"], "dinov2-small"),
        (["audit", "{images}", "--model", "{model}", "--out", "{out}", "--size", "33"], "33"),
        (
            ["audit", "{images}", "-m", "{model}", "-m", "{model}", "--out", "{out}"],
            "was given twice: give each model once",
        ),
        (
            ["audit", "{images}", "--model", "{model}", "--out", "{out}", "--layers", "7"],
            "layer 7",
        ),
        (
            ["audit", "{images}", "--model", "{model}", "--out", "{out}", "--limit", "0"],
            "limit 0",
        ),
        (["audit", "{images}", "--model", "{model}", "--out", "{out}", "--device", "tpu"], "tpu"),
        (["audit", "{images}", "--model", "{model}", "--out", "{images}/0000.png"], "0000.png"),
        (["adit"], 'Did you mean "audit"'),
        (["audit", "{images}", "--modle", "x"], "modle"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    capsys, model_folder, images, tmp_path, arguments, message
):
    places = {"images": images, "model": model_folder, "out": tmp_path / "out"}
    code, _, err = run(capsys, *(argument.format(**places) for argument in arguments))
    assert code == 2
    assert message in one_line(err)
    assert not (tmp_path / "out").exists()


def test_an_unreadable_folder_of_images_is_exit_code_1(capsys, model_folder, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"x")
    where = ["--model", model_folder, "--out", tmp_path / "out", "--size", 32]
    code, _, err = run(capsys, "audit", tmp_path / "bad", *where)
    assert code == 1
    assert "a.jpg cannot be read: not an image" in one_line(err)
    assert not (tmp_path / "out").exists()


def test_a_second_run_needs_overwrite(capsys, model_folder, images, tmp_path):
    command = ["audit", images, "--model", model_folder, "--out", tmp_path / "out", "--size", 32]
    command += ["--no-report"]
    assert run(capsys, *command)[0] == 0
    code, _, err = run(capsys, *command)
    assert code == 2
    assert "give --overwrite" in one_line(err)
    assert run(capsys, *command, "--overwrite")[0] == 0


def test_hostile_names_are_shown_as_they_are(capsys, model_folder, tmp_path):
    folder = write_images(tmp_path / "[red]x[/red]", 3)
    (folder / "0000.png").rename(folder / os.fsdecode(b"\xff[bold]\n.png"))
    where = ["--model", model_folder, "--out", tmp_path / "[blue]out[/]", "--size", 32]
    where += ["--no-report"]
    code, out, _ = run(capsys, "audit", folder, *where)
    assert code == 0
    assert "[blue]out[/]" in out
    (result,) = (tmp_path / "[blue]out[/]").iterdir()
    paths = AuditResult.load(result).images.column("path").to_pylist()
    assert any(path.endswith("\\xff[bold]\\n.png") for path in paths)


def test_help_teaches(capsys):
    assert run(capsys, "--help")[0] == 0
    code, out, _ = run(capsys, "audit", "--help")
    assert code == 0
    for word in ("--model", "--layers", "timm:NAME", "Example", "[OPTIONS] IMAGES..."):
        assert word in out
    assert "default: False" not in out
    assert "[default: 0]" in out


LONG_S = 600
"""More than anything here takes on a machine that does much else."""


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_leaves_one_line_and_nothing_else(model_folder, images, tmp_path):
    # Enough batches of one, each image named once by each of many spellings of its path.
    lines = [f"{p.parent}/{'./' * n}{p.name}" for n in range(60) for p in images.iterdir()]
    slow, out = tmp_path / "slow.txt", tmp_path / "out"
    slow.write_text("\n".join(lines))
    where = ["--model", model_folder, "--out", out, "--size", "320", "--batch-size", "1"]
    running = Fork(main, ["audit", *map(str, [slow, *where])])
    deadline = time.monotonic() + LONG_S
    while not (out.exists() and list(out.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    # What is left of a folder that was being made is removed by the next run alone.
    time.sleep(0.2)
    os.kill(running.pid, signal.SIGINT)
    code, _, err = running.wait()
    assert code == 1
    assert "stopped" in one_line(err)
    assert not out.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(capsys, model_folder, images, tmp_path):
    out = tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files may not grow past 20 kB, as if the disk were full there.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        where = ["--model", model_folder, "--out", out, "--size", 32]
        code, _, err = run(capsys, "audit", images, *where)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert re.search(r"cannot write .*out.*: ", one_line(err))
    assert not out.exists()


def test_terminating_a_run_leaves_nothing_either(
    capsys, model_folder, images, tmp_path, monkeypatch
):
    started = []

    def decompose(*args, **kwargs):
        started.extend((tmp_path / "out").iterdir())
        os.kill(os.getpid(), signal.SIGTERM)
        return decompose_layers(*args, **kwargs)

    monkeypatch.setattr("vitscope.runs.part_writer.decompose_layers", decompose)
    where = ["--model", model_folder, "--out", tmp_path / "out", "--size", 32]
    before = signal.getsignal(signal.SIGTERM)
    try:
        code, _, err = run(capsys, "audit", images, *where)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert started
    assert code == 1
    assert "stopped" in one_line(err)
    assert not (tmp_path / "out").exists()


def test_too_little_memory_is_one_line(capsys, model_folder, images, tmp_path, monkeypatch):
    def exhaust(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("vitscope.runs.part_writer.decompose_layers", exhaust)
    where = ["--model", model_folder, "--out", tmp_path / "out", "--size", 32]
    code, _, err = run(capsys, "audit", images, *where)
    assert code == 1
    assert "not enough memory on cpu for 1 image" in one_line(err)


def test_an_unexpected_error_is_one_line_and_its_place_is_to_be_had(
    capsys, model_folder, images, tmp_path, monkeypatch
):
    def stumble(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("vitscope.runs.part_writer.decompose_layers", stumble)
    where = ["--model", model_folder, "--out", tmp_path / "out", "--size", 32]
    code, _, err = run(capsys, "audit", images, *where)
    assert code == 1
    assert "ZeroDivisionError: a bug (set VITSCOPE_DEBUG=1" in one_line(err)
    monkeypatch.setenv("VITSCOPE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(capsys, "audit", images, *where)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_model_that_cannot_be_loaded_leaves_the_others_whole(
    capsys, model_folder, images, tmp_path, place
):
    twin = tmp_path / "twin"
    twin.symlink_to(model_folder)
    ids = [model_folder, twin]
    ids.insert(place, "timm:resnet18")
    models = [word for model_id in ids for word in ("--model", model_id)]
    where = ["--out", tmp_path / "out", "--size", 32, "--limit", 4]
    code, out, err = run(capsys, "audit", images, *models, *where)
    assert code == 1
    assert "1 of 3 models cannot be loaded: timm:resnet18: timm:resnet18 is not" in one_line(err)
    assert "Where the [CLS] output comes from" in out
    assert len(list((tmp_path / "out").glob("*/summary.json"))) == 2
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_file_of_somebody_else_s_is_not_taken_for_a_report(
    capsys, model_folder, images, tmp_path
):
    (tmp_path / "report.html").write_text("mine")
    where = ["--model", model_folder, "--out", tmp_path, "--size", 32, "--limit", 4]
    code, _, err = run(capsys, "audit", images, *where)
    assert code == 0  # the audit itself is whole
    assert "no report was written" in err
    assert (tmp_path / "report.html").read_text() == "mine"


def test_images_are_looked_for_before_a_model_is_loaded(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("vitscope.load_model", lambda _: pytest.fail("a model was loaded"))
    where = ["--model", "dinov2-giant", "--out", tmp_path / "out"]
    code, _, err = run(capsys, "audit", tmp_path / "nowhere", *where)
    assert code == 2
    assert "nowhere" in one_line(err)


@pytest.mark.real_weights
@pytest.mark.skipif(not embedded_available(), reason="the packages of the demo extra are absent")
def test_the_demo_runs_twice_and_says_what_it_wrote(capsys, tmp_path):
    out = tmp_path / "demo"
    code, printed, _ = run(capsys, "demo", "--out", out, "--limit", 8)
    assert code == 0
    assert "crops of each of 51 photographs" in printed
    assert f"written to {out}/dinov2-small" in printed
    assert (out / "images" / "credits.csv").is_file()
    assert run(capsys, "demo", "--out", out, "--limit", 8)[0] == 2
    assert run(capsys, "demo", "--out", out, "--limit", 8, "--overwrite", "--no-report")[0] == 0


def test_the_demo_of_scenes_shows_an_output_that_skips_the_patches(capsys, tmp_path):
    words = ("demo", "--scenes", "--limit", 120, "--no-report", "--out")
    code, printed, _ = run(capsys, *words, tmp_path / "demo")
    assert "scenes = true" in (tmp_path / "demo/scenes-v1/run.toml").read_text()
    assert code == 0
    assert "of every image it is known where the answer is" in printed
    summary = AuditResult.load(tmp_path / "demo" / "scenes-v1").summary
    assert summary.last.verdict.status == "broken"
    shares = summary.last.variance_share["residual"]
    assert shares["skip"].value > 0.8
    assert shares["patches"].value < 0.2
    assert shares["registers"].value < 0.02
    # Only it is in there.
    words = ("audit", tmp_path, "--model", "scenes:needle", "--out", tmp_path / "audits")
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "unknown model scenes:needle: expected scenes:v1" in one_line(err)


def test_the_demo_does_not_touch_what_is_not_its_own(capsys, tmp_path):
    mine = tmp_path / "demo" / "images"
    mine.mkdir(parents=True)
    (mine / "mine.png").write_text("x")
    (mine / "credits.csv").write_text("x")
    code, _, err = run(capsys, "demo", "--out", tmp_path / "demo", "--overwrite")
    assert code == 2
    assert "was not written by vitscope" in one_line(err)
    assert (mine / "mine.png").read_text() == "x"


def test_an_error_that_quotes_a_hostile_name_stays_one_printable_line(capsys, tmp_path):
    code, _, err = run(
        capsys, "audit", tmp_path / "\x1b]0;owned\x07\x9b2J", "--model", "x/y", "--out", "o"
    )
    assert code == 2
    assert one_line(err).isprintable()


def test_a_stopped_comparison_is_resumed(model_folder, images, tmp_path, monkeypatch, capsys):
    arguments = ["remedy", "compare", str(images), "--model", str(model_folder), "--limit", "5"]
    arguments += ["--remedy", "zero", "--gallery", "0", "--out", str(tmp_path)]
    arguments += ["--num-workers", "0"]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vitscope.runs.remedy_loop.fit_remedy", stop)
        assert main([*arguments, "--resume"]) == 1
    told = capsys.readouterr().err
    assert "finished audits are kept in" in told
    assert told.endswith(": the same call resumes it\n")
    assert main(arguments)
    assert "already holds a result" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert "cleaner" in capsys.readouterr().out
