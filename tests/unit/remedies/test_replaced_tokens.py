"""Replaced tokens, against loops written from the definitions."""

import statistics
from dataclasses import replace

import pytest
import torch

from edited_vit import draw_pixels, record_streams, wrap_tiny
from plain_vit import PlainViT
from vitscope.maps.token_maps import map_tokens
from vitscope.remedies.editor import Running
from vitscope.remedies.registry import parse_remedy

LAYER, PREFIX, SIDE = 1, 5, 4
REGISTERS = range(1, PREFIX)


@pytest.fixture
def vit():
    return wrap_tiny("timm/dinov2_reg")


def check(remedy, vit, pixels, tokens):
    """The block's input is as expected, and so is what the model makes of it."""
    plain, streams = PlainViT(vit.module), record_streams(vit, pixels)
    expected = [
        plain.run(of_image[0], replaced={LAYER: others}).feature
        for of_image, others in zip(streams, tokens, strict=True)
    ]
    with remedy.applied(vit) as edited:
        found, feature = record_streams(edited, pixels)[:, LAYER], edited.run(pixels)
    torch.testing.assert_close(found, torch.stack(list(tokens)), atol=1e-12, rtol=0)
    torch.testing.assert_close(feature, torch.stack(expected), atol=1e-12, rtol=0)


def find_high(tokens, threshold):
    return [i for i in range(PREFIX, len(tokens)) if tokens[i].norm() >= threshold]


def interpolate(tokens, high):
    repaired, stuck = tokens.clone(), 0
    for place in high:
        row, column = divmod(place - PREFIX, SIDE)
        near = [
            PREFIX + r * SIDE + c
            for r in range(max(row - 1, 0), min(row + 2, SIDE))
            for c in range(max(column - 1, 0), min(column + 2, SIDE))
        ]
        sound = [tokens[i] for i in near if i not in high]
        if sound:
            repaired[place] = sum(sound) / len(sound)
        else:
            stuck += 1
    return repaired, stuck


def test_interpolate(vit):
    pixels = draw_pixels(vit, 4)
    streams = record_streams(vit, pixels)
    threshold = float(streams[:, LAYER, PREFIX:].norm(dim=-1).quantile(0.25))
    repaired, stuck = zip(
        *(interpolate(tokens, find_high(tokens, threshold)) for tokens in streams[:, LAYER]),
        strict=True,
    )
    assert sum(stuck) > 0  # patches all of whose neighbours are high stay as they are
    check(parse_remedy(f"interpolate:threshold={threshold}"), vit, pixels, repaired)


def clip(tokens, high):
    norms = [float(token.norm()) for token in tokens]
    others = [norms[i] for i in range(PREFIX, len(tokens)) if i not in high]
    clipped = tokens.clone()
    for place in high if others else []:
        clipped[place] = tokens[place] * statistics.median(others) / norms[place]
    return clipped


@pytest.mark.parametrize("quantile", [0.6, 0.0])
def test_clip(vit, quantile):
    pixels = draw_pixels(vit, 4)
    streams = record_streams(vit, pixels)
    threshold = float(streams[:, LAYER, PREFIX:].norm(dim=-1).quantile(quantile))
    high = [find_high(tokens, threshold) for tokens in streams[:, LAYER]]
    assert {len(places) % 2 for places in high} == ({0, 1} if quantile else {0})
    clipped = [clip(tokens, of_it) for tokens, of_it in zip(streams[:, LAYER], high, strict=True)]
    check(parse_remedy(f"clip:threshold={threshold}"), vit, pixels, clipped)


def test_zero(vit):
    pixels = draw_pixels(vit, 3)
    streams = record_streams(vit, pixels)
    edited = streams[:, LAYER].clone()
    edited[:, REGISTERS] = 0
    check(parse_remedy("zero"), vit, pixels, edited)


def test_mean_and_noise(vit):
    pixels = draw_pixels(vit, 5)
    streams = record_streams(vit, pixels)
    mean, deviation = streams[0, LAYER].clone(), streams[0, LAYER].clone()
    for place in range(mean.shape[0]):
        for dim in range(mean.shape[1]):
            numbers = streams[:, LAYER, place, dim].tolist()
            mean[place, dim] = statistics.fmean(numbers)
            deviation[place, dim] = statistics.pstdev(numbers)
    edited = streams[:, LAYER].clone()
    edited[:, REGISTERS] = mean[REGISTERS]
    check(parse_remedy("mean").fitted(vit, lambda: pixels.split(2)), vit, pixels, edited)
    noise = parse_remedy("noise").fitted(vit, lambda: pixels.split(2))
    torch.testing.assert_close(noise.statistics.deviation[LAYER], deviation)
    still = replace(noise.statistics, deviation={LAYER: torch.zeros_like(deviation)})
    check(replace(noise, statistics=still), vit, pixels, edited)


def test_noise_has_the_measured_deviation(vit):
    pixels = draw_pixels(vit, 40)
    noise = parse_remedy("noise").fitted(vit, lambda: [pixels])
    with noise.applied(vit) as edited:
        drawn = record_streams(edited, pixels)[:, LAYER, REGISTERS]
    measured = noise.statistics
    unit = (drawn - measured.mean[LAYER][REGISTERS]) / measured.deviation[LAYER][REGISTERS]
    assert unit.mean().abs() < 0.05
    assert (unit.std() - 1).abs() < 0.05
    assert (unit[0] != unit[1]).all()


def test_shuffle_gives_the_tokens_of_one_other_image_at_all_blocks(vit):
    pixels = draw_pixels(vit, 4)
    streams = record_streams(vit, pixels)
    patches = range(PREFIX, streams.shape[2])
    text = "shuffle:tokens=high_norm,threshold=0.001,layers=all"
    remedy = parse_remedy(text).fitted(vit, lambda: pixels.split(3))
    with remedy.applied(vit) as edited:
        lent = record_streams(edited, pixels)
    for image, tokens in enumerate(lent):
        lenders = [
            other
            for other in range(len(pixels))
            if torch.allclose(tokens[:2, patches], streams[other, :2, patches], atol=1e-12)
        ]
        assert len(lenders) == 1
        assert lenders != [image]


@pytest.mark.parametrize("threshold", [15, 1e-3])
@pytest.mark.parametrize("name", ["clip", "interpolate"])
def test_gradients_through_a_repair_are_finite(vit, name, threshold):
    pixels = draw_pixels(vit, 3)
    with parse_remedy(f"{name}:threshold={threshold}").applied(vit) as edited:
        found = map_tokens(edited, pixels[:1], ["gradient_input"], references=pixels)
    assert found.maps["gradient_input"].values.isfinite().all()


def test_autocast_rounds_no_repair(vit):
    pixels = draw_pixels(vit, 2)
    tokens = record_streams(vit, pixels)[:, 1].float()
    running = Running(vit.make_layout(*pixels.shape[-2:]), pixels)
    repair, places = parse_remedy("interpolate"), torch.ones(tokens.shape[:2], dtype=torch.bool)
    places[:, ::2] = False
    plain = repair._make(1, places, tokens, running)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(repair._make(1, places, tokens, running), plain)
