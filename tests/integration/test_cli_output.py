"""What a command prints with --quiet and --json, what it logs, and the file that repeats it."""

import json
import re
import subprocess
import sys
import tomllib
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
from cyclopts import App
from huggingface_hub.errors import LocalEntryNotFoundError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from images import write_images
from saved_models import save_dinov2
from vitscope import AuditResult, compare_remedies, explain, judge, one_shot
from vitscope import audit as audit_images
from vitscope.cli import main
from vitscope.cli.entry import app
from vitscope.cli.loggers import open_logger
from vitscope.cli.output import Output
from vitscope.cli.run_file import MOVES, add_config, move_options
from vitscope.errors import ResultError, UsageError, VitscopeError
from vitscope.results.repeats import tell_changes
from vitscope.training import list_numbers

PHOTOS = 'my "photos" \\ é 😀 \x7f'
SETTINGS = ["--limit", "5", "--layers", "-1,0", "--verified", "0.5", "--no-report", "-q"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, images, images by class and an audit of them, made from there."""
    folder = tmp_path_factory.mktemp("place")
    save_dinov2(folder / "tiny")
    write_images(folder / PHOTOS, 6)
    write_images(folder / "classes/a", 2)
    write_images(folder / "classes/b", 2, start=2)
    with chdir(folder):
        assert main([*audit(Path(), "out"), *SETTINGS]) == 0
    return folder


def audit(place, out, *models):
    chosen = [word for name in models or ["tiny"] for word in ("-m", str(place / name))]
    return ["audit", str(place / PHOTOS), "-o", str(place / out), *chosen]


def test_json_is_one_line_per_model_and_nothing_else(place, capsys):
    (place / "twin").symlink_to(place / "tiny")
    assert main([*audit(place, "json", "tiny", "twin"), "--no-report", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    saved = [place / "json" / name / "summary.json" for name in ("tiny", "twin")]
    assert [json.loads(line) for line in lines] == [json.loads(p.read_text()) for p in saved]


@pytest.mark.parametrize(
    "command",
    [
        ["one-shot", "classes", "--draws", "2"],
        ["explain", f"{PHOTOS}/0000.png", "--maps", "attention"],
        ["judge", PHOTOS, "--maps", "centre", "--limit", "4"],
        ["remedy", "compare", PHOTOS, "--remedy", "skip", "--limit", "4"],
    ],
)
def test_other_commands_print_json_and_save_their_options(place, capsys, monkeypatch, command):
    monkeypatch.chdir(place)
    assert main([*command, "-m", "tiny", "-o", command[0], "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    (saved,) = (place / command[0]).rglob("run.toml")
    assert json.loads(line) == json.loads(saved.with_name("summary.json").read_text())
    options = tomllib.loads(saved.read_text())
    assert (saved.parent / options["model"]).resolve() == place / "tiny"
    assert (saved.parent / options["out"]).resolve() == place / command[0]


def test_a_run_is_repeated_by_the_file_in_its_result_and_quiet_is_quiet(
    place, capsys, monkeypatch, tmp_path
):
    first = AuditResult.load(place / "out/tiny")
    file = first.folder / "run.toml"
    monkeypatch.chdir(tmp_path)  # paths in the file start at the file
    repeat = ["audit", "--config", str(file), "-o", "again", "--quiet"]
    assert main(repeat) == 0
    assert capsys.readouterr() == ("", "")
    assert main(repeat) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vitscope: ")
    (folder,) = (path.parent for path in (tmp_path / "again").glob("*/summary.json"))
    again = AuditResult.load(folder)
    named = replace(again.summary.model, id=first.summary.model.id)
    assert replace(again.summary, model=named) == first.summary
    assert again.provenance["config"] == first.provenance["config"]
    told, repeated = (path.read_text() for path in (file, folder / "run.toml"))
    assert told.startswith("# vitscope audit, version ")
    assert {"limit = 5", 'layers = "-1,0"', "report = false"} <= set(told.splitlines())
    assert str(place.parent) not in told + repeated
    moved = {"images", "model", "out"}
    options, options_again = tomllib.loads(told), tomllib.loads(repeated)
    assert options == options_again | {name: options[name] for name in moved}
    for name in moved - {"out"}:
        found = [first.folder / options[name], folder / options_again[name]]
        assert {one.resolve() for one in found} == {
            place / (PHOTOS if name == "images" else "tiny")
        }
    output = Output(
        config=app.parse_args(repeat, exit_on_error=False)[1].arguments["output"].config
    )
    output.conclude(again, lambda _: "")
    same = f"model, images and versions are the same as in {first.folder}"
    assert capsys.readouterr().out.split("\n")[1] == same


def test_what_has_changed_since_a_run_is_said(place, tmp_path):
    now = AuditResult.load(place / "out/tiny")
    then = now.save(tmp_path / "then")
    file = then.folder / "provenance.json"
    changed = now.provenance | {"weights_hash": "0", "preprocessing": {}}
    file.write_text(json.dumps(changed | {"versions": now.provenance["versions"] | {"numpy": "1"}}))
    pq.write_table(then.images.slice(2), then.folder / "images.parquet")
    assert tell_changes(then, now) == (
        f"changed since {then.folder}: the weights; the preprocessing; images (3 of 5 were among "
        f"the 3 then); numpy (1, now {np.__version__})"
    )
    earlier = now.provenance | {"behaviour_hash": ""}  # of a version that did not record it
    file.write_text(json.dumps(earlier))
    assert tell_changes(then, now).endswith(
        f"; what cannot be compared with {then.folder}: what the model computes with its weights"
    )
    earlier["plan"]["result"]["unknown"] = ["a hook of <lambda>"]
    file.write_text(json.dumps(earlier))
    assert tell_changes(then, now).endswith("weights, what else changes what the model computes")
    file.write_text(json.dumps({k: v for k, v in changed.items() if k != "plan"}))
    assert tell_changes(then, now).startswith(f"changed since {then.folder}: the weights; ")
    damaged = then.images.drop_columns(["image_id", "path"])
    pq.write_table(damaged, then.folder / "images.parquet")
    assert tell_changes(then, now) == ""
    with pytest.raises(ResultError, match=r"images\.parquet is damaged .*path"):
        then.cite()
    file.write_text("{}")
    assert tell_changes(then, now) == ""
    assert tell_changes(now, replace(now, folder=tmp_path)) == ""


def test_a_result_that_is_kept_keeps_the_options_of_its_run(place, monkeypatch):
    monkeypatch.chdir(place)
    file = place / "out/tiny/run.toml"
    before = file.read_text()
    assert main([*audit(Path(), "out"), *SETTINGS, "--resume", "--name", "another"]) == 0
    assert file.read_text() == before


@pytest.fixture
def options():
    """What --config becomes: run.toml, from words of a command."""

    def take(*words):
        taken = []
        app = App(config=add_config, result_action="return_value")
        app.command(lambda *images, config="": taken.append((images, config)), name="take")
        app(["take", *words], exit_on_error=False)
        return taken[0]

    return take


def test_options_are_saved_without_secrets_of_urls(options):
    urls = ["https://me:secret@host/a.tar", "s3://bucket/a.tar", "https://host/b?sig=secret"]
    _, saved = options(*urls)
    _, told, line = saved.splitlines()
    assert told == "# URLs are shown without user, password and query: give these again."
    assert line == 'images = ["https://host/a.tar", "s3://bucket/a.tar", "https://host/b"]'
    assert "secret" not in saved
    assert "# URLs" not in options("s3://bucket/a.tar", "a?b=c.png")[1]
    assert options("2024")[1].splitlines()[1] == 'images = "2024"'  # a path, which moves


def test_a_path_that_is_not_utf_8_is_read_as_it_was_saved(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.toml"
    images, saved = options("caf\udce9.png")
    file.write_text(saved, encoding="utf-8", errors="surrogateescape")
    assert options("--config", str(file)) == (images, saved)


@pytest.mark.parametrize(
    ("name", "given", "saved"),
    [
        ("images", "a.png", "../../a.png"),
        ("images", "./b/*", "../../b/*"),
        ("images", "./~root/*", "../../~root/*"),
        ("model", "./~tiny", "../../~tiny"),
        ("images", "s3://c/d.tar", "s3://c/d.tar"),
        ("images", "/a.png", "/a.png"),
        ("references", "[0-9].png", "../../[0-9].png"),
        ("folder", "../flowers", "../../../flowers"),
        ("out", ".", "../.."),
        ("model", "./tiny", "../../tiny"),
        ("model", "./dinov2-small", "../../dinov2-small"),
        ("model", "dinov2-small", "dinov2-small"),
        ("model", "../gone", "../../../gone"),
        ("model", "timm:vit@x.pth", "timm:vit@../../x.pth"),
        ("model", "timm:vit", "timm:vit"),
        ("model", "ph-reg:./tiny@x.pth", "ph-reg:../../tiny@../../x.pth"),
        ("remedy", "skip", "skip"),
        ("remedy", "mean.safetensors", "../../mean.safetensors"),
        ("target", "image:a.png", "image:../../a.png"),
        ("target", "text.npy", "../../text.npy"),
        ("target", "logit:text.npy", "logit:text.npy"),
        ("log", "tensorboard:runs", "tensorboard:../../runs"),
        ("log", "wandb:runs", "wandb:runs"),
        ("name", "tiny", "tiny"),
        ("limit", 3, 3),
    ],
)
def test_paths_in_a_file_of_options_start_at_its_folder(tmp_path, name, given, saved):
    start, result, away = (tmp_path / part for part in ("a", "a/results/tiny", "[b]/c"))
    for folder in (result, away, start / "tiny"):
        folder.mkdir(parents=True)
    assert move_options({name: [given]}, start, result) == {name: [saved]}
    (tmp_path / "link").symlink_to(result)  # what is above is above the folder itself
    again = given.removeprefix("./") if name == "images" and "~" not in given else given
    assert move_options({name: saved}, tmp_path / "link", start) == {name: again}
    assert move_options({"images": "~/a.png"}, start, away) == {"images": f"{Path.home()}/a.png"}
    # From a folder named like a wildcard, which is none.
    moved = move_options({"images": "*.png", "out": "*"}, away, start)
    assert moved == {"images": "../[[]b]/c/*.png", "out": "../[b]/c/*"}


def test_every_option_that_is_a_path_is_known():
    commands = [app[name] for name in app if not name.startswith("-")]
    commands += [app["remedy"][name] for name in app["remedy"] if not name.startswith("-")]
    found = set()
    for command in commands:
        options = command.assemble_argument_collection() if command.default_command else []
        if any(option.name == "--config" for option in options):
            paths = [option for option in options if "Path" in str(option.hint)]
            found |= {path.name.lstrip("-").lower() for path in paths}
    assert {"out", "folder", "masks", "one-shot"} <= found <= MOVES.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory): expected a TOML file of options such"),
        ("model =", "cannot be read (Invalid value (at end of document)): expected a TOML file"),
        ('modell = "x"', 'Unknown option: "[modell]" from'),
        ('# vitscope audit, version 1\nmodell = "x"', 'Unknown option: "[modell]" from'),
        ("# vitscope judge, version 1\nsanity = true", "has options of vitscope judge: run "),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, capsys, content, message):
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_text(content)
    assert main(["audit", "x.png", "-m", "dinov2-small", "-o", "x", "--config", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


class Recorder(ModuleType):
    """The part of wandb and mlflow that is used, with the signatures of both."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def init(self, *, project=None, name=None, config=None):
        self.calls.append((project, name, config["seed"]))
        return self

    def set_experiment(self, experiment_name=None):
        self.calls.append(experiment_name)

    def start_run(self, *, run_name=None):
        self.calls.append(run_name)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.calls.append("closed")

    def log(self, data):
        self.calls.append(data)

    def log_params(self, params):
        self.calls.append(params["seed"])

    def log_metrics(self, metrics, *, step=None):
        self.calls += [metrics, step]


@pytest.fixture
def libraries(monkeypatch):
    made = {name: Recorder(name) for name in ("wandb", "mlflow")}
    for name, library in made.items():
        monkeypatch.setitem(sys.modules, name, library)
    monkeypatch.setattr("vitscope.cli.loggers.find_spec", lambda _: True)
    return made


def test_a_file_written_by_hand_takes_lists_and_numbers_are_logged(place, libraries):
    log = [f"tensorboard:{place / 'boards'}", "wandb:vits", "mlflow:vits"]
    options = [f'images = ["{place}/my*"]', f'model = ["{place}/tiny"]', f"log = {log}"]
    options += ["layers = [0, 1]", 'maps = ["attention", "share"]', "report = false", ""]
    (place / "mine.toml").write_text("\n".join(options))
    arguments = ["--config", str(place / "mine.toml"), "-o", str(place / "logged")]
    assert main(["audit", *arguments, "-q", "--name", "first"]) == 0
    result = AuditResult.load(place / "logged/tiny")
    config = result.provenance["config"]
    assert config["layers"] == [0, 1, 2]  # with the last
    assert config["maps"] == ["attention", "share"]
    numbers = list_numbers(result.summary)
    board = EventAccumulator(str(place / "boards/tiny, first"))
    board.Reload()
    logged = {name: board.Scalars(name)[0] for name in board.Tags()["scalars"]}
    assert {name: scalar.value for name, scalar in logged.items()} == pytest.approx(numbers)
    assert {scalar.step for scalar in logged.values()} == {0}
    assert libraries["wandb"].calls == [("vits", "tiny, first", 0), numbers, "closed"]
    assert libraries["mlflow"].calls == ["vits", "tiny, first", 0, numbers, 0, "closed"]


def test_a_log_that_fails_says_that_the_audit_is_saved(place, libraries, monkeypatch):
    monkeypatch.delattr(Recorder, "set_experiment")
    result = AuditResult.load(place / "out/tiny")
    saved = f"; the audit is saved in {re.escape(str(result.folder))}$"
    with pytest.raises(VitscopeError, match=r"nothing was logged to mlflow:x \(Attr.*" + saved):
        open_logger("mlflow:x")(result, "tiny")


def test_a_log_that_fails_stops_no_other_model(place, libraries, monkeypatch, capsys):
    monkeypatch.delattr(Recorder, "set_experiment")
    (place / "second").symlink_to(place / "tiny")
    logs = ["--log", "mlflow:x", "--log", "wandb:x"]
    few = ["--limit", "4", "--no-report", "-q"]
    assert main([*audit(place, "unlogged", "tiny", "second"), *few, *logs]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    for name in ("tiny", "second"):
        assert f"the audit is saved in {place / 'unlogged' / name}" in line
        assert (place / "unlogged" / name / "summary.json").is_file()
    assert libraries["wandb"].calls.count("closed") == 2


def test_what_a_result_lacks_is_said_even_if_quiet(place, tmp_path, capsys):
    (tmp_path / "report.html").write_text("mine")
    assert main([*audit(place, tmp_path), "--limit", "4", "--quiet"]) == 0
    assert capsys.readouterr().err.startswith("no report was written: ")
    (tmp_path / "bad.png").write_text("not an image")
    images = [str(tmp_path / "bad.png"), str(place / PHOTOS / "0000.png")]
    chosen = ["-m", str(place / "tiny"), "-o", str(tmp_path / "why"), "--maps", "attention"]
    assert main(["explain", *images, *chosen, "--json"]) == 0
    assert f"\nnot readable: {images[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("wandb:x", "log 'wandb:x': wandb is not installed: pip install wandb"),
        ("wandb", "log 'wandb': expected tensorboard:FOLDER, wandb:PROJECT or mlflow:EXPERIMENT"),
    ],
)
def test_what_cannot_be_logged_is_refused_before_anything_runs(capsys, tmp_path, log, message):
    arguments = ["nowhere.png", "-m", "dinov2-small", "-o", str(tmp_path / "x"), "--log", log]
    assert main(["audit", *arguments]) == 2
    assert capsys.readouterr().err == f"vitscope: {message}\n"


def test_completion_is_installed_and_completes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", "--shell", "bash"]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    words = "COMP_WORDS=(vitscope audit --qui); COMP_CWORD=2"
    program = f'. ~/.bashrc; {words}; $(complete -p vitscope | sed "s/.*-F \\([^ ]*\\).*/\\1/")'
    done = subprocess.run(
        ["bash", "-c", f'{program}; echo "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.split() == ["--quiet"]


def refuse_to_load(_):
    pytest.fail("a model was loaded")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("facebook/dinov2-base", "facebook/dinov2-base is not cached and cannot be fetched"),
        ("dinov2-base", "facebook/dinov2-base is not cached and cannot be fetched"),
        ("timm:vit_base_patch16_224@nowhere.pth", "nowhere.pth is not a file"),
    ],
)
def test_weights_of_all_models_are_looked_for_before_the_first_is_loaded(
    place, capsys, monkeypatch, model, message
):
    def away(*_, **__):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("vitscope.weights.hub.snapshot_download", away)
    monkeypatch.setattr("vitscope.load_model", refuse_to_load)
    assert main([*audit(place, "unreached"), "-m", model, "-q"]) > 0
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (place / "unreached").exists()


def test_the_file_of_a_remedy_is_checked_before_a_model_is_loaded(place, capsys, monkeypatch):
    monkeypatch.setattr("vitscope.load_model", refuse_to_load)
    monkeypatch.chdir(place)
    (place / "mine.safetensors").touch()
    find = ["remedy", "find", PHOTOS, "-m", "tiny", "--remedy", "mean:tokens=cls", "-o"]

    def tell(*words):
        assert main([*find, *words]) == 2
        return capsys.readouterr().err

    assert "x.st: expected a file name that ends in .safetensors" in tell("x.st")
    assert "mine.safetensors is already there and is not replaced" in tell("mine.safetensors")
    assert "is not replaced" in tell("mine.safetensors", "--overwrite")  # it is no remedy
    monkeypatch.setattr("vitscope.files.storage.os.access", lambda *_: False)
    assert "cannot be written to: no permission" in tell("x.safetensors")


@pytest.mark.parametrize("run", [audit_images, explain, judge, one_shot, compare_remedies])
def test_folders_are_checked_before_a_model_is_loaded(place, monkeypatch, run):
    monkeypatch.setattr("vitscope.adapters.registry.load_model", refuse_to_load)
    (place / "comparison").mkdir(exist_ok=True)
    (place / "comparison/thesis.tex").touch()
    remedies = {"remedies": ["zero"]} if run is compare_remedies else {}
    with pytest.raises(UsageError, match="was not written by vitscope"):
        run("dinov2-small", place / "classes", out=place, **remedies)
    with pytest.raises(UsageError, match="nowhere"):
        run("dinov2-small", place / "nowhere", **remedies)
