"""Results of models that compute otherwise with the same weights never meet."""

import json

import pytest

from audits import tiny_vit
from images import write_images
from sharded import stop_after
from vitscope import AuditConfig, AuditResult, OneShotConfig, audit, explain, one_shot
from vitscope.config import RunConfig
from vitscope.errors import ResultError, UsageError
from vitscope.files.tensor_files import read_tensors, write_tensors

CONFIG = AuditConfig(gallery=0, batch_size=4, shard_size=4, device="cpu", dtype="float32")
EXPLAINED = RunConfig(device="cpu", dtype="float32")
OTHERWISE = "its model has the same weights and computes otherwise"
UNKNOWN = (
    r"whether its model is the same cannot be verified, for the forward hook of blocks\.0\.mlp "
    r"\(a lambda\) is not known"
)


def double(module, args, output):
    return output * 2


def hooked(hook):
    vit = tiny_vit()
    vit.module.blocks[0].mlp.register_forward_hook(hook)
    return vit


def with_lambda():
    return hooked(lambda *given: given[2] * 2)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    return [write_images(folder / str(n), 20, start=20 * n) for n in range(2)]


@pytest.fixture(scope="module")
def plain(parts):
    return audit(tiny_vit(), parts[0], CONFIG)


def forget_behaviour(result, folder):
    """The result as an earlier version wrote it."""
    result = result.save(folder)
    path = folder / "sums.safetensors"
    tensors, metadata = read_tensors(path)
    manifest = json.loads(metadata["manifest"])
    del manifest["behaviour_hash"], manifest["unknown"]
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    path.unlink()
    write_tensors(path, tensors, {"manifest": json.dumps(manifest)})
    return AuditResult.load(folder)


def test_the_same_model_with_the_same_hook_merges(parts):
    first, second = (audit(hooked(double), part, CONFIG) for part in parts)
    assert first.merge(second).summary.data.num_images == 40
    assert first.manifest.behaviour_hash == second.provenance["behaviour_hash"]


@pytest.mark.parametrize(
    ("make", "reason"), [(lambda: hooked(double), OTHERWISE), (with_lambda, UNKNOWN)]
)
def test_another_model_of_the_same_weights_is_not_merged(make, reason, plain, parts):
    other = audit(make(), parts[1], CONFIG)
    assert other.manifest.weights_hash == plain.manifest.weights_hash
    for one, two in ((plain, other), (other, plain)):
        with pytest.raises(ResultError, match=f"cannot be merged: {reason}"):
            one.merge(two)


def test_what_cannot_be_compared_is_not_merged_with_itself_and_says_so(parts):
    vit = with_lambda()
    first, second = (audit(vit, part, CONFIG) for part in parts)
    with pytest.raises(ResultError, match=UNKNOWN):
        first.merge(second)
    for result in (first, explain(vit, parts[0], EXPLAINED)):
        (note,) = result.summary.model.notes
        assert note.startswith("the forward hook of blocks.0.mlp (a lambda) is code that cannot be")
    assert first.manifest.unknown == ("the forward hook of blocks.0.mlp (a lambda)",)


def test_a_result_of_an_earlier_version_is_read_and_not_merged(plain, parts, tmp_path):
    old = forget_behaviour(plain, tmp_path / "old")
    assert old.manifest.behaviour_hash == ""
    assert old.read_sums().keys() == plain.read_sums().keys()
    new = audit(tiny_vit(), parts[1], CONFIG)
    with pytest.raises(
        ResultError, match="it was written by an earlier version, which did not record how"
    ):
        new.merge(old)
    with pytest.raises(UsageError, match="cannot be used: it was written by an earlier version"):
        explain(tiny_vit(), parts[0], EXPLAINED, reference=old)


@pytest.mark.parametrize(
    ("make", "reason"), [(lambda: hooked(double), OTHERWISE), (with_lambda, UNKNOWN)]
)
def test_another_model_of_the_same_weights_is_no_reference(make, reason, plain, parts):
    with pytest.raises(UsageError, match=rf"the reference .* cannot be used: {reason}"):
        explain(make(), parts[0], EXPLAINED, reference=plain)
    assert explain(tiny_vit(), parts[0], EXPLAINED, reference=plain).summary.reference


@pytest.fixture
def unfinished(parts, tmp_path):
    def stop(make):
        stop_at = stop_after(9, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            audit(make(), parts[0], CONFIG, out=tmp_path / "r", on_progress=stop_at)
        return tmp_path / "r"

    return stop


def test_a_run_is_resumed_with_the_model_that_began_it_alone(unfinished, parts):
    out = unfinished(tiny_vit)
    with pytest.raises(UsageError, match="result: the model's computation differs: a hook"):
        audit(hooked(double), parts[0], CONFIG, out=out, resume=True)
    assert audit(tiny_vit(), parts[0], CONFIG, out=out, resume=True).manifest.unknown == ()


def test_a_run_of_what_cannot_be_compared_is_not_resumed(unfinished, parts):
    out = unfinished(with_lambda)
    words = r"cannot be resumed: whether the model is the same cannot be verified, for the forward"
    with pytest.raises(UsageError, match=words):
        audit(with_lambda(), parts[0], CONFIG, out=out, resume=True)
    with pytest.raises(UsageError, match="holds a different unfinished run"):
        audit(tiny_vit(), parts[0], CONFIG, out=out, resume=True)
    made = audit(with_lambda(), parts[0], CONFIG, out=out, resume=True, overwrite=True)
    assert made.summary.data.num_images == 20
    with pytest.raises(UsageError, match=words):  # a finished one either
        audit(with_lambda(), parts[0], CONFIG, out=out, resume=True)


def test_every_kind_of_result_says_how_its_model_computed(plain, parts, tmp_path):
    write_images(tmp_path / "classes" / "a", 3)
    write_images(tmp_path / "classes" / "b", 3, start=5)
    config = OneShotConfig(device="cpu", dtype="float32", draws=2)
    results = [
        plain,
        explain(tiny_vit(), parts[0], EXPLAINED),
        one_shot(tiny_vit(), tmp_path / "classes", config),
    ]
    assert {result.provenance["behaviour_hash"] for result in results} == {
        tiny_vit().describe_behaviour().digest
    }
