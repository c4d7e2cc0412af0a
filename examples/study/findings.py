"""What the study found: one row for each trained model, and a verdict on each hypothesis.

Everything is read from the study's folder. The thresholds were fixed before the first run.
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

FREE, FORCED = ("V0", "V1"), ("V2", "V4", "V5")

MEMORISED = 0.95
"""Least training accuracy: below it a model has capacity to spare for nothing."""

CHANGE = 0.10
"""Least change of a share, or of CKA, that counts."""

MARGIN = 0.01
"""Accuracies that differ by less are equivalent: one point."""

RELATED = 0.5
"""Rank correlation from which a clean map would say something of a true one."""

_NUM_PERMUTATIONS = 10_000


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
    half_depth: float  # over the number of blocks; 1 if patches hold half to the end
    entropy: float  # of attention over patches
    high_norm: float  # fraction of high-norm patches, the highest of all depths
    verdict: str

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
        half_depth=float("nan")
        if trace is None
        else (cell.depth if reached is None else reached) / cell.depth,
        entropy=float("nan") if entropy is None else entropy.mean,
        high_norm=max(high_norm, default=0.0),
        verdict=last.verdict.status,
    )


def _read_transfer(folder: Path) -> float:
    accuracy = OneShotResult.load(folder).summary.accuracy
    return accuracy["nearest"]["attention"]["full"].top1.value


def read_history(out: Path, cell: Cell, number: str) -> list[tuple[int, float]]:
    """A number of the audits during training, by optimizer step."""
    with (out / "cells" / cell.name / "history" / "metrics.csv").open(newline="") as file:
        return [
            (int(line["step"]), float(line[number]))
            for line in csv.DictReader(file)
            if line.get(number)
        ]


def read_judged(out: Path) -> dict[str, JudgeResult]:
    """The judgements of maps, by variant."""
    files = sorted(out.glob("cells/*/judged/summary.json"))
    return {
        json.loads((file.parents[1] / "cell.json").read_text())["cell"]["variant"]: (
            JudgeResult.load(file.parent)
        )
        for file in files
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
    free = [row for row in learned if row.cell.variant in FREE]
    v1 = [row for row in learned if row.cell.variant == "V1"]
    return [
        *_judge_capacity(free),
        _judge_trend(
            "H2: registers take over with depth", v1, lambda row: row.registers, "depth", +1
        ),
        _judge_costs(
            "H3: models that must use their patches are as accurate",
            learned,
            lambda row: row.accuracy,
            chance=1 / NUM_GLYPHS,
        ),
        _judge_costs(
            "H3: … and transfer to unseen classes as well",
            learned,
            lambda row: row.transfer,
            chance=1 / NUM_UNSEEN_GLYPHS,
        ),
        _judge_time(free, out),
        *_judge_clean(rows),
    ]


def _judge_capacity(free: Sequence[Row]) -> list[Finding]:
    measures: dict[str, Callable[[Row], float]] = {
        "CKA of the output with the patches' contribution": lambda row: row.cka,
        "half depth over depth": lambda row: row.half_depth,
    }
    return [
        _judge_trend(f"H1: {name} {moves} with {dial}", free, measure, axis, sign)
        for name, measure in measures.items()
        for moves, dial, axis, sign in (
            ("falls", "depth", "depth", -1),
            ("rises", "the number of training images", "num_images", +1),
        )
    ]


def _judge_trend(
    hypothesis: str, rows: Sequence[Row], measure: Callable[[Row], float], axis: str, sign: int
) -> Finding:
    """Yes if the change from the least to the largest value of an axis is large and not by chance.

    All else is held fixed: changes are taken within groups that differ in the axis alone, and
    averaged. The permutation test shuffles the axis within groups that differ in it and in seed.
    """
    known = [row for row in rows if not np.isnan(measure(row))]
    groups = _group(known, axis)
    if not groups:
        return Finding(hypothesis, "cannot tell", f"no models that differ in {axis} alone")
    changes = [_find_change(group, measure, axis) for group in groups]
    change = fmean(changes)
    chance = _permute(known, measure, axis)
    reason = (
        f"change {change:+.2f} ({min(changes):+.2f} to {max(changes):+.2f} in {len(changes)} "
        f"pairs), permutation p = {chance:.3f}; counts from {CHANGE:.2f}"
    )
    if chance < 0.05 and change * sign >= CHANGE:
        return Finding(hypothesis, "yes", reason)
    small = max(map(abs, changes)) < CHANGE
    opposite = chance < 0.05 and change * sign <= -CHANGE
    return Finding(hypothesis, "no" if small or opposite else "cannot tell", reason)


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


def _permute(rows: Sequence[Row], measure: Callable[[Row], float], axis: str) -> float:
    """Two-sided p value of the slope on the logarithm of the axis, within groups."""
    groups = _group(rows, axis, pool=("seed",))
    x = [np.log([getattr(row.cell, axis) for row in group]) for group in groups]
    y = [np.array([measure(row) for row in group]) for group in groups]
    x = [one - one.mean() for one in x]
    generator = np.random.default_rng(0)
    found = abs(sum(float(a @ b) for a, b in zip(x, y, strict=True)))
    shuffled = [
        abs(sum(float(generator.permutation(a) @ b) for a, b in zip(x, y, strict=True)))
        for _ in range(_NUM_PERMUTATIONS)
    ]
    as_large = sum(one >= found * (1 - 1e-9) for one in shuffled)
    return (1 + as_large) / (1 + _NUM_PERMUTATIONS)


def _judge_costs(
    hypothesis: str, rows: Sequence[Row], measure: Callable[[Row], float], *, chance: float
) -> Finding:
    """Two one-sided tests: yes if the 90 % interval of paired differences is within the margin."""
    differences, best = [], 0.0
    for group in _group(rows, "variant"):
        forced = [measure(row) for row in group if row.cell.variant in FORCED]
        free = [measure(row) for row in group if row.cell.variant in FREE]
        if forced and free:
            differences.append(fmean(forced) - fmean(free))
            best = max(best, fmean(forced), fmean(free))
    if len(differences) < 2:
        return Finding(hypothesis, "cannot tell", f"{len(differences)} pairs: 2 or more are needed")
    if best < chance + CHANGE:  # what cannot be done at all can be done equally well
        reason = f"at most {100 * best:.1f} %, where guessing gives {100 * chance:.1f} %"
        return Finding(hypothesis, "cannot tell", reason)
    mean, spread = fmean(differences), float(np.std(differences, ddof=1))
    half = float(t.ppf(0.95, len(differences) - 1)) * spread / len(differences) ** 0.5
    low, high = mean - half, mean + half
    reason = (
        f"forced less free {100 * mean:+.1f} points (90 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}, {len(differences)} pairs); equivalent within {100 * MARGIN:.0f}"
    )
    if low > -MARGIN and high < MARGIN:
        return Finding(hypothesis, "yes", reason)
    outside = high < -MARGIN or low > MARGIN
    return Finding(hypothesis, "no" if outside else "cannot tell", reason)


def _judge_time(free: Sequence[Row], out: Path) -> Finding:
    hypothesis = "H4: the patches' share falls while a model is trained"
    changes = []
    for row in free:
        # The untrained model is no part of it: its output hardly depends on the image.
        history = read_history(out, row.cell, "vitscope/variance_share_residual_patches")[1:]
        if len(history) > 1:
            changes.append(history[-1][1] - history[0][1])
    if len(changes) < 2:
        return Finding(hypothesis, "cannot tell", f"{len(changes)} histories: 2 or more are needed")
    change, spread = fmean(changes), float(np.std(changes, ddof=1))
    half = float(t.ppf(0.975, len(changes) - 1)) * spread / len(changes) ** 0.5
    reason = (
        f"from the first to the last audit after the start {change:+.2f} (95 % interval "
        f"{change - half:+.2f} to {change + half:+.2f}, {len(changes)} models); counts from "
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
    return [
        _judge_relation(f"H5: {name} says nothing of the patches' share", rows, measure)
        for name, measure in measures.items()
    ]


def _judge_relation(
    hypothesis: str, rows: Sequence[Row], measure: Callable[[Row], float]
) -> Finding:
    known = [row for row in rows if not np.isnan(measure(row))]
    if len(known) < 8 or len({measure(row) for row in known}) == 1:
        return Finding(hypothesis, "cannot tell", f"{len(known)} models, or all of the same number")
    numbers = [measure(row) for row in known]
    found = float(spearmanr(numbers, [row.patches for row in known]).statistic)
    # Fisher's interval, for ranks with the variance of Bonett and Wright (2000).
    error = ((1 + found**2 / 2) / (len(known) - 3)) ** 0.5
    low, high = np.tanh(
        np.arctanh(np.clip(found, -0.999, 0.999)) + np.array([-1, 1]) * 1.96 * error
    )
    reason = (
        f"rank correlation {found:+.2f} (95 % interval {low:+.2f} to {high:+.2f}, {len(known)} "
        f"models); related from {RELATED:.1f}"
    )
    if low > -RELATED and high < RELATED:
        return Finding(hypothesis, "yes", reason)
    related = (low > 0 and found >= RELATED) or (high < 0 and found <= -RELATED)
    return Finding(hypothesis, "no" if related else "cannot tell", reason)
