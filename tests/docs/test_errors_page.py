"""The page of error messages holds every message of the source, and no other."""

import ast
import re
from pathlib import Path

import pytest

import vitscope.errors
from page_blocks import ROOT

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "vitscope"
VARIES = "…"


def list_classes():
    """Every error that a message is given to, those of single rooms included."""
    own = {name for name, value in vars(vitscope.errors).items() if isinstance(value, type)}
    found = set(own)
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                found.add(node.name)
    return own, found


ERRORS, ALL_ERRORS = list_classes()


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
    """Template of each message of the package, and where it is made."""
    messages = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if made and node.func.id in ALL_ERRORS and node.args:
                template = read_template(node.args[0])
                # What is only passed on was written elsewhere.
                if template.strip(VARIES):
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    messages.setdefault(template, where)
    return messages


MESSAGES = list_messages()
ROWS = re.findall(r"^\| `(.+?)` \| ", PAGE.partition("## Settings")[2], re.MULTILINE)


def says(row, message):
    """Whether a row is of a message: all of it, or its beginning where the row ends in …."""
    if row.endswith(VARIES):
        return message.startswith(row.removesuffix(VARIES))
    return message == row


def test_there_are_messages_and_rows():
    assert len(MESSAGES) > 150
    assert len(ROWS) > 150


def test_every_message_has_a_row():
    missing = [
        f"{where}: {message}"
        for message, where in MESSAGES.items()
        if not any(says(row, message) for row in ROWS)
    ]
    assert missing == []


def test_every_row_is_of_a_message():
    assert [row for row in ROWS if not any(says(row, message) for message in MESSAGES)] == []


def test_no_row_is_there_twice():
    assert len(ROWS) == len(set(ROWS))


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_class_is_told_with_its_exit_code(name):
    usage = issubclass(getattr(vitscope.errors, name), vitscope.errors.UsageError)
    row = re.search(rf"^\| `{name}` \| (\d) \|", PAGE, re.MULTILINE)
    assert row is not None
    assert row[1] == ("2" if usage else "1")


def test_the_source_that_is_read_is_the_source_that_runs():
    assert Path(vitscope.errors.__file__).is_relative_to(SOURCE)
