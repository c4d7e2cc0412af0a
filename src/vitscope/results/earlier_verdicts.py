"""Summaries of audits that were saved under an earlier rule for the verdict: judged anew."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitscope.errors import ResultError
from vitscope.metrics.jackknife import Estimate
from vitscope.metrics.pair_estimates import CkaEstimate
from vitscope.results.verdict import Constant, describe, judge


def judge_anew(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary of an audit, judged by the rule above if it was saved under an earlier one.

    Before, the verdict looked at CKA alone. Both readings can be had from what was saved.

    Args:
        summary: Content of `summary.json` of an audit.

    Returns:
        The summary, with the verdict of each layer that is listed.

    Raises:
        ResultError: If what the verdict is read off is missing.
    """
    if "verdict" not in summary or "decided_by" in summary:
        return summary
    try:
        num_images = summary["data"]["num_images"]
        judged = summary | _judge_saved(summary, num_images)
        if "layers" in summary:
            judged["layers"] = {
                layer: content | _judge_saved(content, num_images)
                for layer, content in summary["layers"].items()
            }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ResultError(
            "the result was judged by CKA alone, by an earlier version, and its numbers cannot be "
            f"read for a new verdict ({type(error).__name__}): audit again"
        ) from None
    return judged


def _judge_saved(content: Mapping[str, Any], num_images: int) -> dict[str, Any]:
    shares = {
        term: Estimate(_or_nan(share["value"]), _as_ends(share["ci95"]))
        for term, share in content["variance_share"]["residual"].items()
    }
    cka = {
        term: CkaEstimate(
            biased=_or_nan(found["biased"]),
            unbiased=_or_nan(found["unbiased"]),
            ci95=_as_ends(found["ci95"]),
            biased_if_unrelated=_or_nan(found["biased_if_unrelated"]),
        )
        for term, found in content["cka"]["residual"].items()
    }
    constant: Constant | None = None
    if math.isnan(shares["patches"].value):
        constant = "output"
    elif math.isnan(cka["patches"].biased):
        constant = "patches"
    return describe(judge(cka, shares, num_images, constant))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _as_ends(ends: Sequence[float] | None) -> tuple[float, float] | None:
    if ends is None:
        return None
    low, high = map(float, ends)
    return low, high
