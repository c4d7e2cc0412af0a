"""Where a model's weights are, told from the cache alone."""

import json
import socket
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download
from open_clip import constants as open_clip_constants

from vitscope.adapters import timm, transformers, transformers_loading
from vitscope.errors import ModelUnreachableError
from vitscope.weights import embedded, hub
from vitscope.weights.catalogue import CATALOGUE
from vitscope.weights.hub import find_weights


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a request was made")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Puts files of a repository into an otherwise empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def put(repository, *names):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text("a" * 40)
        for name in names:
            (snapshot / name).write_text("{}")
        return snapshot

    return put


@pytest.mark.parametrize("name", [n for n, e in CATALOGUE.items() if not e.checkpoint])
def test_a_model_is_cached_once_its_repository_is(put, monkeypatch, name):
    monkeypatch.setattr(hub, "embedded_available", lambda: False)
    entry = CATALOGUE[name]
    assert find_weights(entry) == "not cached"
    weights = "open_clip_model.safetensors" if entry.library == "open_clip" else "model.safetensors"
    put(entry.repository, "config.json", weights)
    assert find_weights(entry) == "cached"


@pytest.mark.parametrize(
    ("name", "files", "found"),
    [
        ("dinov2-base", ["config.json", "pytorch_model.bin"], "cached"),
        ("dinov2-base", ["model.safetensors"], "not cached"),
        ("dinov2-base", ["config.json"], "not cached"),
        ("dinov2-base", ["config.json", "open_clip_model.safetensors"], "not cached"),
        ("dino-s16", ["model.safetensors"], "cached"),
        ("dino-s16", ["pytorch_model.bin"], "not cached"),
        ("openclip-b16", ["open_clip_pytorch_model.bin"], "cached"),
        ("openclip-b16", ["model.safetensors", "config.json"], "not cached"),
    ],
)
def test_the_files_that_the_adapter_would_load_are_asked_for(put, name, files, found):
    put(CATALOGUE[name].repository, *files)
    assert find_weights(CATALOGUE[name]) == found


def test_the_files_are_those_of_the_adapters():
    others, weights = hub._FILES["transformers"]
    assert (others, weights) == ((transformers_loading.CONFIG_FILE,), transformers._WEIGHTS)
    assert hub._FILES["timm"] == ((), (timm._WEIGHTS_FILE,))
    names = (open_clip_constants.HF_SAFE_WEIGHTS_NAME, open_clip_constants.HF_WEIGHTS_NAME)
    assert hub._FILES["open_clip"] == ((), names)


def test_half_a_download_is_not_cached(put):
    entry = CATALOGUE["dinov2-giant"]
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    snapshot = put(entry.repository, "config.json", parts[0])
    index = {"weight_map": dict(zip("ab", parts, strict=True))}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_weights(entry) == "not cached"
    put(entry.repository, parts[1])
    assert find_weights(entry) == "cached"


def test_a_file_whose_content_was_deleted_is_not_cached(put):
    entry = CATALOGUE["mae-base"]
    snapshot = put(entry.repository)
    (snapshot / "model.safetensors").symlink_to(Path("..") / ".." / "blobs" / "gone")
    assert find_weights(entry) == "not cached"


def test_a_cache_that_cannot_be_read_holds_nothing(monkeypatch):
    def fail(*arguments, **options):
        raise PermissionError("permission denied")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ModelUnreachableError):
        hub.find_snapshot("timm/vit_base_patch16_224.mae", (), ("model.safetensors",))
    assert find_weights(CATALOGUE["mae-base"]) == "not cached"


@pytest.mark.parametrize("name", [n for n, e in CATALOGUE.items() if e.checkpoint])
def test_a_checkpoint_is_fetched_by_hand(put, name):
    assert find_weights(CATALOGUE[name]) == "by hand"


def test_only_the_embedded_model_is_embedded(put, monkeypatch):
    monkeypatch.setattr(hub, "embedded_available", lambda: True)
    found = {name: find_weights(entry) for name, entry in CATALOGUE.items()}
    assert [n for n, state in found.items() if state == "embedded"] == ["dinov2-small"]
    put(CATALOGUE["dinov2-small"].repository, "config.json", "model.safetensors")
    assert find_weights(CATALOGUE["dinov2-small"]) == "cached"
    assert embedded.EMBEDDED_NAME == "dinov2-small"


def test_the_fixture_s_cache_is_one_that_the_hubs_library_reads(put):
    snapshot = put("someone/model", "model.safetensors")
    assert Path(snapshot_download("someone/model", local_files_only=True)) == snapshot
