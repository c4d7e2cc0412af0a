"""Shapes in annotations hold while tests run: of arguments, of what is returned, of fields."""

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shape_checks import checked, unchecked
from vitscope.metrics.moments import PairMoments
from vitscope.metrics.pair_estimates import compute_hsic

Pair = dict[str, Float[Tensor, "row dim"]]


@checked
def add(x: Float[Tensor, "row dim"], *, y: Float[Tensor, "row dim"] | None = None, to: str = ""):
    return x if y is None else x + y


@checked
def first_row(pair: Pair) -> Float[Tensor, " dim"]:
    return pair["x"][: len(pair)].squeeze(0)


def test_what_fits_is_taken():
    assert add(torch.ones(2, 3), y=torch.ones(2, 3), to="x").sum() == 12
    assert add(torch.ones(2, 3)).shape == (2, 3)
    assert first_row({"x": torch.ones(2, 3)}).shape == (3,)


def test_what_does_not_fit_is_named():
    with pytest.raises(TypeError, match=r"add, x: torch\.float32 \(2,\): expected .*row dim"):
        add(torch.ones(2))
    with pytest.raises(TypeError, match=r"add, y: torch\.float32 \(2, 4\): expected "):
        add(torch.ones(2, 3), y=torch.ones(2, 4))  # dim is 3 in this call
    with pytest.raises(TypeError, match=r"add, x: \[\[1\.0\]\]: expected "):
        add([[1.0]])
    with pytest.raises(TypeError, match=r"first_row, pair: "):
        first_row({"x": torch.ones(2)})
    with pytest.raises(TypeError, match=r"first_row, return: torch\.float32 \(2, 3\): expected "):
        first_row({"x": torch.ones(3, 3), "y": torch.ones(3, 3)})


def test_after_a_call_that_fits_others_are_still_checked():
    add(torch.ones(2, 3))
    first_row({"x": torch.ones(2, 3)})
    with pytest.raises(TypeError, match=r"add, x: torch\.int64 \(2, 3\): expected "):
        add(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"first_row, pair: "):
        first_row({"x": torch.ones(2, 3, 1)})


def test_they_can_be_left_out():
    with unchecked():
        assert add(torch.ones(2)).shape == (2,)
    with pytest.raises(TypeError):
        add(torch.ones(2))


def test_fields_are_checked_when_they_are_set():
    @checked
    @dataclass
    class Both:
        x: Float[Tensor, " dim"]
        y: Float[Tensor, " dim"]

    assert Both(torch.ones(2), torch.ones(2)).x.shape == (2,)
    with pytest.raises(TypeError, match=r"Both\.__init__, y: torch\.float32 \(3,\)"):
        Both(torch.ones(2), torch.ones(3))


def test_vitscope_is_checked():
    with pytest.raises(TypeError, match="compute_hsic, kept: "):
        compute_hsic(None, torch.ones(3))
    fields = PairMoments.__dataclass_fields__
    with pytest.raises(TypeError, match=r"PairMoments\.__init__, cross: "):
        PairMoments(**dict.fromkeys(fields, torch.ones(())))
