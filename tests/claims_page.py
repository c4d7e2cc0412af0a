"""The table of claims and criteria in docs/claims.md, made from the list of claims.

python tests/claims_page.py    writes the page anew
"""

from pathlib import Path

from vitscope.reproduction.claims import list_claims

PAGE = Path(__file__).parent.parent / "docs" / "claims.md"
HEAD = """# The paper's claims and when a measurement agrees

The last table of `vitscope reproduce` holds each claim of the paper (Lappe & Giese, NeurIPS 2025,
arXiv 2505.05892) against what was measured. This page, made by `python tests/claims_page.py` from
the list of claims, says by which criterion. The paper states most of its claims in words; the
lines drawn here are ours. docs/method.md says what each number is.

## The three answers

A number with a 95 % interval meets a criterion where the whole interval is on the criterion's side
(**agrees**), and does not meet it where the whole interval is on the other side (**disagrees**).
Anything else is **cannot tell**: the interval holds the line, fewer than 100 images, no interval,
an undefined number, or a model that was not measured, which is then named. Several criteria
combine by three-valued logic: one that is not met decides; else one that cannot be told does.

| number | its 95 % interval |
|---|---|
| CKA, pairwise cosine, variance share | jackknife, as in the summary |
| mean over images | mean ± t · std / √(n − 1), with Student's t of n − 1 degrees of freedom |
| ratio of two means | from the lowest to the highest that their intervals allow |
| rise of layer similarity in one block | likewise, of the difference of two means |
| part of the images | Wilson's |
| one-shot accuracy | over draws, as in the summary; the part kept as a ratio of two numbers |
| quantiles, activations | none: the number itself is compared, over at least 100 images |

CKA is the unbiased one; the paper's biased one is shown beside it. The claims keep the
paper's own measure: where it speaks of CKA they look at CKA alone, which cannot see how much a
source writes. The verdict of an audit also looks at the variance share, so a claim may agree
beside a verdict of "broken".

"Intervals apart" compares two numbers of the same images more strictly than need be: intervals
that overlap may belong to numbers that differ, and then the answer is cannot tell.

**Rises with size** means that the interval of the largest size measured lies above that of the
smallest, and that of all pairs of sizes whose intervals do not overlap more rise than fall; falls
is the same the other way round. Sizes are in order of parameters. The two sizes named in a
criterion must be there: without its ends nothing is said of a trend. A size between them that was
not measured is left out; one whose number cannot be told leaves the trend untold.

## What the images are

COCO stands for the main set of images, ImageNet for the second; both are yours to supply, and
where they are other images the table says what holds for those. The paper's Fig. 4 shows one
image; here the mean over all of them stands in its place. Its −0.0092 does not say whether it
is read before or after the output projection: here it is after, with t the whole attention branch,
bias included.

DeiT III tiny cannot be told: no weights of it are published. The tiny model of the catalogue is
DeiT, is left out of the trends of DeiT III, and is shown beside them.

## The claims

L is the number of blocks.
"""
COLUMNS = """
| where | images | the paper says | agrees when | numbers of the summary |
|---|---|---|---|---|
"""


def make_page():
    return HEAD + COLUMNS + "".join(make_row(claim) for claim in list_claims())


def make_row(claim):
    # Without any model a claim still tells what it would have read.
    read = dict.fromkeys(number.quantity.source for number in claim.check([]).numbers)
    sources = ", ".join(f"`{source}`" for source in read)
    cells = (claim.where, claim.data, claim.statement, claim.criterion, sources)
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
