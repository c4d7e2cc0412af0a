"""The page of figures explains each as its caption does."""

import re

import pytest

from page_blocks import ROOT
from vitscope.figures.captions import read_captions

PAGE = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
TEXT = " ".join(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", PAGE).split())


@pytest.mark.parametrize("figure", read_captions())
def test_the_caption_of_each_figure_is_on_the_page(figure):
    assert read_captions()[figure] in TEXT
