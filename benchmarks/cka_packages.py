"""Which CKA packages on PyPI are right, and what do they cost?"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from io import StringIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.features import make_batches, stream_cka
from benchmarks.gram_cka import biased_cka, minibatch_cka
from benchmarks.measuring import alternate, compare, measure_memory
from benchmarks.page import Section, Table
from benchmarks.settings import Settings


@dataclass(frozen=True)
class _Plan:
    count: int = 2048
    width: int = 384
    minibatch: int = 256
    rounds: int = 3


_TINY = _Plan(count=64, width=8, minibatch=16, rounds=2)


@dataclass(frozen=True)
class _Entry:
    """A way into a package."""

    module: str
    claims: str  # the estimator it says it computes: biased, unbiased or minibatch
    compute: Callable[[Tensor, Tensor, int], float]  # from x, y and the size of a minibatch


def measure(settings: Settings) -> Section:
    """Hold every entry against the estimator that it claims; time and memory beside ours."""
    plan = _TINY if settings.tiny else _Plan()
    entries = {n: e for n, e in ENTRIES.items() if find_spec(e.module)}
    absent = sorted({e.module for e in ENTRIES.values()} - {e.module for e in entries.values()})
    with _quiet():
        errors = {name: _find_errors(entry, plan) for name, entry in entries.items()}
        costs = _measure_costs(entries, plan)
    rows = [[name, entry.claims, *errors[name], *costs[name]] for name, entry in entries.items()]
    columns = ("entry", "claims", *_CASES, "seconds / vitscope's", "memory added, MiB")
    return Section(
        title="CKA packages on PyPI",
        how=(
            f"Two random features of {plan.count} images and width {plan.width}, minibatches of "
            f"{plan.minibatch}, {plan.rounds} rounds. Given is the difference from a float64 "
            "reference of the estimator that the entry claims, made of n × n matrices. CKA should "
            "not change if features are multiplied by 0.01 or shifted by constants 40 times their "
            "spread. vitscope's seconds include both estimates and the interval."
        ),
        tables=[Table(columns, rows)],
        notes=[*(f"{name} is not installed: left out" for name in absent), *_describe(entries)],
    )


def _describe(entries: dict[str, _Entry]) -> list[str]:
    modules = {entry.module for entry in entries.values()} - {"vitscope"}
    versions = [f"{name} {metadata.version(name.replace('_', '-'))}" for name in sorted(modules)]
    return [", ".join(versions), *(note for module, note in _READ if module in modules)]


_READ = (
    (
        "ckatorch",
        "ckatorch's class `CKA` keeps only the last minibatch of an epoch and takes the second "
        "axis for the examples. Here each minibatch's rows are on that axis, the only form in "
        "which it runs on features",
    ),
    ("ckatorch", 'ckatorch\'s `cka_base(unbiased=True, method="hsic")` ignores `unbiased`'),
    (
        "cka_pytorch",
        "cka-pytorch adds 1e-4 to the product of the two self-terms and works in float32 on "
        "features that are not centred",
    ),
    (
        "torch_cka",
        "torch-cka works in float32 on features that are not centred. It goes through one loader "
        "twice at once, so with `shuffle=True` it compares different images",
    ),
)
"""Found in the packages' sources; the table shows what each comes to."""

_CASES = {"difference": (2.0, 1.0), "× 0.01": (2.0, 0.01), "large constants": (30.0, 1.0)}
"""Size of what is the same for every image, and scale."""


def _make_features(plan: _Plan, case: str) -> tuple[Tensor, Tensor]:
    offset, scale = _CASES[case]
    batches = make_batches(plan.count, plan.width, offset=offset)
    x, y = map(torch.cat, zip(*batches, strict=True))
    return scale * x, scale * y


def _find_errors(entry: _Entry, plan: _Plan) -> list[str]:
    errors = []
    for case in _CASES:
        x, y = _make_features(plan, case)
        try:
            value = entry.compute(x, y, plan.minibatch)
        except AssertionError as error:  # torch-cka asserts that its result is a number
            errors.append(f"stops: {error}")
        else:
            errors.append(f"{value - _expect(entry.claims, case, plan):.0e}")
    return errors


@cache
def _expect(claims: str, case: str, plan: _Plan) -> float:
    x, y = (rows.numpy() for rows in _make_features(plan, case))
    if claims == "biased":
        return biased_cka(x, y)
    parts = 1 if claims == "unbiased" else plan.count // plan.minibatch
    return minibatch_cka(np.split(x, parts), np.split(y, parts))


def _measure_costs(entries: dict[str, _Entry], plan: _Plan) -> dict[str, list[str]]:
    x, y = _make_features(plan, "difference")
    seconds = alternate(
        {name: partial(e.compute, x, y, plan.minibatch) for name, e in entries.items()}, plan.rounds
    )
    costs = {}
    for name in entries:
        memory = measure_memory(_prepare, name, plan)
        ratio = compare(seconds[name], seconds["vitscope, unbiased"])
        costs[name] = [f"{ratio.median:.3f}", f"{memory.added:.0f}"]
    return costs


def _prepare(name: str, plan: _Plan) -> Callable[[], object]:
    compute = ENTRIES[name].compute
    few = replace(plan, count=4 * 8, minibatch=8)
    with _quiet():
        compute(*_make_features(few, "difference"), few.minibatch)  # what is loaded on first use
    x, y = _make_features(plan, "difference")

    def work() -> None:
        with _quiet():
            compute(x, y, plan.minibatch)

    return work


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the packages' progress bars and warnings."""
    with redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _vitscope(x: Tensor, y: Tensor, minibatch: int, *, estimate: str) -> float:
    return getattr(stream_cka(zip(x.split(minibatch), y.split(minibatch), strict=True)), estimate)


def _ckatorch_base(x: Tensor, y: Tensor, _: int, **options: object) -> float:
    from ckatorch import cka_base

    return float(cka_base(x, y, **options))


def _ckatorch_batch(x: Tensor, y: Tensor, minibatch: int) -> float:
    from ckatorch import cka_batch

    return float(cka_batch(x.unflatten(0, (-1, minibatch)), y.unflatten(0, (-1, minibatch))))


def _ckatorch_class(x: Tensor, y: Tensor, minibatch: int) -> float:
    from ckatorch import CKA

    # A minibatch of one "image" whose "tokens" are the images: it wants three axes.
    rows = torch.cat([x, y], dim=1).unflatten(0, (-1, minibatch))
    loader = DataLoader(TensorDataset(rows), batch_size=1)
    compare_layers = CKA(_Half(0), _Half(1), ["features"], first_name="x", second_name="y")
    return float(compare_layers(loader, epochs=1))


def _cka_pytorch(x: Tensor, y: Tensor, minibatch: int) -> float:
    from cka_pytorch import CKACalculator

    loader = _load(x, y, minibatch, shuffle=False)
    calculator = CKACalculator(_Half(0), _Half(1), ["features"], verbose=False)
    return float(calculator.calculate_cka_matrix(loader, num_epochs=1))


def _torch_cka(x: Tensor, y: Tensor, minibatch: int, *, shuffle: bool) -> float:
    from torch_cka import CKA

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        comparison = CKA(
            _Half(0), _Half(1), "x", "y", model1_layers=["features"], model2_layers=["features"]
        )
        comparison.compare(_load(x, y, minibatch, shuffle=shuffle))
        return float(comparison.export()["CKA"])


def _load(x: Tensor, y: Tensor, minibatch: int, *, shuffle: bool) -> DataLoader:
    rows = torch.cat([x, y], dim=1)
    labels = torch.zeros(len(rows))
    return DataLoader(TensorDataset(rows, labels), batch_size=minibatch, shuffle=shuffle)


class _Half(nn.Module):
    """A model whose layer `features` puts out one of two features laid side by side."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self.which = which
        self.features = nn.Identity()
        self.anchor = nn.Parameter(torch.zeros(()))  # its device is asked for

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x.chunk(2, dim=-1)[self.which])


ENTRIES = {
    "vitscope, unbiased": _Entry("vitscope", "unbiased", partial(_vitscope, estimate="unbiased")),
    "vitscope, biased": _Entry("vitscope", "biased", partial(_vitscope, estimate="biased")),
    "ckatorch.cka_base": _Entry("ckatorch", "biased", _ckatorch_base),
    "ckatorch.cka_base, unbiased": _Entry(
        "ckatorch", "unbiased", partial(_ckatorch_base, unbiased=True)
    ),
    "ckatorch.cka_base, unbiased, hsic": _Entry(
        "ckatorch", "unbiased", partial(_ckatorch_base, unbiased=True, method="hsic")
    ),
    "ckatorch.cka_batch": _Entry("ckatorch", "minibatch", _ckatorch_batch),
    "ckatorch.CKA": _Entry("ckatorch", "minibatch", _ckatorch_class),
    "cka_pytorch.CKACalculator": _Entry("cka_pytorch", "minibatch", _cka_pytorch),
    "torch_cka.CKA": _Entry("torch_cka", "minibatch", partial(_torch_cka, shuffle=False)),
    "torch_cka.CKA, shuffle": _Entry("torch_cka", "minibatch", partial(_torch_cka, shuffle=True)),
}
"""Ways into the packages, by the name that the table gives them."""
