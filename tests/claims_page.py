"""Generates the table of claims and criteria in docs/claims.md from the list of claims.

python tests/claims_page.py    rewrites the page
"""

from pathlib import Path

from vitscope.reproduction.paper_claims import list_claims

PAGE = Path(__file__).parent.parent / "docs" / "claims.md"
HEAD = """# The paper's claims and when a measurement agrees

Made by `python tests/claims_page.py` from the list of claims. The last table of `vitscope
reproduce` compares each claim of the paper (Lappe & Giese, NeurIPS 2025, arXiv 2505.05892) with
what was measured; this page gives the criteria. The paper states most claims in words; the
thresholds are ours. [The method](method.md) defines each number.

## The three answers

A number meets a criterion if its whole 95 % interval is on the criterion's side (**agrees**), and
fails it if the whole interval is on the other side (**disagrees**). Everything else is **cannot
tell**: the interval contains the threshold, fewer than 100 images, no interval, an undefined
number, or a model that was not measured, which is named. Several criteria are combined by
three-valued logic: one that fails decides; otherwise one that cannot be judged does.

| number | its 95 % interval |
|---|---|
| CKA, pairwise cosine, variance share | jackknife, as in the summary |
| mean over images | mean ± t · std / √(n − 1), with Student's t of n − 1 degrees of freedom |
| ratio of two means | from the lowest to the highest that their intervals allow |
| rise of layer similarity in one block | likewise, of the difference of two means |
| part of the images | Wilson's |
| one-shot accuracy | over draws, as in the summary; the part kept as a ratio of two numbers |
| quantiles, activations | none: the number itself is compared, over at least 100 images |

CKA is the unbiased estimate, with the paper's biased one beside it. Claims keep the paper's own
measure: if it speaks of CKA, they use CKA only, which ignores how much a source writes. The
verdict of an audit also uses the variance share, so a claim may agree beside a verdict of
"broken".

"Intervals apart" is stricter than necessary for two numbers of the same images: overlapping
intervals may belong to numbers that differ, and the answer is then cannot tell.

**Rises with size** means that the interval of the largest size lies above that of the smallest,
and that among all pairs of sizes whose intervals do not overlap more rise than fall; *falls* is
the reverse. Sizes are ordered by parameters. Both sizes named in a criterion must have been
measured. A size between them that was not measured is left out; one whose number cannot be judged
leaves the trend open.

## The images

COCO stands for the main set of images, ImageNet for the second. You supply both; with other images
the table says what holds for those. The paper's Fig. 4 shows one image, replaced here by the mean
over all of them. The paper does not say whether its −0.0092 is taken before or after the output
projection: here it is after, with t the whole attention branch, bias included.

No weights of DeiT III tiny are published, so it cannot be judged. The catalogue's tiny model is
DeiT, which is left out of the trends of DeiT III and shown next to them.

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
    # Even without models a claim lists the numbers it would read.
    read = dict.fromkeys(number.quantity.source for number in claim.check([]).numbers)
    sources = ", ".join(f"`{source}`" for source in read)
    cells = (claim.where, claim.data, claim.statement, claim.criterion, sources)
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
