"""Claims on the skip connection and on depth, without registers: figures 5 to 9."""

from collections.abc import Callable, Sequence
from functools import partial

from vitscope.reproduction.claim import PLAIN, Claim, Models, check_each
from vitscope.reproduction.comparisons import (
    Check,
    above,
    all_of,
    below,
    between,
    falls,
    has_no_order,
    rises,
    untellable,
)
from vitscope.reproduction.evidence import Measured, Quantity, measure, measure_sizes
from vitscope.reproduction.quantities import (
    BEFORE_LAST,
    LARGEST_STEP,
    NORM_RATIO,
    THREE_QUARTERS,
    cka,
)

_RECIPES = {
    PLAIN: ("S", "g"),
    "CLIP (OpenAI)": ("B", "L"),
    "CLIP (OpenCLIP)": ("B", "H"),
    "iBOT": ("S", "L"),
    "DeiT III": ("S", "H"),
}
"""Recipes of Fig. 5 to 9 with the sizes that a trend must reach from and to."""
_FROM_LARGE = ("L", "H", "g", "bigG")
_TREND = (
    "with size, over {} to {} at least: intervals of the smallest and the largest apart, and most "
    "pairs of sizes in that order"
)
_EARLY = (THREE_QUARTERS, LARGEST_STEP)


def list_skip_claims() -> list[Claim]:
    """Claims of figures 5 to 9."""
    return [*_claim_norms(), *_claim_depth(), *_claim_residual()]


def _claim_norms() -> list[Claim]:
    trends = [
        Claim(
            "Fig. 5a, 7" if recipe == PLAIN else "Fig. 7",
            f"{recipe}: the skip connection's weight against patches grows with size",
            f"‖skip‖ / ‖c_patches‖ rises {_TREND.format(*ends)}",
            _trend(recipe, NORM_RATIO, rises),
        )
        for recipe, ends in _RECIPES.items()
    ]
    return [
        Claim(
            "Fig. 5a",
            "without registers, small, base and large take from patches and skip connection",
            "‖skip‖ / ‖c_patches‖ (of mean norms) between 0.2 and 2 in S, in B and in L",
            check_each(PLAIN, "SBL", NORM_RATIO, partial(between, low=0.2, high=2)),
        ),
        Claim(
            "Fig. 5a",
            "without registers, giant's skip connection dominates",
            "‖skip‖ / ‖c_patches‖ above 2 in g",
            check_each(PLAIN, "g", NORM_RATIO, partial(above, line=2)),
        ),
        *trends,
        Claim(
            "Fig. 7",
            "DeiT III tiny, trained on less data, behaves like the huge one",
            "none: no DeiT III tiny weights are published",
            _show_tiny,
        ),
    ]


def _claim_depth() -> list[Claim]:
    larger = ("CLIP (OpenAI)", "CLIP (OpenCLIP)", "iBOT")
    early = (
        "layer similarity above 0.5 at three quarters of the depth, and no rise of 0.5 or more in "
        "one block"
    )
    return [
        Claim(
            "Fig. 5b",
            "in small, base and large layer similarity jumps at the very last layer",
            "layer similarity before the last block below 0.5 in S, in B and in L",
            check_each(PLAIN, "SBL", BEFORE_LAST, partial(below, line=0.5)),
        ),
        Claim(
            "Fig. 5b",
            "giant converges smoothly and early",
            f"{early}, in g",
            lambda models: _is_early([measure(models, "COCO", PLAIN, "g", q) for q in _EARLY]),
        ),
        *(
            Claim(
                "Fig. 9",
                f"the larger {recipe} models converge smoothly and early",
                f"{early}, in L and every larger size that was measured",
                partial(_large_are_early, recipe),
            )
            for recipe in larger
        ),
        Claim(
            "Fig. 9",
            "DeiT III shows no clear order of sizes",
            "layer similarity at three quarters of the depth rises between one pair of sizes "
            "(S to H) and falls between another, intervals apart",
            _trend("DeiT III", THREE_QUARTERS, has_no_order),
        ),
    ]


def _claim_residual() -> list[Claim]:
    directions: tuple[tuple[str, str, Callable[[Sequence[Measured]], Check]], ...] = (
        ("patches", "falls", falls),
        ("skip", "rises", rises),
    )
    return [
        Claim(
            "Fig. 6" if recipe == PLAIN else "Fig. 8",
            f"{recipe}: CKA(full, {part}) {verb} with size",
            f"unbiased CKA(r, {part}) {verb} {_TREND.format(*ends)}",
            _trend(recipe, cka("residual", part), test),
        )
        for recipe, ends in _RECIPES.items()
        for part, verb, test in directions
    ]


def _is_early(numbers: Sequence[Measured]) -> Check:
    tests = {THREE_QUARTERS: partial(above, line=0.5), LARGEST_STEP: partial(below, line=0.5)}
    return all_of([tests[number.quantity](number) for number in numbers])


def _large_are_early(recipe: str, models: Models) -> Check:
    measured = (
        measure_sizes(models, "COCO", recipe, quantity, needed="L", among=_FROM_LARGE)
        for quantity in _EARLY
    )
    return _is_early([number for numbers in measured for number in numbers])


def _show_tiny(models: Models) -> Check:
    shown = (("DeiT", "Ti"), ("DeiT III", "S"), ("DeiT III", "H"))
    return untellable(
        [measure(models, "COCO", recipe, size, NORM_RATIO) for recipe, size in shown],
        "no DeiT III tiny weights are published: the tiny model here (Ti) is DeiT, another recipe, "
        "shown beside S and H of DeiT III",
    )


def _trend(
    recipe: str, quantity: Quantity, test: Callable[[Sequence[Measured]], Check]
) -> Callable[[Models], Check]:
    return lambda models: test(
        measure_sizes(models, "COCO", recipe, quantity, needed=_RECIPES[recipe])
    )
