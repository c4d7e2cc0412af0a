"""Judged maps in words: the sentence of the verdict, and the terminal's tables."""

from hashlib import sha256
from io import StringIO
from math import nan
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from made_judgements import TITLES, make_judgement
from vitscope.metrics.jackknife import Estimate
from vitscope.results.judgement_text import list_ignored, tabulate_judgement, tell_failure
from vitscope.results.map_verdict import judge_maps
from vitscope.results.result_html import show_result
from vitscope.terminal import make_report

IDS = [sha256(bytes([number])).hexdigest() for number in range(60)]


def say(num_images=50, removal="shuffle", **means):
    """The verdict on maps of these mean gaps, with a spread of 0.05 over images."""
    noise = np.random.default_rng(0).standard_normal(num_images)
    gaps = {
        name: mean + 0.05 * np.roll(noise, 7 * place)
        for place, (name, mean) in enumerate(means.items())
    }
    skills = {name: Estimate(mean, (mean - 0.1, mean + 0.1)) for name, mean in means.items()}
    return judge_maps(gaps, skills, TITLES, IDS[:num_images], removal)


ENDS = {"oracle": 1.0, "random": 0.0}


def test_the_verdict_names_the_best_map_with_its_skill_and_attention():
    verdict = say(attention=0.24, traced=0.92, centre=-0.1, **ENDS)
    assert verdict.best == "traced"
    assert verdict.text == (
        "publish Traced: skill 0.92 ± 0.10, attention has 0.24 ± 0.10 (50 images, removal shuffle, "
        "of Attention and Traced alone)"
    )
    four = {"attention": 0.6, "legrad": 0.1, "cdam": 0.1, "traced": 0.1}
    assert say(removal="drop", **four, **ENDS).text == (
        "publish Attention: skill 0.60 ± 0.10 (50 images, removal drop)"
    )


def test_maps_that_cannot_be_told_from_the_best_are_named_and_at_most_four():
    close = {"cdam": 0.918, "legrad": 0.919, "traced": 0.92, "attention": 0.2}
    assert say(**close, **ENDS).text.endswith("; cannot be told from LeGrad or CDAM")
    names = ("rollout", "chefer", "legrad", "cdam", "gradcam", "frozen")
    many = {name: 0.919 - 0.0001 * place for place, name in enumerate(names)}
    text = say(**many, traced=0.92, **ENDS).text
    assert text.endswith(
        "; cannot be told from Attention rollout, Gradient-weighted rollout (Chefer), LeGrad, CDAM "
        "and 2 more"
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"num_images": 12, "traced": 0.9, "random": 0.0},
            "cannot tell which map to publish from 12 images, at least 20 are needed; Traced comes "
            "first",
        ),
        (
            {"traced": 0.9, "centre": 0.9, "random": 0.0},
            "cannot tell which map to publish: Traced comes first, but cannot be told from the "
            "distance from the centre (50 images, removal shuffle, of Traced alone)",
        ),
        (
            {"traced": 0.001, "random": 0.0},
            "cannot tell which map to publish: Traced comes first, but cannot be told from random "
            "orders (50 images, removal shuffle, of Traced alone)",
        ),
        ({"centre": 0.2, "random": 0.0}, "cannot tell: no map of the model was judged"),
    ],
)
def test_without_enough_evidence_no_map_is_named(settings, text):
    verdict = say(**settings)
    assert (verdict.best, verdict.text) == (None, text)


def print_report(summary, width=80):
    out = StringIO()
    Console(width=width, file=out).print(make_report(summary))
    return out.getvalue()


def test_the_tables_fit_80_columns():
    text = print_report(make_judgement(masks=True, sanity=True))
    assert "…" not in text
    rows = text.splitlines()
    assert max(map(len, rows)) <= 80
    for removal in ("shuffle", "drop"):
        assert f"Maps judged by removal '{removal}'" in text
    (of_traced, *_) = [row.split() for row in rows if row.strip().startswith("Traced ")]
    assert of_traced == ["Traced", "0.92", "±", "0.13", "0.83", "0.40", "better"]
    # All but the two longest titles are on one line in each of the four tables.
    for title in TITLES.values():
        assert sum(row.startswith(f" {title}  ") for row in rows) == 4 * (len(title) < 30), title


def test_what_is_common_to_all_tables_is_said_once():
    summary = make_judgement(masks=True, sanity=True)
    for text in (print_report(summary, 400), show_result(summary)):
        for words in ("random orders (0)", "rank of 0.45 (shuffle), 0.45 (drop)", "50 images, "):
            assert text.count(words) == 1
        assert text.count("This does not speak of the model") == 1
    alone = print_report(make_judgement(removals=("drop",)), 400)
    assert "among themselves" not in alone
    assert "masks" not in alone
    assert "noise" not in alone


def test_the_most_faithful_map_comes_first_with_each_removal():
    (shuffle, *_) = tabulate_judgement(make_judgement())
    gaps = [float(row[2].replace("−", "-")) for row in shuffle.sections[0]]
    assert gaps == sorted(gaps, reverse=True)
    assert [row[0] for row in shuffle.sections[0]][:2] == ["Oracle", "Traced"]


def test_what_a_map_ignores_is_told_and_baselines_may_ignore_it():
    summary = make_judgement(sanity=True)
    assert list_ignored(summary, "traced") == []
    assert list_ignored(summary, "attention") == ["target"]
    assert list_ignored(summary, "rollout") == ["weights", "target"]
    assert list_ignored(summary, "centre") == []
    table = tabulate_judgement(summary)[-1]
    told = {row[0]: row[-1] for row in table.sections[0]}
    assert told["Attention rollout"] == "weights and target"
    assert told["Traced"] == told["Edges in the image"] == "–"


@pytest.mark.parametrize(
    ("skill", "told"),
    [
        (
            {"attention": 0.1, "traced": -0.52},
            "random orders and attention (skill −0.52, attention has 0.10)",
        ),
        ({"attention": 0.4, "traced": 0.3}, "attention (skill 0.30, attention has 0.40)"),
        ({"attention": -0.4, "traced": -0.3}, "random orders (skill −0.30, attention has −0.40)"),
        ({"traced": -0.3}, "random orders (skill −0.30)"),
        ({"attention": 0.3, "traced": 0.4}, None),
        ({"attention": nan, "traced": nan}, None),
        ({"attention": 0.3}, None),
    ],
)
def test_an_image_on_which_the_map_to_publish_fails_is_told(skill, told):
    verdict = make_judgement().verdict
    image = SimpleNamespace(skill=skill, maps={"traced": SimpleNamespace(title="Traced")})
    summary = SimpleNamespace(judgement=SimpleNamespace(verdict=verdict))
    text = f"on this image Traced is worse than {told}: do not publish it of this image"
    assert tell_failure(summary, image) == ("" if told is None else text)
    assert not tell_failure(SimpleNamespace(judgement=None), image)
