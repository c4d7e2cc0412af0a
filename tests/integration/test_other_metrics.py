"""Metrics of other packages: asked for by name, measured, saved, merged; faults are theirs."""

import sys

import numpy as np
import pytest
from safetensors.torch import load_file

from audits import tiny_vit
from images import write_images
from installed import write_package
from vitscope import AuditResult, audit
from vitscope.errors import ResultError, UsageError, VitscopeError

SETTINGS = {"batch_size": 4, "dtype": "float64", "gallery": 0, "metrics": ["largest_term"]}
METRICS = """
    import torch
    from vitscope.metrics.jackknife import Estimate

    class LargestTerm:
        "Mean over images of the largest norm of a term."

        def __init__(self):
            self.total = torch.zeros(2, dtype=torch.float64)

        def update(self, batch):
            terms = [rows for name, rows in batch.features.items() if name.startswith("term/")]
            norms = torch.stack([rows.double().norm(dim=1) for rows in terms])
            largest = norms.max(dim=0).values
            self.total = self.total + torch.tensor([largest.sum(), len(largest)])

        def merge(self, other):
            self.total = self.total + other.total

        def save(self):
            return {"total": self.total}

        def load(self, tensors, folder):
            self.total = tensors["total"]

        def summarize(self):
            total, count = self.total.tolist()
            return {"mean": Estimate(total / count, None)}

    class Failing(LargestTerm):
        def update(self, batch):
            raise IndexError("no such term")

    class Untyped(LargestTerm):
        def summarize(self):
            return {"mean": 3.0}

    class Undefined(LargestTerm):
        def summarize(self):
            return {"mean": Estimate(1.0, (float("nan"), 1.0))}

    class Bool(LargestTerm):
        def summarize(self):
            return {"mean": Estimate(True, None)}

    class Empty(LargestTerm):
        def summarize(self):
            return {"mean": Estimate(1.0, ())}

    class Array(LargestTerm):
        def summarize(self):
            return {"mean": Estimate(torch.zeros(2), None)}

    class Listed(LargestTerm):
        def save(self):
            return {"total": self.total.tolist()}

    class Shared(LargestTerm):
        def save(self):
            return {"total": self.total, "same": self.total, "part": self.total[None].mT}
"""
POINTS = {
    "largest_term": "mine:LargestTerm",
    "failing": "mine:Failing",
    "untyped": "mine:Untyped",
    "undefined": "mine:Undefined",
    "bool": "mine:Bool",
    "empty": "mine:Empty",
    "array": "mine:Array",
    "listed": "mine:Listed",
    "shared": "mine:Shared",
    "nothing": "mine:torch",
    "gone": "mine:Gone",
}


@pytest.fixture
def package(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("site")
    write_package(folder, METRICS, group="vitscope.metrics", points=POINTS)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("mine", None)


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images", 9)
    return tmp_path / "images"


def test_what_it_finds_stands_in_the_summary_as_its_definition_says(package, images):
    result = audit(tiny_vit(), images, **SETTINGS, layers=[0, 1], verified=0.5)
    assert result.manifest.metrics == {"largest_term": "vitscope-mine 1.2"}
    for layer in result.summary.layers:
        files = [load_file(p) for p in (result.folder / f"features/{layer.index:03d}").iterdir()]
        norms = [
            np.max(
                [v.norm(dim=1).numpy() for k, v in rows.items() if k.startswith("term/")], axis=0
            )
            for rows in files
        ]
        found = layer.metrics["largest_term"]["mean"].value
        assert found == pytest.approx(np.concatenate(norms).mean(), rel=1e-12)


def test_shards_merge_to_the_whole_where_the_package_is_installed(
    package, images, tmp_path, monkeypatch
):
    whole = audit(tiny_vit(), images, **SETTINGS)
    parts = [audit(tiny_vit(), images, **SETTINGS, shard=(k, 2)) for k in (1, 2)]
    merged = parts[0].merge(parts[1], out=tmp_path / "merged")
    value, expected = (one.summary.last.metrics["largest_term"]["mean"] for one in (merged, whole))
    assert value.value == pytest.approx(expected.value, rel=1e-12)

    (next(package.glob("*.dist-info")) / "entry_points.txt").unlink()
    again = AuditResult.load(tmp_path / "merged")
    assert again.summary.last.metrics == merged.summary.last.metrics
    assert [*again.read_sums()] == [*again.read_token_sums()] == [1]
    assert again.high_norm_grid(0).shape == again.summary.model.grid
    with pytest.raises(UsageError, match=r"^metric 'largest_term': no installed package declares"):
        parts[0].merge(parts[1], out=tmp_path / "without")


def test_shards_of_another_version_do_not_merge(package, images, tmp_path):
    parts = [audit(tiny_vit(), images, **SETTINGS, shard=(k, 2)) for k in (1, 2)]
    (info,) = package.glob("*.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vitscope-mine\nVersion: 1.3\n")
    message = r"^metric 'largest_term' needs vitscope-mine 1\.2, found vitscope-mine 1\.3: install"
    with pytest.raises(UsageError, match=message):
        parts[0].merge(parts[1], out=tmp_path / "merged")


def test_tensors_that_share_memory_are_saved(package, images):
    result = audit(tiny_vit(), images, **SETTINGS | {"metrics": ["shared"]})
    assert result.summary.last.metrics["shared"]["mean"].value > 0


def test_a_fault_in_the_summary_ends_the_first_shard(package, images, tmp_path):
    settings = SETTINGS | {"metrics": ["untyped"], "shard_size": 4, "out": tmp_path / "out"}
    seen = []
    with pytest.raises(UsageError, match="found 'mean'"):
        audit(tiny_vit(), images, **settings, on_progress=lambda done, _: seen.append(done))
    assert max(seen) <= 4


def test_a_shard_without_images_is_no_fault_of_the_metric(package, images):
    for path in sorted(images.iterdir())[:4]:
        path.write_bytes(b"damaged")
    result = audit(tiny_vit(), images, **SETTINGS, shard_size=4)
    assert result.summary.data.num_images == 5
    assert result.summary.last.metrics["largest_term"]["mean"].value > 0


def test_results_with_and_without_it_do_not_merge(package, images, tmp_path):
    plain = {name: value for name, value in SETTINGS.items() if name != "metrics"}
    parts = [
        audit(tiny_vit(), images, **settings, shard=(k, 2))
        for k, settings in ((1, SETTINGS), (2, plain))
    ]
    with pytest.raises(ResultError, match="its metrics differs"):
        parts[0].merge(parts[1], out=tmp_path / "merged")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("unknown", UsageError, r"^metric 'unknown': no installed package declares it"),
        ("failing", VitscopeError, r"^failing of the package vitscope-mine 1\.2 failed \(IndexErr"),
        ("gone", VitscopeError, r"^gone of the package vitscope-mine 1\.2 failed \(AttributeErr"),
        ("nothing", VitscopeError, r"^nothing of the package vitscope-mine 1\.2 failed \(TypeErr"),
        (
            "untyped",
            UsageError,
            r"^metric 'untyped' of vitscope-mine 1\.2 found 'mean': 3\.0: expe",
        ),
        (
            "undefined",
            UsageError,
            r"found 'mean': Estimate\(value=1\.0, ci95=\(nan, 1\.0\)\): expe",
        ),
        ("bool", UsageError, r"found 'mean': Estimate\(value=True, ci95=None\): expected"),
        ("empty", UsageError, r"found 'mean': Estimate\(value=1\.0, ci95=\(\)\): expected"),
        ("array", UsageError, r"found 'mean': Estimate\(value=tensor\(\[0\., 0\.\]\), ci95=None"),
        ("listed", UsageError, r"saves 'total' as list: expected a tensor of float64"),
        ("mine/largest", UsageError, r"^metric 'mine/largest': expected a name without a slash$"),
    ],
)
def test_faults_are_blamed_on_the_package(package, images, name, error, message):
    with pytest.raises(error, match=message):
        audit(tiny_vit(), images, **SETTINGS | {"metrics": [name]})


def test_a_class_without_the_methods_is_refused(package, images):
    points = {"bare": "builtins:object"}
    group = "vitscope.metrics"
    write_package(package, METRICS, group=group, points=points, package="bare")
    with pytest.raises(UsageError, match=r"^builtins:object of the package bare 1\.2 is no metric"):
        audit(tiny_vit(), images, **SETTINGS | {"metrics": ["bare"]})


def test_one_name_is_no_list_of_names(images):
    with pytest.raises(UsageError, match=r"^metrics 'largest_term': expected names such as"):
        audit(tiny_vit(), images, metrics="largest_term")
