"""Files of a Hugging Face repository, from the local cache if possible, else from the hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from vitscope.errors import ModelUnreachableError, UnknownModelError, first_line
from vitscope.weights.catalogue import CatalogueEntry
from vitscope.weights.embedded import EMBEDDED_NAME, embedded_available

_CONNECTION_ERRORS: tuple[type[BaseException], ...] = HfHubHTTPError.__bases__
"""OSError and the base error of the HTTP client that this version of huggingface_hub uses."""

WeightsState = Literal["cached", "embedded", "not cached", "by hand"]

_FILES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "transformers": (("config.json",), ("model*.safetensors", "pytorch_model*.bin")),
    "timm": ((), ("model.safetensors",)),
    "open_clip": ((), ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
}
"""Per library: the required file besides the weights, and the names of the weights files."""


def find_snapshot(repo_id: str, others: Sequence[str], weights: Sequence[str]) -> Path:
    """Find or fetch a repository's files."""
    cached = _find_folder(repo_id, others, weights, local=True)
    optional = others[1:]
    if cached and (not optional or any((cached / name).is_file() for name in optional)):
        return cached
    try:
        fetched = _find_folder(repo_id, others, weights, local=False)
    except (UnknownModelError, ModelUnreachableError):
        if cached is None:
            raise
        return cached
    if fetched is None:
        expected = " or ".join([*others[:1], *weights])
        raise ModelUnreachableError(
            f"the repository {repo_id} does not have the files of a model (expected {expected})"
        )
    return fetched


def is_cached(repo_id: str, others: Sequence[str], weights: Sequence[str]) -> bool:
    """Whether a repository's weights are completely in the cache; makes no request."""
    try:
        return _find_folder(repo_id, others, weights, local=True) is not None
    except ModelUnreachableError:
        return False


def _find_folder(
    repo_id: str, others: Sequence[str], weights: Sequence[str], *, local: bool
) -> Path | None:
    for pattern in weights:
        wanted = [*others, pattern, f"{pattern}.index.json"]
        folder = _take_snapshot(repo_id, wanted, local=local)
        if folder is not None and _is_complete(folder, others[:1], pattern):
            return folder
    return None


# None if only the cache was searched and nothing was found.
def _take_snapshot(repo_id: str, patterns: list[str], *, local: bool) -> Path | None:
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns, local_files_only=local))
    except HFValidationError:
        raise UnknownModelError(
            f"{repo_id!r} is not a model id: expected organisation/name, a local folder or a name "
            "from the catalogue"
        ) from None
    except GatedRepoError:
        raise ModelUnreachableError(
            f"{repo_id} is gated: accept its terms on its page on the hub, log in with "
            "`hf auth login`, then run again"
        ) from None
    except RepositoryNotFoundError:
        raise UnknownModelError(
            f"the model hub has no public repository {repo_id}: check the spelling, or log in "
            "with `hf auth login` if it is private"
        ) from None
    except _CONNECTION_ERRORS as error:
        if local and isinstance(error, LocalEntryNotFoundError):
            return None
        # huggingface_hub wraps the actual reason in a paragraph of advice.
        cause = error.__cause__ or error
        offline = isinstance(cause, OfflineModeIsEnabled)
        reason = "HF_HUB_OFFLINE is set" if offline else first_line(cause)
        raise ModelUnreachableError(
            f"{repo_id} is not cached and cannot be fetched ({reason}): connect to the network, or "
            "give the path of a local folder with the model"
        ) from None


def _is_complete(folder: Path, required: Sequence[str], pattern: str) -> bool:
    # An interrupted download may leave only some shards of the weights.
    if not all((folder / name).is_file() for name in required):
        return False
    present = {path.name for path in folder.glob(pattern)}
    for index in folder.glob(f"{pattern}.index.json"):
        parts = set(json.loads(index.read_text())["weight_map"].values())
        if not parts <= present:
            return False
    return bool(present)


def check_reachable(repo_id: str, library: str) -> None:
    """Raise an error for weights that are neither cached nor on the hub; fetches no weights."""
    if not is_cached(repo_id, *_FILES[library]):
        _take_snapshot(repo_id, ["config.json"], local=False)


def find_weights(entry: CatalogueEntry) -> WeightsState:
    """Find where a model's weights would be loaded from."""
    if entry.checkpoint:
        return "by hand"
    if is_cached(entry.repository, *_FILES[entry.library]):
        return "cached"
    if entry.name == EMBEDDED_NAME and embedded_available():
        return "embedded"
    return "not cached"
