"""Every claim of the paper with its criterion (docs/claims.md).

Source: Lappe & Giese (NeurIPS 2025), figures 2 to 9 and section 3.2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from vitscope.reproduction.comparisons import (
    Check,
    above,
    all_of,
    below,
    between,
    falls,
    has_no_order,
    in_order,
    rises,
)
from vitscope.reproduction.evidence import (
    Data,
    Measured,
    ModelEvidence,
    Quantity,
    measure,
    measure_sizes,
)
from vitscope.reproduction.quantities import (
    BEFORE_LAST,
    HIDDEN_COSINE,
    HIDDEN_VARIANCE,
    LARGEST_STEP,
    LOWEST_PATCH_SHARE,
    NORM_RATIO,
    NORMED_COSINE,
    NORMED_VARIANCE,
    OUTLIER_IMAGES,
    PATCH_COSINE,
    PATCH_SHARE,
    PATCH_SHARE_WIDTH,
    REGISTER_RATIO,
    SAME_REGISTER,
    SCALED_DOWN,
    THREE_QUARTERS,
    cka,
    one_shot_kept,
)

Models = Sequence[ModelEvidence]
Criterion = Callable[[Models, Data], Check]

PLAIN, REGISTERS = "DINOv2", "DINOv2 with registers"
_RECIPES = {
    PLAIN: ("S", "g"),
    "CLIP (OpenAI)": ("B", "L"),
    "CLIP (OpenCLIP)": ("B", "H"),
    "iBOT": ("S", "L"),
    "DeiT III": ("S", "H"),
}
"""Recipes of Fig. 5 to 9 with the first and last size of a trend."""
_FROM_LARGE = ("L", "H", "g", "bigG")
_TREND = "with size ({} to {} at least)"
_EARLY = (THREE_QUARTERS, LARGEST_STEP)


@dataclass(frozen=True)
class Claim:
    """A statement of the paper with its criterion."""

    where: str
    statement: str
    criterion: str  # when the measurement agrees
    test: Criterion
    data: Data = "COCO"

    def check(self, models: Models) -> Check:
        """Apply the criterion to all models."""
        return self.test(models, self.data)


def list_claims(readout: str = "attention", classifier: str = "nearest") -> list[Claim]:
    """Every claim of the paper."""
    return [
        *_claim_attention(),
        *_claim_anatomy(),
        *_claim_restriction(readout, "COCO"),
        *_claim_restriction(readout, "ImageNet"),
        _claim_one_shot(readout, classifier),
        *_claim_example(),
        *_claim_norms(),
        *_claim_depth(),
        *_claim_residual(),
    ]


def _claim_attention() -> list[Claim]:
    each = partial(_each, REGISTERS)
    return [
        Claim(
            "Fig. 2a",
            "with registers, small and base attend mostly to patches",
            "mean patch share above 0.5 in S and in B",
            each("SB", PATCH_SHARE, partial(above, line=0.5)),
        ),
        Claim(
            "Fig. 2a",
            "with registers, large and giant attend mostly to registers",
            "mean patch share below 0.5 in L and in g",
            each("Lg", PATCH_SHARE, partial(below, line=0.5)),
        ),
        Claim(
            "Fig. 2a",
            "in giant with registers the spread of patch share over images is very large",
            "its 5 % and 95 % quantiles lie more than 0.5 apart",
            each("g", PATCH_SHARE_WIDTH, partial(above, line=0.5)),
        ),
        Claim(
            "Fig. 2a",
            "in giant with registers some images almost ignore patches",
            "5 % quantile of patch share below 0.1",
            each("g", LOWEST_PATCH_SHARE, partial(below, line=0.1)),
        ),
    ]


def _claim_anatomy() -> list[Claim]:
    each = partial(_each, REGISTERS)
    return [
        Claim(
            "Sec. 3.2",
            "in giant the same register has the highest norm for any image",
            "it has in more than 95 % of the images",
            each("g", SAME_REGISTER, partial(above, line=0.95)),
        ),
        Claim(
            "Sec. 3.2",
            "in giant that register's norm is higher by an order of magnitude",
            "mean norm more than 10 times that of the other registers",
            each("g", REGISTER_RATIO, partial(above, line=10)),
        ),
        Claim(
            "Sec. 3.2",
            "in giant that register is the same vector for all images: mean pairwise cosine 0.9989",
            "mean pairwise cosine before the layer norm above 0.99",
            each("g", HIDDEN_COSINE, partial(above, line=0.99)),
        ),
        Claim(
            "Sec. 3.2",
            "in giant the layer norm scales that register's outlier dimensions down",
            "distance of an activation from the median over all dimensions, largest over median of "
            "the 100 strongest dimensions, after the layer norm over before: below 0.5",
            each("g", SCALED_DOWN, partial(below, line=0.5)),
        ),
        Claim(
            "Sec. 3.2",
            "in giant that register depends visibly on the image after the layer norm",
            "pairwise cosine lower and variance share higher after the layer norm than before, "
            "intervals apart",
            lambda models, data: all_of(
                [
                    _compare_in_giant(NORMED_COSINE, HIDDEN_COSINE)(models, data),
                    _compare_in_giant(HIDDEN_VARIANCE, NORMED_VARIANCE)(models, data),
                ]
            ),
        ),
    ]


def _claim_restriction(readout: str, data: Data) -> list[Claim]:
    patches, registers = cka(readout, "patches"), cka(readout, "registers")
    alike = "" if data == "COCO" else "on ImageNet alike: "

    def drops(models: Models, data: Data) -> Check:
        base, large = (measure(models, data, REGISTERS, size, patches) for size in "BL")
        return all_of([below(large, 0.9), in_order(large, base)])

    return [
        Claim(
            "Fig. 3a",
            f"{alike}with registers, patches alone give small's and base's output: CKA close to 1",
            f"unbiased {patches.name} above 0.9 in S and in B",
            _each(REGISTERS, "SB", patches, partial(above, line=0.9)),
            data,
        ),
        Claim(
            "Fig. 3a",
            f"{alike}with registers, CKA of patches alone drops for large",
            f"unbiased {patches.name} of L below 0.9 and below that of B, intervals apart",
            drops,
            data,
        ),
        Claim(
            "Fig. 3a",
            f"{alike}in giant, registers alone are nearer to the full output than patches alone",
            f"unbiased {registers.name} above {patches.name} in g, intervals apart",
            _compare_in_giant(patches, registers),
            data,
        ),
    ]


def _claim_one_shot(readout: str, classifier: str) -> Claim:
    return Claim(
        "Fig. 3b",
        "with registers, one-shot top-5 on patches alone is poor for large and giant",
        "in L and in g patches alone keep less than half of the full output's top-5 accuracy "
        f"beyond chance ({readout} readout, classifier {classifier})",
        _each(REGISTERS, "Lg", one_shot_kept(readout, classifier), partial(below, line=0.5)),
        "one-shot",
    )


def _claim_example() -> list[Claim]:
    each = partial(_each, REGISTERS)
    return [
        Claim(
            "Fig. 4",
            "giant with registers has a clean attention map (the paper's example image)",
            "less than 5 % of all images have high-norm patch tokens, which such maps show as "
            "artefacts, at the last block's input (if none are found, the most that so few images "
            "may hide)",
            each("g", OUTLIER_IMAGES, partial(below, line=0.05)),
        ),
        Claim(
            "Fig. 4",
            "giant with registers, the paper's example image: cos(c_patches, t) = −0.0092",
            "mean cosine over all images between −0.1 and 0.1",
            each("g", PATCH_COSINE, partial(between, low=-0.1, high=0.1)),
        ),
    ]


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
            _each(PLAIN, "SBL", NORM_RATIO, partial(between, low=0.2, high=2)),
        ),
        Claim(
            "Fig. 5a",
            "without registers, giant's skip connection dominates",
            "‖skip‖ / ‖c_patches‖ above 2 in g",
            _each(PLAIN, "g", NORM_RATIO, partial(above, line=2)),
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
            _each(PLAIN, "SBL", BEFORE_LAST, partial(below, line=0.5)),
        ),
        Claim(
            "Fig. 5b",
            "giant converges smoothly and early",
            f"{early}, in g",
            lambda models, data: _is_early(
                [measure(models, data, PLAIN, "g", quantity) for quantity in _EARLY]
            ),
        ),
        *(
            Claim(
                "Fig. 9",
                f"the larger {recipe} models converge smoothly and early",
                f"{early}, in L and every larger size measured",
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


def _large_are_early(recipe: str, models: Models, data: Data) -> Check:
    measured = (
        measure_sizes(models, data, recipe, quantity, needed="L", among=_FROM_LARGE)
        for quantity in _EARLY
    )
    return _is_early([number for numbers in measured for number in numbers])


def _show_tiny(models: Models, data: Data) -> Check:
    shown = (("DeiT", "Ti"), ("DeiT III", "S"), ("DeiT III", "H"))
    reason = (
        "no DeiT III tiny weights are published: the tiny model here (Ti) is DeiT, another recipe, "
        "shown next to S and H of DeiT III"
    )
    numbers = (measure(models, data, recipe, size, NORM_RATIO) for recipe, size in shown)
    return Check("cannot tell", (reason,), tuple(numbers))


def _trend(
    recipe: str, quantity: Quantity, test: Callable[[Sequence[Measured]], Check]
) -> Criterion:
    return lambda models, data: test(
        measure_sizes(models, data, recipe, quantity, needed=_RECIPES[recipe])
    )


def _each(
    recipe: str, sizes: str, quantity: Quantity, test: Callable[[Measured], Check]
) -> Criterion:
    # All given sizes must pass.
    return lambda models, data: all_of(
        [test(measure(models, data, recipe, size, quantity)) for size in sizes]
    )


def _compare_in_giant(smaller: Quantity, larger: Quantity) -> Criterion:
    return lambda models, data: in_order(
        *(measure(models, data, REGISTERS, "g", quantity) for quantity in (smaller, larger))
    )
