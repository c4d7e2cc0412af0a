"""Which features of an image are kept, the fewest that add up to all, and which are compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from types import MappingProxyType

Pair = tuple[str, str]


@dataclass(frozen=True)
class FeaturePlan:
    """Names of the kept features, of their sums, and of the pairs that are compared."""

    kept: tuple[str, ...]  # names of the features that are stored, such as "term/patches"
    # for each compared feature, the kept features that add up to it
    sums: Mapping[str, tuple[str, ...]]
    # per readout, kept part -> (full feature, restricted feature), for CKA
    comparisons: Mapping[str, Mapping[str, Pair]]
    # per total ("attention", "residual"), term -> (full feature, term), for the variance shares
    shares: Mapping[str, Mapping[str, Pair]]
    # per total, two of its terms -> (full feature, their sum), for the Gram ledger. A term paired
    # with itself is the term, not twice the term
    gram: Mapping[str, Mapping[tuple[str, str], Pair]]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Every pair whose moments are summed, self-pairs included."""
        wanted: dict[Pair, None] = {}
        for parts in self.comparisons.values():
            for full, part in parts.values():
                wanted |= {(full, part): None, (full, full): None, (part, part): None}
        for parts in self.shares.values():
            for full, part in parts.values():
                wanted |= {(full, part): None, (full, full): None}
        for cells in self.gram.values():
            wanted |= dict.fromkeys(cells.values())
        return tuple(wanted)


def make_plan(
    groups: tuple[str, ...], *, has_skip: bool, has_embedding: bool, renormalize: bool
) -> FeaturePlan:
    """Make the plan for a model's groups."""
    terms = {name: f"term/{name}" for name in (*groups, *(["skip"] if has_skip else []))}
    values = {name: f"values/{name}" for name in groups}
    nonlinear = ["block", *(["embedding"] if has_embedding else [])]
    kept = [*values.values(), *terms.values()]
    kept += [f"{readout}/{name}" for readout in nonlinear for name in ("full", *groups)]
    if renormalize:
        kept += ["values/full", *(f"attention/{name}" for name in groups)]

    sums: dict[str, tuple[str, ...]] = {name: (name,) for name in kept}
    if not renormalize:
        sums["values/full"] = tuple(values.values())
    sums["attention/full"] = tuple(terms[name] for name in groups)
    sums["residual/full"] = tuple(terms.values())
    parts = dict(terms)
    if others := tuple(name for key, name in terms.items() if key != "patches"):
        sums["residual/non_patch"] = others
        parts["non_patch"] = "residual/non_patch"

    totals = {"attention": groups, "residual": tuple(terms)}
    gram = {
        total: {
            (a, b): (f"{total}/full", _name_sum(sums, terms[a], terms[b]))
            for a, b in combinations_with_replacement(of_total, 2)
        }
        for total, of_total in totals.items()
    }
    attention = {name: f"attention/{name}" if renormalize else terms[name] for name in groups}
    compared = {"values": values, "attention": attention, "residual": parts}
    compared |= {readout: {name: f"{readout}/{name}" for name in groups} for readout in nonlinear}
    return FeaturePlan(
        kept=tuple(kept),
        sums=MappingProxyType(sums),
        comparisons={
            readout: {name: (f"{readout}/full", feature) for name, feature in part.items()}
            for readout, part in compared.items()
        },
        shares={
            total: {name: (f"{total}/full", terms[name]) for name in of_total}
            for total, of_total in totals.items()
        },
        gram=gram,
    )


def _name_sum(sums: dict[str, tuple[str, ...]], a: str, b: str) -> str:
    # A sum that already has a name, such as a total of two terms, keeps it.
    parts = (a,) if a == b else (a, b)
    there = {of: name for name, of in sums.items()}
    if parts not in there:
        sums[f"sum/{a}+{b}"] = parts
    return there.get(parts, f"sum/{a}+{b}")
