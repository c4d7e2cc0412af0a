"""Generates the table of claims and criteria in docs/claims.md from the list of claims.

python tests/claims_page.py    rewrites the page
"""

import re
from pathlib import Path

from vitscope.reproduction.paper_claims import list_claims

PAGE = Path(__file__).parent.parent / "docs" / "claims.md"
HEAD = """# The paper's claims and when a measurement agrees

Made by `python tests/claims_page.py`. `vitscope reproduce` compares each claim of the paper
(Lappe & Giese, NeurIPS 2025, arXiv 2505.05892) with what was measured, by these criteria. The paper
states most claims in words; the thresholds are ours. [The method](method.md) defines each number.

## The three answers

A claim **agrees** if the whole 95 % interval of its number is on the criterion's side, and
**disagrees** if the whole interval is on the other side. Otherwise, with fewer than 100 images, or
without a number or interval, the answer is **cannot tell**. A claim with several criteria agrees if
all are met, and disagrees if one fails.

| number | its 95 % interval |
|---|---|
| CKA, pairwise cosine, variance share | jackknife, as in the summary |
| mean over images | mean ± t · std / √(n − 1), Student's t with n − 1 degrees of freedom |
| ratio or difference of two means | from the lowest to the highest that their intervals allow |
| fraction of images | Wilson's |
| one-shot accuracy | over draws, as in the summary; the part kept as a ratio of two means |
| quantiles, activations | none: the number itself is compared |

CKA is the unbiased estimate, which ignores how much a source contributes: a claim about it may
agree although the [verdict](method.md#the-verdict) is "broken". *Intervals apart* means that they
do not overlap.

**Rises with size**: the interval of the largest size lies above that of the smallest, and of all
pairs of sizes whose intervals are apart more rise than fall; *falls* is the reverse. In brackets
are the recipes judged, with the sizes that must have been measured. Others may be missing, but one
whose number cannot be judged leaves the trend open.

You supply the images; the table calls the main set COCO. The claims of Fig. 3a are judged a second
time on ImageNet, that of Fig. 3b on one-shot draws.

## The claims

L is the number of blocks.
"""
COLUMNS = """
| where | the paper says | agrees when | numbers of the summary |
|---|---|---|---|
"""


def make_page():
    rows = {}
    for claim in list_claims():
        if claim.data != "ImageNet":
            kept, recipe = split_recipe(claim)
            rows.setdefault(kept, []).append((claim.where, recipe))
    return HEAD + COLUMNS + "".join(make_row(*row) for row in rows.items())


def split_recipe(claim):
    """What is the same for all recipes of which it is claimed, and the recipe with its sizes."""
    # Even without models a claim lists the numbers it would read.
    read = dict.fromkeys(number.quantity.source for number in claim.check([]).numbers)
    sources = ", ".join(f"`{source}`" for source in read)
    if trend := re.fullmatch(r"(.* with size) \((.*) at least\)", claim.criterion):
        criterion, sizes = trend.groups()
        recipe, statement = claim.statement.split(": ")
        return (statement, criterion, sources), f"{recipe} {sizes}"
    if larger := re.fullmatch(r"(the larger) (.*) (models .*)", claim.statement):
        who, recipe, does = larger.groups()
        return (f"{who} {does}", claim.criterion, sources), recipe
    return (claim.statement, claim.criterion, sources), None


def make_row(kept, claims):
    statement, criterion, sources = kept
    kinds, numbers = zip(*(where.split(" ", 1) for where, _ in claims), strict=True)
    where = f"{kinds[0]} {', '.join(dict.fromkeys(', '.join(numbers).split(', ')))}"
    if recipes := [recipe for _, recipe in claims if recipe]:
        criterion += f" ({', '.join(recipes)})"
    return f"| {' | '.join((where, statement, criterion, sources))} |\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
