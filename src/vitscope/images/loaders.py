"""DataLoaders: the items that they would give out, asked for one at a time."""

from collections.abc import Callable, Mapping
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from vitscope.errors import ImageReadError, UsageError


class LoadedItems:
    """The items of a DataLoader's dataset, each collated as a batch of one."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.dataset: Any = loader.dataset
        self._collate: Callable[[Any], Any] = loader.collate_fn
        self._batched = loader.batch_sampler is not None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        try:
            batch = self._collate([item] if self._batched else item)
        except TypeError as error:
            reason = str(error).partition("\n")[0]
            raise ImageReadError(
                f"its DataLoader cannot collate it ({reason}): give the dataset itself, "
                "loader.dataset"
            ) from None
        return _first(batch) if self._batched else batch


def _first(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {name: _take(values) for name, values in batch.items()}
    return [_take(values) for values in batch] if isinstance(batch, (tuple, list)) else batch[0]


def _take(values: Any) -> Any:
    if isinstance(values, Mapping):
        return _first(values)
    try:
        return values[0]
    except (TypeError, IndexError):  # of the batch as a whole
        return values


def list_indices(loader: DataLoader[Any]) -> list[int]:
    """Indices chosen by its sampler, in the dataset's order; the caller's random state is kept."""
    batches = loader.batch_sampler
    sampler = loader.sampler if batches is None else batches
    owners = (loader, loader.sampler, batches, getattr(batches, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    generators = [one for one in found if isinstance(one, torch.Generator)]
    states = [one.get_state() for one in generators]
    chosen = sampler if batches is None else chain.from_iterable(batches)
    # A sampler of unknown length need not end.
    most = _find_length(loader.dataset) if _find_length(sampler) is None else None
    try:
        with torch.random.fork_rng(devices=[]):
            indices = list(islice(chosen, None if most is None else most + 1))
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
    if most is not None and len(indices) > most:
        raise UsageError(
            f"the sampler of the DataLoader gives more indices than its dataset has items, {most}, "
            "and has no length: give the dataset itself, loader.dataset, or a sampler with a length"
        )
    return sorted(set(indices))


def _find_length(given: Any) -> int | None:
    try:
        return len(given)
    except (TypeError, NotImplementedError):
        return None
