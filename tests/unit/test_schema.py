"""Summaries as types: what is read is what was written, and damage is named."""

import json
import math
from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from audits import tiny_vit
from images import write_images
from schema_page import PAGE, SCRIPT, make_schema, render_page
from vitscope import AuditConfig, OneShotConfig, audit, explain, one_shot
from vitscope.errors import ResultError
from vitscope.files.typed_json import LARGEST, MOST
from vitscope.results.schema import (
    KINDS,
    AuditSummary,
    ExplanationSummary,
    OneShotSummary,
    read_summary,
    write_summary,
)

_VALIDATOR = Draft202012Validator(make_schema())
_CASES = ("all layers", "pooled", "one image", "explained", "without reference", "one-shot")
_WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 10**400, 1e301, 0.5, 2**54, 0, 1, math.inf, "\x1b[31m", "holds"]),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.just([1, 2, 3]),
    st.just({"patches": {}}),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Results of each kind."""
    root = tmp_path_factory.mktemp("schema")
    images = write_images(root / "images", 24)
    for number in range(3):
        write_images(root / "classes" / str(number), 2, start=2 * number)
    config = AuditConfig(batch_size=12, gallery=0)
    everything = replace(config, layers="all", verified=1)
    audit(tiny_vit(), images, everything, out=root / "all layers")
    audit(tiny_vit("siglip"), images, config, out=root / "pooled")
    audit(tiny_vit("deit_distilled"), images, replace(config, limit=1), out=root / "one image")
    explain(tiny_vit("siglip"), [images / "0000.png"], out=root / "apart/without reference")
    (root / "apart/without reference").rename(root / "without reference")
    explain(tiny_vit(), [images / "0001.png"], out=root / "explained")
    one_shot(tiny_vit(), root / "classes", OneShotConfig(draws=2), out=root / "one-shot")
    return root


@pytest.fixture(scope="module")
def contents(folders):
    return {case: json.loads((folders / case / "summary.json").read_text()) for case in _CASES}


def _read(folder):
    return read_summary(folder, *KINDS)


@pytest.mark.parametrize("case", _CASES)
def test_what_is_written_is_what_was_read(folders, contents, case, tmp_path):
    summary = _read(folders / case)
    write_summary(tmp_path, summary)
    written = json.loads((tmp_path / "summary.json").read_text())
    # What no layer has, and defaults, are written too.
    _assert_holds(written, contents[case])
    write_summary(tmp_path, _read(tmp_path))
    assert json.loads((tmp_path / "summary.json").read_text()) == written
    assert not list(_VALIDATOR.iter_errors(written))
    assert list(written)[:3] == ["schema_version", "kind", "model"]


def _assert_holds(found, expected):
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys()
        for key, value in expected.items():
            _assert_holds(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _assert_holds(one, other)
    else:
        assert found == expected
        assert type(found) is type(expected)


def test_an_audit_reads_as_its_types(folders, contents):
    summary = read_summary(folders / "all layers", AuditSummary)
    raw = contents["all layers"]["layers"][-1]
    assert [layer.index for layer in summary.layers] == [0, 1]
    assert summary.last is summary.layers[-1]
    assert summary.layer == 1
    cka = summary.layers[-1].cka["residual"]["patches"]
    assert cka.unbiased == raw["cka"]["residual"]["patches"]["unbiased"]
    assert cka.ci95 == tuple(raw["cka"]["residual"]["patches"]["ci95"])
    assert summary.last.attention_mass["registers"].n == summary.data.num_images == 24
    assert summary.last.verdict.alignment == tuple(raw["verdict"]["alignment"])
    assert summary.preprocessing.size == (32, 32)
    assert repr(summary) == "AuditSummary('tiny/dinov2_reg', 24 images)"
    assert repr(summary.last) == f"LayerSummary(1, {summary.last.verdict.status!r})"


def test_what_is_undefined_is_nan(folders):
    summary = read_summary(folders / "one image", AuditSummary)
    spread = summary.last.centred_share["patches"]
    assert math.isnan(spread.mean)
    assert spread.n == 0
    share = summary.last.variance_share["residual"]["patches"]
    assert math.isnan(share.value)
    assert share.ci95 is None
    assert summary.interdependence is None


def test_images_and_accuracies_read_as_their_types(folders, contents):
    explained = read_summary(folders / "explained", ExplanationSummary)
    (image,) = explained.images
    raw = contents["explained"]["images"][0]
    assert explained.reference is not None
    assert image.numbers.cosine["residual"]["skip"] == raw["numbers"]["cosine"]["residual"]["skip"]
    assert image.verdict.share == image.numbers.centred_share["patches"]
    alone = read_summary(folders / "without reference", ExplanationSummary)
    assert alone.reference is None
    assert alone.images[0].numbers.centred_share == {}
    one = read_summary(folders / "one-shot", OneShotSummary)
    full = one.accuracy["nearest"]["attention"]["full"].top1
    assert full.ci95[0] <= full.value <= full.ci95[1]


def _change(tree, path, change):
    changed = deepcopy(tree)
    place = changed
    for key in path[:-1]:
        place = place[key]
    change(place, path[-1])
    return changed


def _set(value):
    return lambda place, key: place.__setitem__(key, value)


def _drop(place, key):
    del place[key]


_CKA = ("layers", 1, "cka", "residual")


@pytest.mark.parametrize(
    ("case", "path", "change", "told"),
    [
        ("all layers", ("model",), _drop, "model is missing"),
        (
            "all layers",
            (*_CKA, "patches", "unbiased"),
            _drop,
            "at layers.1.cka.residual.patches: unbiased is missing",
        ),
        ("all layers", (*_CKA, "patches"), _drop, "at layers.1.cka.residual: patches is missing"),
        (
            "all layers",
            (*_CKA, "skip", "ci95"),
            _set([0.1]),
            "at layers.1.cka.residual.skip.ci95: expected 2 entries, found 1",
        ),
        (
            "all layers",
            (*_CKA, "skip", "ci95"),
            _set([0.1, None]),
            "ci95.1: expected a number, found null",
        ),
        (
            "all layers",
            (*_CKA, "skip", "biased"),
            _set("\x1b[31m"),
            r"skip.biased: expected a number, found '\x1b[31m'",
        ),
        ("all layers", (*_CKA, "skip", "biased"), _set(True), "expected a number, found True"),
        ("all layers", (*_CKA, "skip", "biased"), _set(10**400), "expected a number, found 1000"),
        ("all layers", (*_CKA, "skip"), _set([]), "expected an object, found an array"),
        ("all layers", ("ledger", "tolerance"), _set(None), "expected a number, found null"),
        ("all layers", ("data", "num_images"), _set(1.5), "expected a count, found 1.5"),
        ("all layers", ("data", "num_images"), _set(-1), "expected a count, found -1"),
        ("all layers", ("data", "num_images"), _set(MOST + 1), "expected a count, found 9007"),
        ("all layers", ("data", "notes"), _set("a"), "at data.notes: expected an array, found 'a'"),
        ("all layers", ("model", "grid"), _set([0, 4]), "grid.0: expected 1 to 65536, found 0"),
        ("all layers", ("model", "id"), _set({}), "model.id: expected a text, found an object"),
        ("all layers", ("layers",), _set([]), "layers: expected at least one entry, found none"),
        ("all layers", ("layers", 1, "index"), _set(0), "damaged: layers [0, 0] of 2 blocks"),
        ("all layers", ("layers", 1, "index"), _set(9), "damaged: layers [0, 9] of 2 blocks"),
        (
            "all layers",
            ("layers", 0, "verdict", "status"),
            _set("fine"),
            "verdict.status: expected 'holds' or 'weakened' or 'broken' or",
        ),
        (
            "all layers",
            ("preprocessing", "std"),
            _set([0, 0, 0]),
            "at preprocessing: preprocessing std=(0.0, 0.0, 0.0): expected",
        ),
        (
            "all layers",
            ("settings", "renormalize"),
            _set(0),
            "renormalize: expected true or false, found 0",
        ),
        ("explained", ("images", 0, "framing"), _set([]), "framing: expected 'whole' or 'cropped'"),
        (
            "explained",
            ("images", 0, "numbers", "patch_share"),
            _set({}),
            "at images.0.numbers.patch_share: expected a number, found an object",
        ),
        ("one-shot", ("accuracy",), _set({}), "accuracy: expected at least one entry"),
        (
            "one-shot",
            ("accuracy", "nearest", "attention", "full", "top1", "ci95"),
            _set(None),
            "full.top1.ci95: expected an array, found null",
        ),
    ],
)
def test_damage_is_named_where_it_is(folders, contents, tmp_path, case, path, change, told):
    changed = _change(contents[case], path, change)
    (tmp_path / "summary.json").write_text(json.dumps(changed))
    with pytest.raises(ResultError) as caught:
        _read(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/summary.json is damaged")
    assert told in message
    assert message.isprintable()


def _paths(tree, *path):
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2])
    for key, value in items if isinstance(tree, (dict, list)) else ():
        if isinstance(value, (dict, list)):
            yield from _paths(value, *path, key)
        else:
            yield (*path, key)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_part_may_be_anything(contents, tmp_path_factory, data):
    content = contents[data.draw(st.sampled_from(_CASES))]
    top = data.draw(st.sampled_from(list(content)))  # or most would be of the longest parts
    below = content[top]
    paths = list(_paths(below, top)) if isinstance(below, (dict, list)) else [(top,)]
    path = data.draw(st.sampled_from(paths))
    change = data.draw(st.one_of(st.just(_drop), _WRONG.map(_set)))
    changed = _change(content, path, change)
    folder = tmp_path_factory.getbasetemp() / "anything"
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(changed).replace("Infinity", "null"))
    valid = not list(_VALIDATOR.iter_errors(json.loads((folder / "summary.json").read_text())))
    told = _attempt(folder)
    assert told.isprintable()
    # What a schema cannot say: bounds that classes have themselves.
    assert valid == (not told) or " cannot be" in told or "at preprocessing: " in told


def _attempt(folder):
    try:
        write_summary(folder, _read(folder))
    except ResultError as error:
        return str(error)
    _read(folder)
    return ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 800 + "]" * 800, "written with schema None"),
        ('{"schema_version": 4, "kind": "audit"}', "written with schema 4, this version reads 5"),
        ('{"schema_version": 5, "kind": ["audit"]}', "is a result of kind ['audit']: expected"),
        ('{"schema_version": 5, "kind": "audit", "data": NaN}', "NaN is not a number of JSON"),
        ('{"schema_version": 5, "kind": "audit"}', "is damaged: model is missing"),
        (
            '{"schema_version": 5, "kind": "audit", "model": ' + "[" * 800 + "]" * 800 + "}",
            "model: expected an object, found an array",
        ),
    ],
)
def test_what_is_no_summary_is_refused(tmp_path, text, told):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ResultError) as caught:
        _read(tmp_path)
    assert told in str(caught.value)


def test_a_result_of_another_kind_is_refused(folders):
    with pytest.raises(ResultError, match="is a result of kind 'one-shot': expected 'audit'"):
        read_summary(folders / "one-shot", AuditSummary)


def test_numbers_at_the_bounds_are_read(contents, tmp_path):
    content = _change(contents["pooled"], ("data", "num_images"), _set(MOST))
    content = _change(content, ("ledger", "tolerance"), _set(LARGEST))
    (tmp_path / "summary.json").write_text(json.dumps(content))
    summary = read_summary(tmp_path, AuditSummary)
    assert (summary.data.num_images, summary.ledger.tolerance) == (MOST, LARGEST)


def test_the_schema_file_is_current():
    assert PAGE.read_text(encoding="utf-8") == render_page(), f"run {SCRIPT}"
    Draft202012Validator.check_schema(make_schema())
