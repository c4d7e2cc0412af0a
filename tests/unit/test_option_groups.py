"""The help of a command shows each of its options in one of the groups."""

import re

import pytest

from cli_page import list_commands, make_page
from vitscope.cli.settings import _GROUPS

PAGE = "".join(list_commands())
COMMANDS = dict(re.findall(r"^## vitscope ([\w-]+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
GROUPED = ("audit", "demo", "explain", "one-shot", "reproduce", "figures")


def list_options(text):
    """Options by the heading that they stand under."""
    found = {}
    for heading, body in re.findall(r"^\*\*([\w ]+)\*\*:\n(.*?)(?=^\*\*|\Z)", text, re.M | re.S):
        found[heading] = re.findall(r"^\* `(?:--)?([\w-]+)", body, re.M)
    return found


@pytest.mark.parametrize("command", GROUPED)
def test_every_option_is_in_a_group(command):
    found = list_options(COMMANDS[command])
    loose = set(found) - {group.name for group in _GROUPS.values()}
    assert [name for heading in loose for name in found[heading] if name != "RESULTS"] == []


def test_every_option_that_has_a_group_is_shown_under_it():
    shown = {}
    for text in COMMANDS.values():
        for heading, options in list_options(text).items():
            for option in options:
                shown.setdefault(option.lower().replace("-", "_"), set()).add(heading)
    assert {name: {group.name} for name, group in _GROUPS.items()}.items() <= shown.items()


def test_models_and_folders_have_short_names():
    for command in ("audit", "judge", "explain", "one-shot"):
        assert "`--model, -m" in COMMANDS[command]
        assert "`--out, -o" in COMMANDS[command]


def test_the_page_tells_every_option_where_it_is_or_once_above():
    page = make_page()
    for one in re.split(r"^(?=##+ vitscope )", PAGE, flags=re.M)[1:]:
        title, taken = one.partition("\n")[0], re.findall(r"^\* `([^`, ]+)", one, re.M)
        section = page.partition(f"\n{title}\n")[2].partition("\n##")[0]
        assert {*taken} <= {*re.findall(r"(?<=`)[\w-]+(?=[`, ])", section)}
    told = re.findall(r"^\* `([^`, ]+).*`: (?!\[see)", page.partition("## vitscope")[0], re.M)
    assert len({*told}) == len(told) > 20
