"""The line of each criterion lies where the criterion says it does."""

import pytest

from claims_evidence import cka, estimate, find, make_models, mean, put

AGREES = make_models(True)
PLAIN, REGISTERS = "DINOv2", "DINOv2 with registers"
TOP5 = ("accuracy", "nearest", "attention", "patches", "top5")
SIMILARITY = "layer_similarity"


def exact_mean(value):
    return mean(value, 0.0)


def exact_cka(value):
    return cka(value, 0.0)


def exact(value):
    return estimate(value, 0.0)


def times_30(value):
    # The patches of the made-up models write 30 ± 0.3.
    return mean(30 * value, 0.0)


def times_others(value):
    # The mean norm of the others is 30.
    return mean(30 * value, 0.0)


def kept(value):
    # Of 0.80 with a chance of 0.05.
    return exact(0.05 + 0.75 * value)


def spread(value):
    return mean(0.2, p05=0.02, p95=0.02 + value)


def lowest(value):
    return mean(0.2, p05=value, p95=value + 0.6)


def after(value):
    # Before the layer norm the strongest dimension is 200 times the median.
    return (200 * value, *(1.0 for _ in range(99)))


@pytest.mark.parametrize(
    ("words", "model", "path", "make", "line", "side"),
    [
        ("small and base attend", (REGISTERS, "S"), ("patch_share",), exact_mean, 0.5, 1),
        ("small and base attend", (REGISTERS, "B"), ("patch_share",), exact_mean, 0.5, 1),
        ("large and giant attend", (REGISTERS, "L"), ("patch_share",), exact_mean, 0.5, -1),
        ("large and giant attend", (REGISTERS, "g"), ("patch_share",), exact_mean, 0.5, -1),
        ("spread", (REGISTERS, "g"), ("patch_share",), spread, 0.5, 1),
        ("ignore patches", (REGISTERS, "g"), ("patch_share",), lowest, 0.1, -1),
        (
            "order of magnitude",
            (REGISTERS, "g"),
            ("anatomy", "norms", "register_2"),
            times_others,
            10,
            1,
        ),
        (
            "0.9989",
            (REGISTERS, "g"),
            ("anatomy", "tokens", "register_2", "states", "hidden", "pairwise_cosine"),
            exact,
            0.99,
            1,
        ),
        (
            "scales",
            (REGISTERS, "g"),
            ("anatomy", "tokens", "register_2", "top_dimensions", "after"),
            after,
            0.5,
            -1,
        ),
        ("CKA close to 1", (REGISTERS, "S"), ("cka", "attention", "patches"), exact_cka, 0.9, 1),
        ("CKA close to 1", (REGISTERS, "B"), ("cka", "attention", "patches"), exact_cka, 0.9, 1),
        ("drops for large", (REGISTERS, "L"), ("cka", "attention", "patches"), exact_cka, 0.9, -1),
        ("−0.0092", (REGISTERS, "g"), ("cosine", "attention", "patches"), exact_mean, 0.1, -1),
        ("−0.0092", (REGISTERS, "g"), ("cosine", "attention", "patches"), exact_mean, -0.1, 1),
        ("base and large take", (PLAIN, "S"), ("contribution_norm", "skip"), times_30, 2, -1),
        ("base and large take", (PLAIN, "B"), ("contribution_norm", "skip"), times_30, 0.2, 1),
        ("base and large take", (PLAIN, "L"), ("contribution_norm", "skip"), times_30, 2, -1),
        ("giant's skip", (PLAIN, "g"), ("contribution_norm", "skip"), times_30, 2, 1),
        ("very last layer", (PLAIN, "S"), (SIMILARITY, 11), exact_mean, 0.5, -1),
        ("very last layer", (PLAIN, "L"), (SIMILARITY, 11), exact_mean, 0.5, -1),
        ("giant converges", (PLAIN, "g"), (SIMILARITY, 9), exact_mean, 0.5, 1),
        ("giant converges", (PLAIN, "g"), (SIMILARITY, 11), exact_mean, 0.5, 1),
        ("larger iBOT", ("iBOT", "L"), (SIMILARITY, 9), exact_mean, 0.5, 1),
    ],
)
def test_a_number_beyond_the_line_agrees_and_one_before_it_does_not(
    words, model, path, make, line, side
):
    # Where a denominator has an interval of its own, this far from the line is beyond it.
    step = 0.03 * abs(line)
    answers = {
        way: find(put(AGREES, *model, make(line + way * side * step), *path), words)
        for way in (1, -1)
    }
    assert (answers[1].answer, answers[1].reason) == ("agrees", "")
    assert answers[-1].answer == "disagrees"
    assert f"{abs(line):g}" in answers[1].criterion


@pytest.mark.parametrize("size", ["L", "g"])
def test_patches_that_keep_half_of_top_5_are_the_line(size):
    for share, answer in ((0.46, "agrees"), (0.54, "disagrees"), (0.5, "cannot tell")):
        models = put(AGREES, REGISTERS, size, kept(share), *TOP5, data="one-shot")
        assert find(models, "one-shot", "one-shot").answer == answer


def test_registers_nearer_than_patches_means_intervals_apart():
    for value, answer in ((0.57, "agrees"), (0.59, "cannot tell"), (0.63, "disagrees")):
        models = put(AGREES, REGISTERS, "g", cka(value), "cka", "attention", "patches")
        assert find(models, "in giant, registers alone").answer == answer
