"""What a caller asks for as a target: a name, a class, a vector or its file, a second image."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitscope.decomposition import check_pixels
from vitscope.errors import ImageReadError, UnsupportedModelError, UsageError
from vitscope.files.printable import printable, printable_path
from vitscope.images.image_set import load_pixels
from vitscope.images.preprocessing import Preprocessing
from vitscope.images.search import find_images
from vitscope.maps.method import MapInput, MapMethod
from vitscope.maps.references import References
from vitscope.maps.targets import (
    TARGETS,
    TargetChoice,
    explain_direction,
    explain_image,
    explain_logit,
    explain_self,
    name_logit,
)
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.classifier import Classifier
from vitscope.weights.catalogue import describe_near_matches

TargetLike = str | Path | Image.Image | Tensor | TargetChoice
"""What a caller may give as a target (docs/recipes/maps.md)."""

LOGIT, IMAGE = "logit", "image"
"""Words before the colon: the logit of a class, and a second image."""

NAMED_TARGETS = f"{', '.join(TARGETS)}, {LOGIT}, {LOGIT}:CLASS, {IMAGE}:PATH"
_EXPECTED = f"{NAMED_TARGETS}, an image, a vector as tensor, or a function of vitscope.maps.targets"


@dataclass(frozen=True, eq=False, kw_only=True)
class ChosenTarget:
    """A target, before an image is seen."""

    # the model, whose output the target is a number of: the global feature, or logits
    vit: ViTAdapter
    choose: TargetChoice  # makes the target of images from their outputs
    told: str  # what it is, in results and plans
    compares: bool = False  # whether it needs the mean of references
    # whether the model is one with weights beside those of the vision tower
    has_classifier: bool = False

    def make_input(
        self,
        pixels: Pixels,
        references: References | None,
        methods: Iterable[MapMethod],
        **settings: Any,
    ) -> MapInput:
        """What methods get to explain this of images; `settings` are other fields of `MapInput`."""
        return MapInput(
            vit=self.vit,
            pixels=pixels,
            choice=self.choose,
            references=references,
            keeps_attentions=any(method.reads_attentions for method in methods),
            **settings,
        )

    def describe(self) -> dict[str, str]:
        """What it is, for plans and provenance, with a digest of its classifier."""
        if not self.has_classifier:
            return {"target": self.told}
        parts = self.vit.hashed().weights_hash, self.vit.describe_behaviour().digest
        digest = blake2b(" ".join(map(str, parts)).encode(), digest_size=16).hexdigest()
        return {"target": self.told, "classifier_hash": digest}


def choose_target(
    vit: ViTAdapter,
    target: TargetLike | None,
    preprocessing: Preprocessing,
    *,
    has_references: bool,
) -> ChosenTarget:
    """The target that was asked for, or the default; a second image is prepared like the others."""
    if target is None:
        target = "self" if has_references else "cosine"
    target = next((name for name, choice in TARGETS.items() if choice is target), target)
    if isinstance(target, str):
        return _find_target(vit, target, preprocessing)
    if isinstance(target, Tensor) and target.ndim < 3:
        return _choose_vector(vit, target)
    if isinstance(target, Path | Image.Image | Tensor):
        return _choose_image(vit, target, preprocessing)
    if not callable(target):
        raise UsageError(f"target was given as {type(target).__name__}: expected {_EXPECTED}")
    told = getattr(target, "__qualname__", repr(target))
    return ChosenTarget(vit=vit, choose=target, told=told)


def is_comparable(target: TargetLike | None) -> bool:
    """Whether two targets of that description are the same: not so for functions."""
    return not callable(target) or target in TARGETS.values()


def is_named(text: str) -> bool:
    """Whether a text names a target; it may be a file otherwise."""
    word, _, rest = text.partition(":")
    return text in {*TARGETS, LOGIT} or (word in {LOGIT, IMAGE} and rest != "")


def _find_target(vit: ViTAdapter, text: str, preprocessing: Preprocessing) -> ChosenTarget:
    if text in TARGETS:
        choose = TARGETS[text]
        return ChosenTarget(vit=vit, choose=choose, told=text, compares=choose is explain_self)
    if not is_named(text):
        raise UsageError(f"no target is called {text!r}: expected {_EXPECTED}")
    word, _, rest = text.partition(":")
    return _choose_image(vit, rest, preprocessing) if word == IMAGE else _choose_logit(vit, rest)


def _choose_vector(vit: ViTAdapter, vector: Tensor) -> ChosenTarget:
    choose = explain_direction(vector)
    choose(vit.embed(torch.zeros(1, vit.info.embed_dim)), None)  # refuses another width
    return ChosenTarget(vit=vit, choose=choose, told=f"vector {_digest(vector)}")


def _choose_image(
    vit: ViTAdapter, image: str | Path | Image.Image | Tensor, preprocessing: Preprocessing
) -> ChosenTarget:
    name = IMAGE
    if isinstance(image, str | Path):
        name = f"{IMAGE} {printable(PurePosixPath(str(image).partition('?')[0]).name)}"
    if isinstance(image, Tensor):
        pixels = image if image.ndim == 4 else image.unsqueeze(0)
        check_pixels(pixels)
        if len(pixels) > 1:
            raise UsageError(f"the target was given as {len(pixels)} images: expected one")
    elif preprocessing.pipeline == "given":
        raise UsageError(
            "the images are preprocessed, so that the second image of the target cannot be "
            "prepared like them: give it preprocessed too, as a tensor"
        )
    else:
        try:
            pixels = load_pixels(image, preprocessing).unsqueeze(0)
        except ImageReadError as error:
            raise ImageReadError(f"the target {name} cannot be read: {error}") from None
    choose = explain_image(pixels, name)
    return ChosenTarget(vit=vit, choose=choose, told=f"{name} {_digest(pixels)}", compares=True)


def _choose_logit(vit: ViTAdapter, text: str) -> ChosenTarget:
    classifier = _find_classifier(vit)
    index = _find_class(classifier, text, vit.info.id) if text else None
    return ChosenTarget(
        vit=replace(
            vit,
            module=classifier.module,
            run=classifier.run,
            embed_row=partial(_embed_logits, vit, classifier),
            weights_hash=vit.weights_hash if classifier.module is vit.module else None,
        ),
        choose=explain_logit(index, classifier.names),
        has_classifier=classifier.module is not vit.module,
        told=LOGIT if index is None else name_logit(index, classifier.names),
    )


def _find_classifier(vit: ViTAdapter) -> Classifier:
    found = vit.classifier
    if found is None:
        raise UnsupportedModelError(
            f"{vit.info.id} has no classifier, so there are no logits to explain: choose another "
            "target, or a model that was trained to classify"
        )
    if not found.num_classes:
        raise UnsupportedModelError(
            f"the head of {vit.info.id}, a {type(found.head).__name__}, has no nn.Linear: vitscope "
            "does not know how many classes it has; choose another target"
        )
    if found.is_untrained:
        raise UnsupportedModelError(
            f"the classifier of {vit.info.id} has biases of zero, as a new one has before it is "
            "trained: load the weights that were trained with it, or choose another target"
        )
    return found


def _find_class(classifier: Classifier, text: str, model_id: str) -> int:
    known, count = classifier.names, classifier.num_classes
    if text.isdecimal():
        if int(text) < count:
            return int(text)
        raise UsageError(
            f"target {LOGIT}:{text}: expected a class of {model_id}, from 0 to {count - 1}"
        )
    found = [index for index, name in known.items() if name.casefold() == text.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"target {LOGIT}:{text}: classes {', '.join(map(str, found))} of {model_id} have this "
            "name: give a number"
        )
    near = describe_near_matches(text, known.values()) if known else "; it knows no names"
    raise UsageError(
        f"target {LOGIT}:{text}: {model_id} has no class of this name, expected one or a number "
        f"from 0 to {count - 1}{near}"
    )


def _embed_logits(
    vit: ViTAdapter, classifier: Classifier, rows: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch class"]:
    if not classifier.reads_feature:
        raise UnsupportedModelError(
            f"the classifier of {vit.info.id} reads several tokens together, so that a single "
            "token has no logit, which legrad needs: choose another map"
        )
    logits: Tensor = classifier.head(vit.embed_row(rows))
    return logits


def _digest(tensor: Tensor) -> str:
    return blake2b(tensor.detach().double().cpu().numpy().tobytes(), digest_size=8).hexdigest()


_read_pickle = partial(torch.load, map_location="cpu", weights_only=True)
_READERS: dict[str, Callable[[Path], Any]] = {  # none of which runs code
    ".safetensors": load_file,
    ".npy": partial(np.load, allow_pickle=False),
    ".pt": _read_pickle,
    ".pth": _read_pickle,
}


def open_target(text: str) -> str | Tensor:
    """A target as the command line takes it: a name, or the file of a vector."""
    if not is_named(text):
        return read_vector(Path(text))
    word, _, rest = text.partition(":")
    if word == IMAGE:
        find_images(rest)  # refuses early what is not there
    return text


def read_vector(path: Path) -> Tensor:
    """Read the one vector of a file: .safetensors, .npy or .pt."""
    name = printable_path(path)
    if path.suffix not in _READERS or not path.is_file():
        raise UsageError(
            f"target {name}: expected {NAMED_TARGETS}, or a file with one vector "
            "(.safetensors, .npy, .pt)"
        )
    try:
        content = _READERS[path.suffix](path)
    except UnpicklingError:
        raise UsageError(
            f"target {name} is not a plain file of a tensor, and code in it is never executed: "
            "save the vector alone"
        ) from None
    except (OSError, ValueError, EOFError, RuntimeError, SafetensorError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"target {name} cannot be read: {reason}") from None
    return _take_vector(content, name)


def _take_vector(content: Any, name: str) -> Tensor:
    if isinstance(content, dict):
        if len(content) != 1:
            raise UsageError(f"target {name} holds {len(content)} tensors: expected one")
        (content,) = content.values()
    if isinstance(content, np.ndarray) and content.dtype.kind == "f":
        content = torch.from_numpy(content)
    if not isinstance(content, Tensor) or not content.is_floating_point():
        raise UsageError(f"target {name} is no tensor of floating-point numbers")
    vector = content.detach().squeeze()
    if vector.ndim != 1 or not vector.isfinite().all():
        raise UsageError(
            f"target {name} has the shape {tuple(content.shape)}: expected one vector of finite "
            "numbers"
        )
    return vector
