"""Every fenced block of README and docs is run: Python, commands, data."""

import json
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

from page_blocks import PAGES, ROOT, name_page, read_blocks
from vitscope.cli import main
from vitscope.cli.entry import app

BLOCKS = {name_page(page): read_blocks(page) for page in PAGES}
WITH_BLOCKS = [name for name, blocks in BLOCKS.items() if blocks]
DATA = {"json": json.loads, "toml": tomllib.loads, "text": str, "bibtex": str}
MAX_NOT_RUN = 7

EXAMPLES = "docs/cli.md"
"""Its blocks are examples of one command each, not steps of one walk."""


def check_command(words):
    program, *arguments = words
    name = Path(program).name
    if name == "vitscope":
        app.parse_args(arguments, print_error=False, exit_on_error=False)
    elif name == "torchrun":
        check_command(arguments[arguments.index("-m") + 1 :])
    elif name == "make":
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(f"\n{target}:" in targets for target in arguments), words
    elif name == "pip":
        known = ("vitscope", ".", *(ROOT / "constraints.txt").read_text("utf-8").splitlines())
        assert arguments[0] in {"install", "wheel"}, words
        assert any(word in known or "vitscope" in word or word[:2] == ".[" for word in words), words
    elif name == "docker":
        assert (ROOT / "Dockerfile").is_file(), words
    elif arguments[:2] == ["-m", "venv"]:
        assert name == "python", words
    elif name == "python":
        assert (ROOT / arguments[0]).exists(), words
    elif name == "pytest":
        assert arguments[0] == "-m", words
    else:
        pytest.fail(f"neither vitscope nor a command that the tests know: {words}")


def run_vitscope(words):
    arguments = words[1:]
    # As many images as are told would take as long as all other blocks together.
    if words[1] == "judge" or words[1:3] in (["remedy", "compare"], ["remedy", "find"]):
        if "--limit" in arguments:
            place = arguments.index("--limit")
            del arguments[place : place + 2]
        arguments += ["--limit", "2"]
    assert main(arguments) == 0, words


def run_command(words, block):
    check_command(words)
    if Path(words[0]).name == "vitscope" and block.reason is None:
        run_vitscope(words)


def run_block(block, names, page):
    if block.language == "python":
        if block.reason is None:
            # Blank lines in front, so that a traceback tells the line of the page.
            code = "\n" * block.line + block.code
            exec(compile(code, page, "exec"), names)
    elif block.language == "console":
        for command in block.commands:
            run_command(shlex.split(command), block)
    else:
        DATA[block.language](block.code)


@pytest.mark.parametrize("page", [name for name in WITH_BLOCKS if name != EXAMPLES])
def test_all_blocks_of_a_page_run_in_order(page, reader, capsys):
    names = {"__name__": "__main__"}
    for block in BLOCKS[page]:
        run_block(block, names, page)


@pytest.mark.parametrize("block", [b for b in BLOCKS[EXAMPLES] if b.commands], ids=lambda b: b.code)
def test_each_example_of_a_command_runs(block, reader, capsys):
    (words,) = map(shlex.split, block.commands)
    check_command(words)
    if words[1] in {"figures", "report", "serve"}:
        shutil.move("results-a", "results")
    if words[1] != "reproduce":  # as the recipe says, it takes hours
        run_vitscope(words)


def test_hardly_a_block_is_left_out_and_each_says_why():
    left_out = [
        (page, block.line, block.reason)
        for page, blocks in BLOCKS.items()
        for block in blocks
        if block.reason is not None
    ]
    assert all(len(reason) > 20 for *_, reason in left_out)
    assert len(left_out) <= MAX_NOT_RUN, left_out


def test_no_code_hides_in_blocks_that_are_not_looked_at():
    """Blocks of four spaces are diagrams and formulas: what could be typed is fenced."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            typed = line.startswith(("    vitscope ", "    $ ", "    import ", "    from vitscope"))
            assert not typed, f"{name_page(page)}: {line}"
