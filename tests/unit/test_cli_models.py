"""`vitscope models` as a person and as a program read it."""

import json
import re
import subprocess
import sys

import pytest
from rich.cells import cell_len

from vitscope.cli import main
from vitscope.weights import hub
from vitscope.weights.catalogue import CATALOGUE

STATES = {"dinov2-small": "embedded", "clip-l14": "cached"}


@pytest.fixture(autouse=True)
def known_cache(monkeypatch):
    """Two models are on this machine, those of iBOT must be fetched by hand."""

    def find_weights(entry):
        return "by hand" if entry.checkpoint else STATES.get(entry.name, "not cached")

    monkeypatch.setattr(hub, "find_weights", find_weights)


@pytest.fixture
def run(capsys, monkeypatch):
    def run(*arguments, width=200):
        monkeypatch.setenv("COLUMNS", str(width))
        code = main(["models", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def rows_of(out):
    """Name and the rest of every line that is a model's."""
    lines = (line.split(maxsplit=1) for line in out.splitlines() if line)
    return {words[0]: words[1] for words in lines if words[0] in CATALOGUE}


def test_every_model_is_a_row_under_its_family(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    rows = rows_of(out)
    assert list(rows) == list(CATALOGUE)
    assert re.fullmatch(
        r"bigG/14 +1,845 M +16 x 16 +10.2 GB +not cached +laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        rows["openclip-bigg14"].rstrip(),
    )
    assert re.fullmatch(
        r"S +22 M +16 x 16 +88 MB +embedded +facebook/dinov2-small", rows["dinov2-small"].rstrip()
    )
    assert re.search(r"by hand +https://\S+/vitb_16/checkpoint_teacher\.pth", rows["ibot-base"])
    assert (
        "\nDINOv2 with registers (dinov2-reg): Apache-2.0, 1 cls + 4 registers + patches\n" in out
    )
    assert "\nSigLIP 2 (siglip2): Apache-2.0, patches, attention pooling\n" in out
    assert "\nDeiT III (deit3): Apache-2.0, 1 cls + patches\n" in out
    assert "\nnote of deit-tiny: DeiT, not DeiT III" in out
    assert "\nnote: MAE never trains its [CLS] token" in out
    assert f"\n{len(CATALOGUE)} models, 2 on this machine. " in out


@pytest.mark.parametrize("width", [40, 60, 80, 100, 110, 140, 200])
def test_no_line_is_longer_than_the_terminal_and_nothing_is_cut(run, width):
    _, out, _ = run(width=width)
    assert max(cell_len(line) for line in out.splitlines()) <= width
    assert "…" not in out


def test_in_a_narrow_terminal_a_row_is_a_line_and_sources_are_told_by_family(run):
    _, out, _ = run(width=80)
    row = rows_of(out)["dinov3-small-plus"]
    assert re.fullmatch(r"S\+ +29 M +16 x 16 +115 MB +not cached", row.rstrip())
    told = " ".join(out.split())
    for family in {entry.family_key for entry in CATALOGUE.values()}:
        sources = [e.source for e in CATALOGUE.values() if e.family_key == family]
        expanded = [expand(each) for each in re.findall(r"from ([^{]*\{[^}]*\}\S*)", told)]
        assert sources in expanded, family


def expand(text):
    start, middle, end = re.fullmatch(r"([^{]*)\{(.*)\}(.*)", text.replace(" ", "")).groups()
    return [f"{start}{each}{end}" for each in middle.split(",")]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("dinov3-7b", ["dinov3-7b"]),
        ("CLIP-L", ["clip-l14", "openclip-l14"]),
        ("*-giant*", ["dinov2-giant", "dinov2-giant-reg", "siglip2-giant"]),
        ("clip-b??", ["clip-b32", "clip-b16"]),
        ("registers", [f"dinov2-{size}-reg" for size in ("small", "base", "large", "giant")]),
        ("deit iii", ["deit-tiny", "deit3-small", "deit3-base", "deit3-large", "deit3-huge"]),
        ("deit", ["deit-tiny", "deit3-small", "deit3-base", "deit3-large", "deit3-huge"]),
        ("mae", ["mae-base", "mae-large", "mae-huge"]),
    ],
)
def test_a_pattern_chooses_by_name_and_family(run, pattern, names):
    code, out, _ = run(pattern)
    assert (code, list(rows_of(out))) == (0, names)


def test_one_model_is_counted_as_one(run):
    assert "\n1 model, 0 on this machine. " in run("dinov3-7b")[1]


@pytest.mark.parametrize(
    ("pattern", "end"),
    [
        ("dinno", "; did you mean dino, dinov3 or dinov2?"),
        ("clip-b31", "; did you mean clip-b32, clip-b16 or clip-l14?"),
        ("[/red]", "`vitscope models` lists all"),
        ("zz\x1b[31m\nzz", "`vitscope models` lists all"),
    ],
)
def test_an_unknown_pattern_is_one_line(run, pattern, end):
    code, out, err = run(pattern)
    assert (code, out) == (2, "")
    assert err.endswith(f"{end}\n")
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_only_what_is_on_this_machine(run):
    assert list(rows_of(run("--cached")[1])) == list(STATES)
    assert list(rows_of(run("clip", "--cached")[1])) == ["clip-l14"]
    assert run("mae", "--cached")[1] == "none of these models is on this machine\n"
    assert json.loads(run("mae", "--cached", "--json")[1]) == []


def test_json_holds_all_that_is_known(run):
    code, out, err = run("--json", width=20)
    assert (code, err) == (0, "")
    rows = {row["name"]: row for row in json.loads(out)}
    assert list(rows) == list(CATALOGUE)
    assert rows["dinov2-large-reg"] == {
        "name": "dinov2-large-reg",
        "id": "facebook/dinov2-with-registers-large",
        "family": "DINOv2 with registers",
        "family_key": "dinov2-reg",
        "size": "L",
        "size_class": "l",
        "num_params": 304372736,
        "width": 1024,
        "depth": 24,
        "num_heads": 16,
        "patch_size": 14,
        "input_size": 224,
        "num_registers": 4,
        "grid": [16, 16],
        "tokens": "1 cls + 4 registers + 16 x 16 patches = 261 tokens",
        "global_feature": "cls",
        "licence": "Apache-2.0",
        "library": "transformers",
        "repository": "facebook/dinov2-with-registers-large",
        "source": "facebook/dinov2-with-registers-large",
        "gated": False,
        "download_mb": 1217,
        "checkpoint": "",
        "note": "",
        "weights": "not cached",
    }


def test_listing_imports_no_model_library():
    program = "import sys\nfrom vitscope.cli import main\nmain(['models'])\n"
    program += "print(sorted({'torch', 'timm', 'transformers', 'open_clip'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
