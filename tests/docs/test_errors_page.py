"""What the page of error messages claims holds in the source: classes, exit codes, messages."""

import ast
import re
from pathlib import Path

import pytest

import vitscope.errors
from page_blocks import ROOT
from vitscope.cli import main
from vitscope.errors import NonFiniteError, VitscopeError
from vitscope.figures.description import NothingToDrawError

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "vitscope"
VARIES = "…"
CLASSES = {
    name: value
    for name, value in vars(vitscope.errors).items()
    if isinstance(value, type) and issubclass(value, VitscopeError)
}
NAMES = {*CLASSES, NothingToDrawError.__name__}

_, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
GROUPS = {text.partition("\n")[0]: text for text in SECTIONS[1:]}
ROWS = [
    (group, message)
    for group, text in GROUPS.items()
    for message in re.findall(r"^\| `(.+?)` \| ", text, re.MULTILINE)
]


def read_template(node):
    """A message with … for what is put in when it is raised."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(read_template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return read_template(node.left) + read_template(node.right)
    return VARIES


def list_messages():
    """Each message of the package, and the class that it is given to."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if made and node.func.id.lstrip("_").endswith("Error") and node.args:
                template = read_template(node.args[0])
                # What is only passed on was written elsewhere.
                if template.strip(VARIES):
                    yield template, node.func.id


MESSAGES = list(list_messages())


def make_error(kind):
    return kind("said", image=0) if kind is NonFiniteError else kind("said")


def test_the_page_lists_every_class_and_no_other():
    rows = re.findall(r"^\| `(\w+Error)` \| \d \|", SECTIONS[0], re.MULTILINE)
    assert sorted(rows) == sorted(CLASSES)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_command_line_ends_with_the_exit_code_of_the_page(name, monkeypatch, capsys):
    def fail(_):
        raise make_error(CLASSES[name])

    (code,) = re.findall(rf"^\| `{name}` \| (\d) \|", SECTIONS[0], re.MULTILINE)
    monkeypatch.setattr("vitscope.cli.entry.app", fail)
    assert main([]) == int(code)
    assert capsys.readouterr().err == "vitscope: said\n"


def test_unknown_words_end_with_2_and_an_interrupt_with_1(monkeypatch, capsys):
    assert main(["audit", "--no-such-option"]) == 2

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vitscope.cli.entry.app", stop)
    assert main([]) == 1
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize(("group", "message"), ROWS)
def test_a_message_of_the_page_is_raised_by_a_class_of_its_group(group, message):
    begins = re.compile(".*".join(re.escape(part) for part in message.split(VARIES)))
    raised = {kind for template, kind in MESSAGES if begins.match(template)}
    assert raised, "no such message in the source"
    named = set(re.findall(r"`(\w+Error)`", GROUPS[group]))
    assert raised & named, raised


@pytest.mark.parametrize("group", GROUPS)
def test_every_class_that_a_group_names_exists(group):
    named = set(re.findall(r"`(\w+Error)`", GROUPS[group]))
    assert named
    assert named <= NAMES


def test_every_class_has_its_group():
    named = {name for text in GROUPS.values() for name in re.findall(r"`(\w+Error)`", text)}
    assert named == NAMES


def test_every_public_class_of_the_source_is_on_the_page():
    defined = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            bases = {base.id for base in getattr(node, "bases", []) if isinstance(base, ast.Name)}
            if isinstance(node, ast.ClassDef) and bases & NAMES:
                defined.add(node.name)
    assert {name for name in defined if name[0] != "_"} <= NAMES


def test_the_source_that_is_read_is_the_source_that_runs():
    assert Path(vitscope.errors.__file__).is_relative_to(SOURCE)
    assert len(MESSAGES) > 150
    rows = [text.count("\n| `") for text in GROUPS.values()]
    assert len(ROWS) == sum(rows)
    assert all(rows)
