"""Models that stay loaded and explain one image at a time."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from vitscope.config import RunConfig
from vitscope.errors import ImageReadError, ResultError, UnsupportedModelError, UsageError
from vitscope.figures.saved import ModelResult
from vitscope.files.printable import printable
from vitscope.images.decoding import open_image
from vitscope.images.in_memory import HeldImage
from vitscope.maps.chosen_target import choose_target
from vitscope.maps.registry import METHODS, check_maps
from vitscope.models.base import ViTAdapter
from vitscope.report.embedded_images import collect_images
from vitscope.results.audit_result import AuditResult
from vitscope.results.verdict import MOODS
from vitscope.runs.explain_loop import explain
from vitscope.runs.judge_run import DEFAULT_MAPS
from vitscope.runs.references import Wanted, read_reference
from vitscope.runs.resources import plain_memory_errors

_MAX_ASPECT = 3
"""Largest aspect ratio of an image: others wait while it runs, and time grows with its square."""


class Explainer:
    """Models by id, and the audits that their verdicts may refer to."""

    def __init__(
        self, models: Mapping[str, ViTAdapter], audits: Sequence[AuditResult], device: str
    ) -> None:
        """Refuse models without an attention row, and move the others to the device to stay."""
        for vit in models.values():
            vit.select_layer(None)
        self._models = {model_id: vit.hashed() for model_id, vit in models.items()}
        place = RunConfig(device=device).resolve_device()
        for vit in models.values():
            with plain_memory_errors(place, 1), vit.undisturbed():
                vit.module.to(place)
        self._maps = {model_id: _choose_maps(vit) for model_id, vit in models.items()}
        self._audits = sorted(audits, key=lambda audit: -audit.summary.data.num_images)
        self._device = device
        self._find_reference = cache(self._search_reference)

    @property
    def layers(self) -> dict[str, list[int]]:
        """Layers of each model that can be explained."""
        return {model_id: sorted(vit.blocks) for model_id, vit in self._models.items()}

    def explain(self, model_id: str, layer: int, image: bytes) -> dict[str, Any]:
        """What the report says of an explained image, with all its maps; `image` is its file."""
        if model_id not in self._models:
            raise UsageError(
                f"model {printable(model_id)[:60]} is not served: choose from "
                f"{', '.join(self._models)}"
            )
        vit = self._models[model_id]
        layer = vit.select_layer(layer)
        _check_shape(image)
        held = HeldImage((image,), 0, "the image", preprocessed=False, from_dataset=False)
        explanation = explain(
            vit,
            [held],
            layer=layer,
            maps=self._maps[model_id],
            reference=self._find_reference(model_id, layer),
            device=self._device,
        )
        mood = MOODS[explanation.summary.images[0].verdict.status]
        return collect_images([ModelResult(explanation)]) | {"mood": mood}

    def _search_reference(self, model_id: str, layer: int) -> AuditResult | None:
        # The largest audit that fits.
        vit = self._models[model_id]
        assert vit.weights_hash is not None
        wanted = Wanted(
            weights_hash=vit.weights_hash,
            behaviour=vit.describe_behaviour(),
            layer=layer,
            preprocessing=vit.preprocessing,
        )
        for audit in self._audits:
            with suppress(ResultError, UsageError):
                read_reference(audit, wanted)
                return audit
        return None


def _check_shape(image: bytes) -> None:
    try:
        with open_image(image) as opened:
            size = opened.size
    except ImageReadError:
        return  # the run says why
    if max(size) > _MAX_ASPECT * min(size):
        raise ImageReadError(
            f"{size[0]} x {size[1]} px has an aspect ratio above {_MAX_ASPECT}: crop it to the "
            "part to explain"
        )


def _choose_maps(vit: ViTAdapter) -> list[str]:
    # Those that take few passes and can be made of one image alone.
    target = choose_target(vit, None, vit.preprocessing, has_references=False)
    names = []
    for name in DEFAULT_MAPS:
        with suppress(UnsupportedModelError, UsageError):
            check_maps([METHODS[name]], target, has_references=False)
            names.append(name)
    return names
