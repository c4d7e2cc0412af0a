"""Finding a repository's files: cache first, then the hub, every failure in one line."""

import json
import time
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from vitscope.errors import ModelUnreachableError, UnknownModelError
from vitscope.weights import hub
from vitscope.weights.hub import find_snapshot

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
REPOSITORY = "someone/model"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A snapshot folder of the repository in an otherwise empty cache."""
    folder = tmp_path / "models--someone--model"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return snapshot


@pytest.fixture
def offline(monkeypatch):
    """Requests made of a hub that cannot be reached: what is not cached fails."""
    download, requests = hub.snapshot_download, []

    def refuse(repo_id, *, allow_patterns, local_files_only):
        if local_files_only:
            return download(repo_id, allow_patterns=allow_patterns, local_files_only=True)
        requests.append(repo_id)
        raise LocalEntryNotFoundError("advice\nin lines") from OSError("no route to host")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    return requests


def write(folder, *names):
    for name in names:
        (folder / name).write_text("{}")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_cached_model_is_found_without_a_request(cache, offline, weights):
    write(cache, "config.json", weights, "second.json")
    others = ["config.json", "first.json", "second.json"]
    assert find_snapshot(REPOSITORY, others, WEIGHTS) == cache
    assert offline == []


def test_a_cached_model_that_lacks_a_wanted_file_is_completed(cache, monkeypatch):
    write(cache, "config.json", "model.safetensors")
    requests = []

    def download(repo_id, *, allow_patterns, local_files_only):
        if not local_files_only:
            requests.append(repo_id)
            write(cache, "wanted.json")
        return str(cache)

    monkeypatch.setattr(hub, "snapshot_download", download)
    for _ in range(2):
        assert find_snapshot(REPOSITORY, ["config.json", "wanted.json"], WEIGHTS) == cache
    assert requests == [REPOSITORY]


def test_a_cached_model_that_lacks_a_wanted_file_is_used_where_there_is_no_network(cache, offline):
    write(cache, "config.json", "model.safetensors")
    assert find_snapshot(REPOSITORY, ["config.json", "wanted.json"], WEIGHTS) == cache


@pytest.mark.parametrize(
    "names", [(), ("config.json",), ("model.safetensors",), ("config.json", "README.md")]
)
def test_half_a_model_in_the_cache_is_none(cache, offline, names):
    write(cache, *names)
    with pytest.raises(ModelUnreachableError, match=r"not cached .*\(no route to host\)") as caught:
        find_snapshot(REPOSITORY, ["config.json"], WEIGHTS)
    assert "\n" not in str(caught.value)


def test_split_weights_count_when_every_part_is_there(cache, offline):
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"a": parts[0], "b": parts[1]}}
    write(cache, "config.json", parts[0])
    (cache / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnreachableError):
        find_snapshot(REPOSITORY, ["config.json"], WEIGHTS)
    write(cache, parts[1])
    assert find_snapshot(REPOSITORY, ["config.json"], WEIGHTS) == cache


def test_what_is_not_cached_is_fetched_safetensors_first(tmp_path, monkeypatch):
    asked = []

    def download(repo_id, *, allow_patterns, local_files_only):
        assert repo_id == REPOSITORY
        if local_files_only:
            raise LocalEntryNotFoundError("nothing cached")
        asked.append(allow_patterns)
        write(tmp_path, "config.json")
        if "pytorch_model*.bin" in allow_patterns:
            write(tmp_path, "pytorch_model.bin")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert find_snapshot(REPOSITORY, ["config.json"], WEIGHTS) == tmp_path
    assert [patterns[1] for patterns in asked] == list(WEIGHTS)


def test_a_repository_without_weights(tmp_path, monkeypatch):
    write(tmp_path, "config.json")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(ModelUnreachableError, match="does not have the files of a model"):
        find_snapshot(REPOSITORY, ["config.json"], WEIGHTS)


RESPONSE = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (GatedRepoError("x\ny", response=RESPONSE), ModelUnreachableError, "accept its terms"),
        (RepositoryNotFoundError("x", response=RESPONSE), UnknownModelError, "no public"),
        (HfHubHTTPError("500 oops\ny", response=RESPONSE), ModelUnreachableError, "500 oops"),
        (OSError("disk full"), ModelUnreachableError, "disk full"),
        (OfflineModeIsEnabled("x"), ModelUnreachableError, "HF_HUB_OFFLINE is set"),
    ],
)
def test_errors_of_the_hub_are_one_line(monkeypatch, error, expected, words):
    def fail(*_, local_files_only, **__):
        raise LocalEntryNotFoundError("nothing cached") if local_files_only else error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(expected, match=words) as caught:
        find_snapshot(REPOSITORY, ["config.json"], WEIGHTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a--b/c..d", "one/two/three"])
def test_what_cannot_be_a_repository(name):
    with pytest.raises(UnknownModelError, match="is not a model id"):
        find_snapshot(name, ["config.json"], WEIGHTS)


def test_an_unreachable_hub_answers_at_once(tmp_path, monkeypatch):
    # The real library against an address where nobody listens: it must not go into its retries,
    # which take 20 s and more. The bound is generous: the answer takes some 0.05 s.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(ModelUnreachableError, match="cannot be fetched") as caught:
        find_snapshot(REPOSITORY, ["config.json"], WEIGHTS)
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
