"""What the study found: one row for each trained model, and a verdict on each hypothesis.

Everything is read from the study's folder.
"""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

import numpy as np
from plan import Cell
from scipy.stats import spearmanr, t

from vitscope import AuditResult, JudgeResult, OneShotResult
from vitscope.images.scenes import NUM_GLYPHS, NUM_UNSEEN_GLYPHS

FREE = ("V0", "V0+2", "V1", "V6")
"""Variants whose output may come from elsewhere than their patches."""

MATCHED = (("V2", "V0"), ("V4", "V1"), ("V5", "V0"))
"""Variants that must use their patches, each with the free one that it is made from."""

MEMORISED = 0.95
"""Least accuracy on its own training images: below it a model has not learned them."""

CHANGE = 0.10
"""Least change of a share, or of CKA, that counts."""

MARGIN = 0.01
"""Accuracies that differ by less are equivalent: one point."""

RELATED = 0.5
"""Rank correlation from which a clean map would say something of a true one."""

_NUM_PERMUTATIONS = 10_000

PATCHES = "vitscope/variance_share_residual_patches"
"""Name of the patches' share in the audits during training."""


@dataclass(frozen=True)
class Row:
    """A trained model. Numbers are of its last layer and its test scenes."""

    cell: Cell
    parameters: int
    flops: int
    train_accuracy: float
    accuracy: float
    needle_accuracy: float  # on backgrounds that give nothing away
    transfer: float  # one-shot top-1 accuracy on unseen classes
    patches: float  # variance share of r, as those of registers, [CLS] and skip
    registers: float
    cls: float
    skip: float
    cka: float  # unbiased CKA of r with the patches' contribution
    untrained: float  # the patches' share before the first step
    half_depth: float  # over the number of blocks
    entropy: float  # of attention over patches
    high_norm: float  # fraction of high-norm patches, the highest of all depths
    verdict: str

    @property
    def half_block(self) -> int:
        """Half depth, in blocks; 1 at least."""
        return round(self.half_depth * self.cell.depth)

    @property
    def memorised(self) -> bool:
        """Whether it learned its training set."""
        return self.train_accuracy >= MEMORISED


def read_rows(out: Path) -> list[Row]:
    """Read all finished cells."""
    return [_read_row(file.parent) for file in sorted(out.glob("cells/*/cell.json"))]


def _read_row(folder: Path) -> Row:
    record = json.loads((folder / "cell.json").read_text())
    cell = Cell(**record.pop("cell"))
    summary = AuditResult.load(folder / "audit").summary
    last = summary.last
    shares = {name: share.value for name, share in last.variance_share["residual"].items()}
    high_norm = [
        depth.fraction if depth.fraction is not None else 0.0 for depth in summary.high_norm_tokens
    ]
    trace, entropy = summary.trace, last.attention_entropy
    reached = None if trace is None else trace.half_depth
    return Row(
        cell=cell,
        **{field.name: record[field.name] for field in fields(Row) if field.name in record},
        transfer=_read_transfer(folder / "one-shot"),
        patches=shares["patches"],
        registers=shares.get("registers", 0.0),
        cls=shares.get("cls", 0.0),
        skip=shares.get("skip", 0.0),
        cka=last.cka["residual"]["patches"].unbiased,
        untrained=read_history(folder, PATCHES)[0][1],
        half_depth=float("nan")
        if trace is None
        else (cell.depth if reached is None else reached) / cell.depth,
        entropy=float("nan") if entropy is None else entropy.mean,
        high_norm=max(high_norm, default=0.0),
        verdict=last.verdict.status,
    )


def _read_transfer(folder: Path) -> float:
    accuracy = OneShotResult.load(folder).summary.accuracy
    return accuracy["nearest"]["embedding"]["full"].top1.value


def read_history(folder: Path, number: str) -> list[tuple[int, float]]:
    """A number of the audits during a cell's training, by optimizer step."""
    with (folder / "history" / "metrics.csv").open(newline="") as file:
        return [
            (int(line["step"]), float(line[number]))
            for line in csv.DictReader(file)
            if line.get(number)
        ]


def read_judged(out: Path) -> dict[str, JudgeResult]:
    """The judgements of maps, by cell."""
    folders = [file.parent for file in sorted(out.glob("cells/*/cell.json"))]
    return {
        folder.name: JudgeResult.load(folder / "judged")
        for folder in folders
        if (folder / "judged").exists()
    }


@dataclass(frozen=True)
class Finding:
    """The verdict on a hypothesis: yes, no, or cannot tell, and the numbers that decide it."""

    hypothesis: str
    verdict: str
    reason: str


def judge_hypotheses(rows: Sequence[Row], out: Path) -> list[Finding]:
    """Judge H1 to H5 by their thresholds."""
    learned = [row for row in rows if row.memorised]
    free = [row for row in learned if row.cell.variant in {"V0", "V1"}]
    v1 = [row for row in learned if row.cell.variant == "V1"]
    return [
        *_judge_capacity(free),
        _judge_trend(
            "H2: the registers' share rises with depth", v1, lambda row: row.registers, "depth", +1
        ),
        *_judge_costs(rows),
        _judge_time(free, out),
        *_judge_clean([row for row in rows if row.cell.variant in FREE]),
    ]


def _judge_capacity(rows: Sequence[Row]) -> list[Finding]:
    findings = []
    for moves, axis, sign in (
        ("falls with depth", "depth", -1),
        ("rises with the number of training images", "num_images", +1),
    ):
        findings.append(
            _judge_trend(
                f"H1: CKA of output and patches {moves}", rows, lambda row: row.cka, axis, sign
            )
        )
        hypothesis = f"H1: half depth over depth {moves}"
        levels = {getattr(row.cell, axis) for row in rows}
        if any(
            all(row.half_block == 1 for row in rows if getattr(row.cell, axis) == level)
            for level in levels
        ):
            # Then the ratio is one over the depth, whatever was learned.
            reason = "at one block, the least there is, in all models of one kind"
            findings.append(Finding(hypothesis, "cannot tell", reason))
        else:
            findings.append(_judge_trend(hypothesis, rows, lambda row: row.half_depth, axis, sign))
    return findings


def _judge_trend(
    hypothesis: str, rows: Sequence[Row], measure: Callable[[Row], float], axis: str, sign: int
) -> Finding:
    """Yes if the change from the least to the largest value of an axis is large and not by chance.

    All else is held fixed: changes are taken within groups that differ in the axis alone, and
    averaged. The permutation test shuffles the axis within groups that differ in it and in seed.
    """
    known = [row for row in rows if not np.isnan(measure(row))]
    changes = [_find_change(group, measure, axis) for group in _group(known, axis)]
    if len(changes) < 2:
        reason = f"pairs of models that differ in {axis} alone: {len(changes)}, where 2 are needed"
        return Finding(hypothesis, "cannot tell", reason)
    change = fmean(changes)
    chance, opposite = (_permute(known, measure, axis, way) for way in (sign, -sign))
    reason = (
        f"change {change:+.2f} ({min(changes):+.2f} to {max(changes):+.2f} in {len(changes)} "
        f"pairs), one-sided permutation p = {chance:.3f}; counts from {CHANGE:.2f}"
    )
    if chance < 0.05 and change * sign >= CHANGE:
        return Finding(hypothesis, "yes", reason)
    small = max(map(abs, changes)) < CHANGE
    reversed_ = opposite < 0.05 and change * sign <= -CHANGE
    return Finding(hypothesis, "no" if small or reversed_ else "cannot tell", reason)


def _group(rows: Iterable[Row], axis: str, *, pool: Sequence[str] = ()) -> list[list[Row]]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    names = [field.name for field in fields(Cell) if field.name not in {axis, *pool}]
    for row in rows:
        groups.setdefault(tuple(getattr(row.cell, name) for name in names), []).append(row)
    return [
        group for group in groups.values() if len({getattr(row.cell, axis) for row in group}) > 1
    ]


def _find_change(group: Sequence[Row], measure: Callable[[Row], float], axis: str) -> float:
    ordered = sorted(group, key=lambda row: getattr(row.cell, axis))
    return measure(ordered[-1]) - measure(ordered[0])


def _permute(rows: Sequence[Row], measure: Callable[[Row], float], axis: str, sign: int) -> float:
    """One-sided p value of the slope on the logarithm of the axis, within groups."""
    groups = _group(rows, axis, pool=("seed",))
    x = [np.log([getattr(row.cell, axis) for row in group]) for group in groups]
    y = [np.array([measure(row) for row in group]) for group in groups]
    x = [one - one.mean() for one in x]
    generator = np.random.default_rng(0)
    found = sign * sum(float(a @ b) for a, b in zip(x, y, strict=True))
    shuffled = sum(
        generator.permuted(np.tile(a, (_NUM_PERMUTATIONS, 1)), axis=1) @ b
        for a, b in zip(x, y, strict=True)
    )
    as_large = int(np.count_nonzero(sign * shuffled >= found - 1e-9 * abs(found)))
    return (1 + as_large) / (1 + _NUM_PERMUTATIONS)


def _judge_costs(rows: Sequence[Row]) -> list[Finding]:
    # On all rows: what a model fails to learn is part of what its design costs.
    accuracies = {
        "is as accurate as": (lambda row: row.accuracy, 1 / NUM_GLYPHS),
        "transfers as well as": (lambda row: row.transfer, 1 / NUM_UNSEEN_GLYPHS),
    }
    return [
        _judge_cost(f"H3: {forced} {words} {free}", rows, (forced, free), measure, chance)
        for words, (measure, chance) in accuracies.items()
        for forced, free in MATCHED
    ]


def _judge_cost(
    hypothesis: str,
    rows: Sequence[Row],
    variants: tuple[str, str],
    measure: Callable[[Row], float],
    chance: float,
) -> Finding:
    """Two one-sided tests: yes if the 90 % interval of paired differences is within the margin."""
    pairs = []
    for group in _group(rows, "variant"):
        by_variant = {row.cell.variant: measure(row) for row in group}
        if by_variant.keys() >= set(variants):
            pairs.append(tuple(by_variant[variant] for variant in variants))
    if len(pairs) < 2:
        return Finding(
            hypothesis, "cannot tell", f"pairs of models: {len(pairs)}, where 2 are needed"
        )
    best = max(fmean(one) for one in zip(*pairs, strict=True))
    if best < chance + CHANGE:  # what neither can do, both do equally well
        reason = f"{100 * best:.1f} % in the better one, where guessing gives {100 * chance:.1f} %"
        return Finding(hypothesis, "cannot tell", reason)
    differences = [forced - free for forced, free in pairs]
    mean, half = _find_interval(differences, 0.90)
    low, high = mean - half, mean + half
    reason = (
        f"difference {100 * mean:+.1f} points (90 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}, {len(pairs)} pairs); equivalent within {100 * MARGIN:.0f}"
    )
    if low > -MARGIN and high < MARGIN:
        return Finding(hypothesis, "yes", reason)
    if low > MARGIN:
        return Finding(hypothesis, "no, better", reason)
    return Finding(hypothesis, "no, worse" if high < -MARGIN else "cannot tell", reason)


def _find_interval(numbers: Sequence[float], level: float) -> tuple[float, float]:
    """Mean, and half the width of Student's interval."""
    error = float(np.std(numbers, ddof=1)) / len(numbers) ** 0.5
    return fmean(numbers), float(t.ppf((1 + level) / 2, len(numbers) - 1)) * error


def _judge_time(rows: Sequence[Row], out: Path) -> Finding:
    hypothesis = "H4: the patches' share falls during training"
    histories = [read_history(out / "cells" / row.cell.name, PATCHES) for row in rows]
    # The untrained model is no part of it: its output hardly depends on the image.
    trained = [history[1:] for history in histories if len(history) > 2]
    if len(trained) < 2:
        return Finding(hypothesis, "cannot tell", f"histories: {len(trained)}, where 2 are needed")
    first = fmean(history[0][1] for history in trained)
    if first < CHANGE:
        reason = f"{first:.2f} at the first audit after the start, which leaves no room to fall"
        return Finding(hypothesis, "cannot tell", reason)
    change, half = _find_interval([history[-1][1] - history[0][1] for history in trained], 0.95)
    reason = (
        f"from the first to the last audit after the start {change:+.2f} (95 % interval "
        f"{change - half:+.2f} to {change + half:+.2f}, {len(trained)} models); counts from "
        f"{CHANGE:.2f}"
    )
    if change + half <= -CHANGE:
        return Finding(hypothesis, "yes", reason)
    return Finding(hypothesis, "no" if change - half > -CHANGE else "cannot tell", reason)


def _judge_clean(rows: Sequence[Row]) -> list[Finding]:
    measures: dict[str, Callable[[Row], float]] = {
        "attention's entropy": lambda row: row.entropy,
        "the fraction of high-norm patches": lambda row: row.high_norm,
    }
    # Among models that may choose: the share of the others is 1 by design.
    return [
        _judge_relation(f"H5: {name} says nothing of the patches' share", rows, measure)
        for name, measure in measures.items()
    ]


def _judge_relation(
    hypothesis: str, rows: Sequence[Row], measure: Callable[[Row], float]
) -> Finding:
    numbers = [measure(row) for row in rows]
    if len(numbers) < 8:
        return Finding(hypothesis, "cannot tell", f"models: {len(numbers)}, where 8 are needed")
    if len(set(numbers)) == 1:
        return Finding(hypothesis, "cannot tell", f"{numbers[0]:.2f} in all {len(numbers)} models")
    found = float(spearmanr(numbers, [row.patches for row in rows]).statistic)
    # Fisher's interval, for ranks with the variance of Bonett and Wright (2000).
    error = ((1 + found**2 / 2) / (len(numbers) - 3)) ** 0.5
    centre = np.arctanh(np.clip(found, -0.999, 0.999))
    low, high = np.tanh(centre + np.array([-1, 1]) * 1.96 * error)
    reason = (
        f"rank correlation {found:+.2f} (95 % interval {low:+.2f} to {high:+.2f}, {len(numbers)} "
        f"models); related from {RELATED:.1f}"
    )
    if low > -RELATED and high < RELATED:
        return Finding(hypothesis, "yes", reason)
    related = (low > 0 and found >= RELATED) or (high < 0 and found <= -RELATED)
    return Finding(hypothesis, "no" if related else "cannot tell", reason)
