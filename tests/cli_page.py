"""Generates the command line reference in docs/cli.md from the program itself.

python tests/cli_page.py    rewrites the page
"""

import re
from collections import Counter
from functools import cache
from pathlib import Path

from vitscope.cli.entry import app

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """# Command line

Made by `python tests/cli_page.py` from the program itself; `vitscope COMMAND --help` says the same.

Progress goes to standard error, results to standard output. [Errors](errors.md) lists exit codes.
"""
SHARED = "## Options of several commands\n\nEach command names those that it takes."
_LINK = "[see above](#options-of-several-commands)"
_EXAMPLE = re.compile(r"^Example:  (.+(?:\n.+)*)$", re.MULTILINE)
_CONTENTS = re.compile(r"^## Table of Contents\n.*?(?=^\*\*Commands)", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^(?=##+ vitscope )", re.MULTILINE)
_GROUP = re.compile(r"^\*\*([\w ]+)\*\*:\n\n((?:(?:\* |    ).*\n)+)", re.MULTILINE)
_OPTION = re.compile(r"^\* `.*\n(?:    .*\n)*", re.MULTILINE)


def _quote_example(found):
    return f"```console\n$ {' '.join(found[1].split())}\n```"


@cache
def list_commands():
    """The introduction, and a section of each command with all that it takes."""
    # What commands of commands inherit, the generator does not know.
    app["remedy"].default_parameter = app.default_parameter
    generated = app.generate_docs(output_format="markdown")
    # The page has its own title and table of contents.
    _, _, generated = generated.partition("\n")
    generated = _CONTENTS.sub("", generated)
    generated = _EXAMPLE.sub(_quote_example, generated)
    lines = [line.rstrip() for line in generated.strip().splitlines()]
    return _COMMAND.split("\n".join([*lines, ""]))


def make_page():
    head, *commands = list_commands()
    groups = [group for command in commands for group in _GROUP.findall(command)]
    shared = _find_shared([option for _, text in groups for option in _OPTION.findall(text)])

    def shorten(group):
        found = _OPTION.findall(group[2])
        own = [option for option in found if option not in shared]
        named = [f"`{_name(option)}`" for option in found if option in shared]
        linked = [f"* {', '.join(named)}: {_LINK}\n"] if named else []
        return f"**{group[1]}**:\n\n{''.join(own + linked)}"

    told = {heading: {} for heading, _ in groups}  # in the order of the first command with them
    for heading, text in groups:
        told[heading] |= {option: None for option in _OPTION.findall(text) if option in shared}
    parts = [f"**{heading}**:\n\n{''.join(found)}" for heading, found in told.items() if found]
    parts += [_GROUP.sub(shorten, command) for command in commands]
    return "\n\n".join(part.strip() for part in (HEAD, head, SHARED, *parts)) + "\n"


def _find_shared(options):
    """The description that several commands have of an option, if any."""
    found = {}
    for option, count in Counter(options).most_common():
        if count > 1:
            found.setdefault(_name(option), option)
    return set(found.values())


def _name(option):
    return re.match(r"\* `([^`, ]+)", option)[1]


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
