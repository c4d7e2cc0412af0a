"""What the documentation's own scripts do in a real browser."""

from pathlib import Path

import pytest
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from page_blocks import ROOT

CONSOLE = "$ vitscope audit a \\\n>     --model b\nledger balances\n)\n\n$ ls\nfigures\n"


@pytest.mark.parametrize(
    ("language", "code", "copied"),
    [
        ("console", CONSOLE, "vitscope audit a \\\n    --model b\nls"),
        ("python", "print(1)\n", None),  # as the site copies it
    ],
)
def test_the_copy_button_takes_commands_alone(chromium, language, code, copied):
    written = highlight(code, get_lexer_by_name(language), HtmlFormatter(nowrap=True))
    page = chromium.new_page()
    page.set_content(
        f"<pre id=a><button data-clipboard-target='#a > code'>Copy</button><code>{written}</code>"
    )
    page.add_script_tag(path=Path(ROOT, "docs", "assets", "copy.js"))
    page.locator("button").click()
    assert page.locator("button").get_attribute("data-clipboard-text") == copied
    page.close()
