"""Whatever a text holds, a reader of CommonMark shows it as it is, in a line, an item, a cell."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from vitscope.files.printable import escape_markdown

# A parser of CommonMark that has nothing of ours, with the tables and crossed out words of GitHub.
COMMONMARK = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = [
    "<script>alert(1)</script>",
    "a & b &amp; &lt;c&gt; &#65;",
    "[a](b) ![a](b) [a] [a]: b",
    "<http://a.b> http://a.b www.a.b WWW.a.b me@a.b",
    "*a* **a** _a_ __a__ ~~a~~ `a` ``a``",
    "a | b \\| c \\\\",
    "# a",
    "- a",
    "+ a",
    "---",
    "===",
    "1. a",
    "12) a",
    "123456789. a",
    "> a",
    "~~~",
    "$a$ $$a$$",
    "two\nlines\n\n# three",
    "    four spaces",
    'CKA is below 0.5 < 0.9 (n = 3): no - it\'s 100 % "so"',
    "DINOv2 with registers S/14 (timm:vit_small_patch14)",
    "",
]


def shown_in(source):
    """The text that a reader shows, and the kinds of everything that it made of the source."""
    tokens = COMMONMARK.parse(source)
    kinds, texts = {token.type for token in tokens}, []
    for token in tokens:
        for child in token.children or []:
            kinds.add(child.type)
            texts.append(child.content)
    return "".join(texts), kinds


def assert_shown(text):
    folded = " ".join(text.split())
    escaped = escape_markdown(text)
    assert "\n" not in escaped
    shown, kinds = shown_in(f"Before: {escaped}")
    assert shown == f"Before: {folded}".rstrip()
    assert kinds <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}
    shown, kinds = shown_in(f"- {escaped}")
    assert shown == folded
    list_kinds = {"bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close"}
    assert kinds <= {*list_kinds, "paragraph_open", "paragraph_close", "inline", "text"} | {
        "text_special"
    }
    html = COMMONMARK.render(f"| x | y |\n|---|---|\n| {escaped} | z |")
    cells = re.findall(r"<td>(.*?)</td>", html, re.DOTALL)
    assert len(cells) == 2
    unescaped = cells[0].replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
    assert unescaped.replace("&amp;", "&") == folded
    assert cells[1] == "z"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is(text):
    assert_shown(text)


@given(st.text(st.sampled_from("\\`*_[]()|<>&;#~!+-=.:/@$'\"1 2\nawx"), max_size=25))
def test_any_mixture_of_markup_is_shown_as_it_is(text):
    assert_shown(text)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Z"]), max_size=20))
def test_letters_of_any_script_are_left_alone(text):
    assert_shown(text)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("http://a.b", "http\\://a.b"),
        ("see www.a.b", "see www\\.a.b"),
        ("me@a.b", "me\\@a.b"),
        ("$x$", "\\$x\\$"),
        ("a < b", "a &lt; b"),
        ("no links: here, 3.5 of a-b (c)", "no links: here, 3.5 of a-b (c)"),
    ],
)
def test_what_github_adds_to_commonmark_is_escaped_and_plain_words_are_not(text, escaped):
    assert escape_markdown(text) == escaped
