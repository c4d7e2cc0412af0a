"""Every claim of the paper with its criterion (docs/claims.md).

Source: Lappe & Giese (NeurIPS 2025), figures 2 to 9 and section 3.2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitscope.reproduction import quantities
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
    ModelEvidence,
    Quantity,
    measure,
    measure_sizes,
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
_TREND = "with size ({} to {} at least)"
_EARLY = (
    "layer similarity above 0.5 at three quarters of the depth, and no rise of 0.5 or more in one "
    "block"
)


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
        *_OF_REGISTERS,
        *_claim_restriction(readout, "COCO"),
        *_claim_restriction(readout, "ImageNet"),
        Claim(
            "Fig. 3b",
            "with registers, one-shot top-5 on patches alone is poor for large and giant",
            "in L and in g patches alone keep less than half of the full output's top-5 accuracy "
            f"beyond chance ({readout} readout, classifier {classifier})",
            _each("Lg", quantities.one_shot_kept(readout, classifier), below, 0.5),
            "one-shot",
        ),
        *_OF_OTHERS,
    ]


def _claim_restriction(readout: str, data: Data) -> list[Claim]:
    patches, registers = quantities.cka(readout, "patches"), quantities.cka(readout, "registers")
    alike = "" if data == "COCO" else "on ImageNet alike: "
    return [
        Claim(
            "Fig. 3a",
            f"{alike}with registers, patches alone give small's and base's output: CKA close to 1",
            f"unbiased {patches.name} above 0.9 in S and in B",
            _each("SB", patches, above, 0.9),
            data,
        ),
        Claim(
            "Fig. 3a",
            f"{alike}with registers, CKA of patches alone drops for large",
            f"unbiased {patches.name} of L below 0.9 and below that of B, intervals apart",
            _all(_each("L", patches, below, 0.9), _in_order(("L", patches), ("B", patches))),
            data,
        ),
        Claim(
            "Fig. 3a",
            f"{alike}in giant, registers alone are nearer to the full output than patches alone",
            f"unbiased {registers.name} above {patches.name} in g, intervals apart",
            _in_order(("g", patches), ("g", registers)),
            data,
        ),
    ]


def _all(*criteria: Criterion) -> Criterion:
    return lambda models, data: all_of([criterion(models, data) for criterion in criteria])


def _each(
    sizes: str,
    quantity: Quantity,
    test: Callable[..., Check],
    *lines: float,
    recipe: str = REGISTERS,
) -> Criterion:
    # All given sizes must pass.
    return lambda models, data: all_of(
        [test(measure(models, data, recipe, size, quantity), *lines) for size in sizes]
    )


def _each_large(
    recipe: str, quantity: Quantity, test: Callable[..., Check], line: float
) -> Criterion:
    def check(models: Models, data: Data) -> Check:
        sizes = ("L", "H", "g", "bigG")
        found = measure_sizes(models, data, recipe, quantity, needed="L", among=sizes)
        return all_of([test(number, line) for number in found])

    return check


def _in_order(*cells: tuple[str, Quantity]) -> Criterion:
    # The smaller and the larger number, by size, of models with registers.
    return lambda models, data: in_order(
        *(measure(models, data, REGISTERS, *cell) for cell in cells)
    )


def _trend(recipe: str, quantity: Quantity, test: Callable[..., Check]) -> Criterion:
    return lambda models, data: test(
        measure_sizes(models, data, recipe, quantity, needed=_RECIPES[recipe])
    )


def _show_tiny(models: Models, data: Data) -> Check:
    shown = (("DeiT", "Ti"), ("DeiT III", "S"), ("DeiT III", "H"))
    reason = (
        "no DeiT III tiny weights are published: the tiny model here (Ti) is DeiT, another recipe, "
        "shown next to S and H of DeiT III"
    )
    numbers = (measure(models, data, recipe, size, quantities.NORM_RATIO) for recipe, size in shown)
    return Check("cannot tell", (reason,), tuple(numbers))


_OF_REGISTERS = [
    Claim(
        "Fig. 2a",
        "with registers, small and base attend mostly to patches",
        "mean patch share above 0.5 in S and in B",
        _each("SB", quantities.PATCH_SHARE, above, 0.5),
    ),
    Claim(
        "Fig. 2a",
        "with registers, large and giant attend mostly to registers",
        "mean patch share below 0.5 in L and in g",
        _each("Lg", quantities.PATCH_SHARE, below, 0.5),
    ),
    Claim(
        "Fig. 2a",
        "in giant with registers the spread of patch share over images is very large",
        "its 5 % and 95 % quantiles lie more than 0.5 apart",
        _each("g", quantities.PATCH_SHARE_WIDTH, above, 0.5),
    ),
    Claim(
        "Fig. 2a",
        "in giant with registers some images almost ignore patches",
        "5 % quantile of patch share below 0.1",
        _each("g", quantities.LOWEST_PATCH_SHARE, below, 0.1),
    ),
    Claim(
        "Sec. 3.2",
        "in giant the same register has the highest norm for any image",
        "it has in more than 95 % of the images",
        _each("g", quantities.SAME_REGISTER, above, 0.95),
    ),
    Claim(
        "Sec. 3.2",
        "in giant that register's norm is higher by an order of magnitude",
        "mean norm more than 10 times that of the other registers",
        _each("g", quantities.REGISTER_RATIO, above, 10),
    ),
    Claim(
        "Sec. 3.2",
        "in giant that register is the same vector for all images: mean pairwise cosine 0.9989",
        "mean pairwise cosine before the layer norm above 0.99",
        _each("g", quantities.HIDDEN_COSINE, above, 0.99),
    ),
    Claim(
        "Sec. 3.2",
        "in giant the layer norm scales that register's outlier dimensions down",
        "distance of an activation from the median over all dimensions, largest over median of "
        "the 100 strongest dimensions, after the layer norm over before: below 0.5",
        _each("g", quantities.SCALED_DOWN, below, 0.5),
    ),
    Claim(
        "Sec. 3.2",
        "in giant that register depends visibly on the image after the layer norm",
        "pairwise cosine lower and variance share higher after the layer norm than before, "
        "intervals apart",
        _all(
            _in_order(("g", quantities.NORMED_COSINE), ("g", quantities.HIDDEN_COSINE)),
            _in_order(("g", quantities.HIDDEN_VARIANCE), ("g", quantities.NORMED_VARIANCE)),
        ),
    ),
]
_OF_OTHERS = [
    Claim(
        "Fig. 4",
        "giant with registers has a clean attention map (the paper's example image)",
        "less than 5 % of all images have high-norm patch tokens, which such maps show as "
        "artefacts, at the last block's input (if none are found, the most that so few images "
        "may hide)",
        _each("g", quantities.OUTLIER_IMAGES, below, 0.05),
    ),
    Claim(
        "Fig. 4",
        "giant with registers, the paper's example image: cos(c_patches, t) = −0.0092",
        "mean cosine over all images between −0.1 and 0.1",
        _each("g", quantities.PATCH_COSINE, between, -0.1, 0.1),
    ),
    Claim(
        "Fig. 5a",
        "without registers, small, base and large take from patches and skip connection",
        "‖skip‖ / ‖c_patches‖ (of mean norms) between 0.2 and 2 in S, in B and in L",
        _each("SBL", quantities.NORM_RATIO, between, 0.2, 2, recipe=PLAIN),
    ),
    Claim(
        "Fig. 5a",
        "without registers, giant's skip connection dominates",
        "‖skip‖ / ‖c_patches‖ above 2 in g",
        _each("g", quantities.NORM_RATIO, above, 2, recipe=PLAIN),
    ),
    *(
        Claim(
            "Fig. 5a, 7" if recipe == PLAIN else "Fig. 7",
            f"{recipe}: the skip connection's weight against patches grows with size",
            f"‖skip‖ / ‖c_patches‖ rises {_TREND.format(*ends)}",
            _trend(recipe, quantities.NORM_RATIO, rises),
        )
        for recipe, ends in _RECIPES.items()
    ),
    Claim(
        "Fig. 7",
        "DeiT III tiny, trained on less data, behaves like the huge one",
        "none: no DeiT III tiny weights are published",
        _show_tiny,
    ),
    Claim(
        "Fig. 5b",
        "in small, base and large layer similarity jumps at the very last layer",
        "layer similarity before the last block below 0.5 in S, in B and in L",
        _each("SBL", quantities.BEFORE_LAST, below, 0.5, recipe=PLAIN),
    ),
    Claim(
        "Fig. 5b",
        "giant converges smoothly and early",
        f"{_EARLY}, in g",
        _all(
            _each("g", quantities.THREE_QUARTERS, above, 0.5, recipe=PLAIN),
            _each("g", quantities.LARGEST_STEP, below, 0.5, recipe=PLAIN),
        ),
    ),
    *(
        Claim(
            "Fig. 9",
            f"the larger {recipe} models converge smoothly and early",
            f"{_EARLY}, in L and every larger size measured",
            _all(
                _each_large(recipe, quantities.THREE_QUARTERS, above, 0.5),
                _each_large(recipe, quantities.LARGEST_STEP, below, 0.5),
            ),
        )
        for recipe in ("CLIP (OpenAI)", "CLIP (OpenCLIP)", "iBOT")
    ),
    Claim(
        "Fig. 9",
        "DeiT III shows no clear order of sizes",
        "layer similarity at three quarters of the depth rises between one pair of sizes "
        "(S to H) and falls between another, intervals apart",
        _trend("DeiT III", quantities.THREE_QUARTERS, has_no_order),
    ),
    *(
        Claim(
            "Fig. 6" if recipe == PLAIN else "Fig. 8",
            f"{recipe}: CKA(full, {part}) {verb} with size",
            f"unbiased CKA(r, {part}) {verb} {_TREND.format(*ends)}",
            _trend(recipe, quantities.cka("residual", part), test),
        )
        for recipe, ends in _RECIPES.items()
        for part, verb, test in (("patches", "falls", falls), ("skip", "rises", rises))
    ),
]
