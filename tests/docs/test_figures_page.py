"""The page of figures explains each as its caption does, and shows it."""

import re

import pytest

from page_blocks import ROOT
from vitscope.figures.captions import read_captions

PAGE = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
TEXT = " ".join(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", PAGE).split())


@pytest.mark.parametrize("figure", read_captions())
def test_the_caption_of_each_figure_is_on_the_page(figure):
    assert read_captions()[figure] in TEXT


def test_each_figure_is_shown_or_the_page_says_why_not():
    entries = re.split(r"\n(?=\*\*`|## )", PAGE)
    for entry in (entry for entry in entries if entry.startswith("**`")):
        images = re.findall(r"!\[[^!]*\]\((tour/[^)]*)\)", entry)
        assert images or "\nNo image: " in entry, entry
        assert all((ROOT / "docs" / image).is_file() for image in images), images
