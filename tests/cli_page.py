"""Generates the command line reference in docs/cli.md from the program itself.

python tests/cli_page.py    rewrites the page
"""

import re
from pathlib import Path

from vitscope.cli.entry import app

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """# Command line

Made by `python tests/cli_page.py` from the program itself; `vitscope COMMAND --help` says the same.

Progress goes to standard error, results to standard output. [Errors](errors.md) lists exit codes.
{config} take `--quiet` and `--config`;
{json} take `--json`.
"""
_EXAMPLE = re.compile(r"^Example:  (.+(?:\n.+)*)$", re.MULTILINE)
_HAVING = r"^#+ vitscope ([\w -]+)$(?=(?:(?!^#).*\n)*\* `--%s)"
_CONTENTS = re.compile(r"^## Table of Contents\n.*?(?=^\*\*Commands)", re.MULTILINE | re.DOTALL)


def _quote_example(found):
    return f"```console\n$ {' '.join(found[1].split())}\n```"


def make_page():
    # What commands of commands inherit, the generator does not know.
    app["remedy"].default_parameter = app.default_parameter
    generated = app.generate_docs(output_format="markdown")
    # The page has its own title and table of contents.
    _, _, generated = generated.partition("\n")
    generated = _CONTENTS.sub("", generated)
    generated = _EXAMPLE.sub(_quote_example, generated)
    lines = [line.rstrip() for line in generated.strip().splitlines()]
    page = "\n".join([*lines, ""])
    named = {option: _name_commands(page, option) for option in ("config", "json")}
    return HEAD.format(**named) + "\n" + page


def _name_commands(page, option):
    *most, last = [f"`{name}`" for name in re.findall(_HAVING % option, page, re.MULTILINE)]
    return f"{', '.join(most)} and {last}"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
