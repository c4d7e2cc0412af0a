"""Every number that a result holds has its words, once."""

from dataclasses import fields
from itertools import chain

from images import IMAGE_COVARIATES
from vitscope.images.covariates import SEGMENT_COVARIATES
from vitscope.layout import GROUPS
from vitscope.results.schema_numbers import ImageNumbers, PerImage
from vitscope.results.summary import ERRORS
from vitscope.results.vocabulary import (
    COVARIATES,
    PER_IMAGE,
    SOURCES,
    TERMS,
    name_term,
    order_terms,
)


def test_every_number_of_an_image_has_words():
    named = {path for key, quantity in PER_IMAGE.items() for path in quantity.list_paths(key)}
    assert {field.name for field in fields(PerImage)} <= PER_IMAGE.keys()
    assert {field.name for field in fields(ImageNumbers)} <= PER_IMAGE.keys()
    assert set(ERRORS) <= PER_IMAGE.keys()
    assert ("cosine", "residual", "non_patch") in named
    assert ("patch_share",) in named
    assert ("contribution_norm", "residual_total") in named
    assert set(COVARIATES) == {*IMAGE_COVARIATES, *SEGMENT_COVARIATES}


def test_every_term_has_words():
    assert set(SOURCES) == {*GROUPS, "skip"}
    terms = chain.from_iterable(quantity.terms for quantity in PER_IMAGE.values())
    assert set(terms) <= TERMS.keys()


def test_terms_are_named_and_ordered():
    assert name_term("register_2") == "register 2"
    assert name_term("cls") == "[CLS] itself"
    assert order_terms(["skip", "new", "patches", "full"]) == ["full", "patches", "skip", "new"]
