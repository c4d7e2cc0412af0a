"""What the bits of an audit depend on, written down so that nothing else is put in its place."""

import json
import os
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from vitscope.config import AuditConfig
from vitscope.files.workspace import Plan
from vitscope.pictures.addresses import PictureAddress
from vitscope.pictures.images import ImageSet
from vitscope.results.manifest import Manifest
from vitscope.runs.versions import list_versions

_CHOICES = ("batch_size", "dtype", "shard_size")
"""Settings that `auto` leaves to the machine, as it is when a run begins."""

_SETTINGS = (*_CHOICES, "seed", "proven", "features", "gallery", "shard")


def make_plan(
    whole: ImageSet,
    images: ImageSet,
    config: AuditConfig,
    manifest: Manifest,
    *,
    device: torch.device,
    pass_size: int | None,
) -> Plan:
    """All that the bits of a result depend on.

    Args:
        whole: The pictures, before one shard of a job array is cut from them.
        images: The pictures of the run.
        config: Settings, with nothing left to choose that changes a bit.
        manifest: What the result is of.
        device: Where the model runs.
        pass_size: Pictures that go through it at once; None if all of a batch do.

    Returns:
        The plan, as JSON gives it back.
    """
    settings = {name: getattr(config, name) for name in _SETTINGS}
    plan = {
        "num_pictures": len(images),
        "pictures": digest_files(images),
        "names": digest_names(whole),
        "described": images.described,
        **settings,
        "result": asdict(manifest),
        "device": device.type,
        "pass_size": pass_size,
        "versions": list_versions(),
    }
    found: dict[str, Any] = json.loads(json.dumps(plan))
    return found


def adopt_choices(config: AuditConfig, earlier: Plan | None) -> AuditConfig:
    """Leave to an earlier run what was left to the machine, which may choose otherwise today.

    Args:
        config: What is asked for.
        earlier: The plan of the run that is gone on with, or of the rank that leads; None if there
            is none.

    Returns:
        The same with the earlier choices in the place of `auto`.
    """
    if earlier is None:
        return config
    chosen = {
        name: earlier[name]
        for name in _CHOICES
        if getattr(config, name) == "auto" and name in earlier
    }
    return replace(config, **chosen)


def digest_files(images: ImageSet) -> str:
    """Tell pictures, and masks, by where they lie and by what shows that a file was changed.

    Args:
        images: The pictures.

    Returns:
        BLAKE2b of absolute paths, sizes and times of change, or of addresses within archives and
        stores; hexadecimal.
    """
    digest = blake2b(digest_size=16)
    for address in [*images.addresses, *images.masks]:
        digest.update(_stamp(address) + b"\0")
    return digest.hexdigest()


def digest_names(images: ImageSet) -> str:
    """Tell a list of pictures by their names, which are the same on machines that share them.

    Args:
        images: The pictures.

    Returns:
        BLAKE2b of the names; hexadecimal.
    """
    digest = blake2b(digest_size=16)
    for index in range(len(images)):
        digest.update(images.name_picture(index).encode() + b"\0")
    return digest.hexdigest()


def _stamp(address: PictureAddress | None) -> bytes:
    if not isinstance(address, Path):
        return repr(address).encode(errors="backslashreplace")
    name = os.fsencode(address.absolute())
    try:
        status = address.stat()
    except (OSError, ValueError):
        return name  # it cannot be read, as the run will say
    return name + f" {status.st_size} {status.st_mtime_ns}".encode()
