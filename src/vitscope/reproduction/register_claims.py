"""Claims on what [CLS] takes from registers and patches: figures 2 to 4 and section 3.2."""

from functools import partial

from vitscope.reproduction.claim import REGISTERS, Claim, Models, check_each, compare_in_giant
from vitscope.reproduction.comparisons import Check, above, all_of, below, between, in_order
from vitscope.reproduction.evidence import Data, measure
from vitscope.reproduction.quantities import (
    HIDDEN_COSINE,
    HIDDEN_VARIANCE,
    LOWEST_PATCH_SHARE,
    NORMED_COSINE,
    NORMED_VARIANCE,
    OUTLIER_IMAGES,
    PATCH_COSINE,
    PATCH_SHARE,
    PATCH_SHARE_WIDTH,
    REGISTER_RATIO,
    SAME_REGISTER,
    SCALED_DOWN,
    cka,
    one_shot_kept,
)


def list_register_claims(readout: str, classifier: str) -> list[Claim]:
    """Claims of figures 2 to 4."""
    return [
        *_claim_attention(),
        *_claim_anatomy(),
        *_claim_restriction(readout, "COCO"),
        *_claim_restriction(readout, "ImageNet"),
        _claim_one_shot(readout, classifier),
        *_claim_example(),
    ]


def _claim_attention() -> list[Claim]:
    each = partial(check_each, REGISTERS)
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
    each = partial(check_each, REGISTERS)
    return [
        Claim(
            "Sec. 3.2",
            "in giant the same register has the highest norm for any image",
            "it has in more than 95 % of the images (Wilson's interval)",
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
            lambda models: all_of(
                [
                    compare_in_giant(models, NORMED_COSINE, HIDDEN_COSINE),
                    compare_in_giant(models, HIDDEN_VARIANCE, NORMED_VARIANCE),
                ]
            ),
        ),
    ]


def _claim_restriction(readout: str, data: Data) -> list[Claim]:
    patches, registers = cka(readout, "patches"), cka(readout, "registers")
    alike = "" if data == "COCO" else "on ImageNet alike: "

    def drops(models: Models) -> Check:
        base, large = (measure(models, data, REGISTERS, size, patches) for size in "BL")
        return all_of([below(large, 0.9), in_order(large, base)])

    return [
        Claim(
            "Fig. 3a",
            f"{alike}with registers, patches alone give small's and base's output: CKA close to 1",
            f"unbiased {patches.name} above 0.9 in S and in B",
            check_each(REGISTERS, "SB", patches, partial(above, line=0.9), data),
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
            lambda models: compare_in_giant(models, patches, registers, data),
            data,
        ),
    ]


def _claim_one_shot(readout: str, classifier: str) -> Claim:
    return Claim(
        "Fig. 3b",
        "with registers, one-shot top-5 on patches alone is poor for large and giant",
        "in L and in g patches alone keep less than half of the full output's top-5 accuracy "
        f"beyond chance ({readout} readout, classifier {classifier})",
        check_each(
            REGISTERS,
            "Lg",
            one_shot_kept(readout, classifier),
            partial(below, line=0.5),
            "one-shot",
        ),
        "one-shot",
    )


def _claim_example() -> list[Claim]:
    each = partial(check_each, REGISTERS)
    return [
        Claim(
            "Fig. 4",
            "giant with registers has a clean attention map (the paper's example image)",
            "high-norm patch tokens, which such maps show as artefacts, at the last block's input "
            "in less than 5 % of the images (Wilson's interval; where none are found, the most "
            "that so few images may hide); over all images, not the paper's one",
            each("g", OUTLIER_IMAGES, partial(below, line=0.05)),
        ),
        Claim(
            "Fig. 4",
            "giant with registers, the paper's example image: cos(c_patches, t) = −0.0092",
            "mean cosine between −0.1 and 0.1; over all images, not the paper's one",
            each("g", PATCH_COSINE, partial(between, low=-0.1, high=0.1)),
        ),
    ]
