"""Messages of the library name settings as Python takes them; the command line, as options."""

import ast
import re

import pytest

from page_blocks import ROOT
from vitscope.cli.settings import in_options

SOURCE = ROOT / "src" / "vitscope"
OPTIONS = set(re.findall(r"--[a-z][a-z-]+", (ROOT / "docs" / "cli.md").read_text("utf-8")))
OF_THE_COMMAND_LINE = ("cli/", "reproduction/", "testing/")
IN_A_COMMAND = {"runs/references.py", "figures/draw.py", "serving/app.py"}
"""They tell a whole command, in backticks."""
FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
LIBRARY = [name for name in FILES if not name.startswith(OF_THE_COMMAND_LINE)]


def list_texts(tree):
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value


@pytest.mark.parametrize("name", [name for name in LIBRARY if name not in IN_A_COMMAND])
def test_no_message_of_the_library_tells_an_option(name):
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    found = {word for text in list_texts(tree) for word in re.findall(r"--[a-z][a-z-]+", text)}
    assert not found & OPTIONS
    # What is not written as a keyword argument is no option on the command line.
    loose = r"(?:set|with) (?:overwrite|resume|layers?|size|dtype|cls_term)(?:$|[ ;,)])"
    assert not [text for text in list_texts(tree) if re.search(rf"\b{loose}", text)]
    # What may be a path is no option either: a keyword argument follows a word of advice.
    names = "|".join(word[2:].replace("-", "_") for word in OPTIONS)
    keywords = rf"(\w+) (?:{names})=(?:True|'\w|\(?\d|-\d|$)"
    before = {word for text in list_texts(tree) for word in re.findall(keywords, text)}
    assert before <= {"give", "with", "and", "or", "as", "set", "needs"}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("choose another or give overwrite=True", "choose another or give --overwrite"),
        (
            "give resume=True to resume it, or overwrite=True to",
            "give --resume to resume it, or --overwrite to",
        ),
        ("(audit with layers='all')", "(audit with --layers all)"),
        ("give layer=-1, or", "give --layer -1, or"),
        ("set size=(16, 40)", "set --size 16x40"),
        ("audit with cls_term='own'", "audit with --cls-term own"),
        ("mask:tokens=cls,layers=3 of layers=10+11", None),
        ("create(size=(3, 4)), or preprocessed=True", None),
        ("the model's own: give dtype='bfloat16'.", "the model's own: give --dtype bfloat16."),
        ("'seed=1/gone' does not exist", None),
        ("'this or seed=1' and \"that's with limit=1\"", None),
        ("results/seed=1/photos, limit=100, size=3 photo.png", None),
        ("with seed=1/a, with seed=1.png, with overwrite=True/a, with dtype='auto'/a", None),
    ],
)
def test_the_command_line_tells_options(message, told):
    assert in_options(message) == (told or message)


def test_the_options_are_known():
    assert {"--overwrite", "--resume", "--dtype"} <= OPTIONS
    assert len(LIBRARY) > 100
