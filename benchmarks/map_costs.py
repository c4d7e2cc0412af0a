"""What does each map cost in forward passes, and a judge's curve by other packages?"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from captum.attr import FeatureAblation
from pytorch_grad_cam.metrics.perturbation_confidence import (
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from torch import Tensor, nn
from torchcam.metrics import DeletionInsertionMetric

from benchmarks.images import decoded_images
from benchmarks.measuring import Spread, alternate, compare
from benchmarks.models import load_dinov2
from benchmarks.page import Section, Table
from benchmarks.settings import Plan, Settings
from vitscope.maps.method import MapInput
from vitscope.maps.references import NUM_TRACED, References, make_references
from vitscope.maps.registry import METHODS
from vitscope.maps.removal import REMOVALS
from vitscope.maps.targets import explain_self
from vitscope.metrics.faithfulness import NUM_STEPS, compute_area, make_prefixes
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.memory import CPU_TOKENS

_NUM_REFERENCES = 8
_BY_SETS = ("integrated_gradients", "single_deletion", "random_keep", "tis", "vit_cx")
"""Maps of dozens of passes or more, which are made of one image in one round."""

_TOGETHER = (
    ("attention", "contribution_norm", "share", "rollout", "rollout_norm"),
    ("traced", "traced_mean"),
    ("chefer", "gradient_input"),
    ("cdam", "gradcam"),
)
"""Maps that share a pass if they are made of the same images."""


_FULL = Plan("small", 224, images=1, rounds=3), Plan("small", 112, images=8)
_TINY = Plan("tiny", 32, images=1), Plan("tiny", 32, images=2)
"""Of maps, and of those of many passes and the judge."""


def measure(settings: Settings) -> Section:
    """Time of each map over that of the model's forward pass, and of a judge's curves."""
    plan, of_sets = _TINY if settings.tiny else _FULL
    vit = load_dinov2(plan.model)
    few = _load_input(vit, plan, settings)
    many = _load_input(vit, of_sets, settings)
    one = many.take(1)
    rows = [*_time_maps(few, plan.rounds), *_time_sets(many, one)]
    num_patches = len(one.make().patches)
    return Section(
        title="What maps cost, and the judge's curves",
        how=(
            f"dinov2-{plan.model} in float32, {NUM_TRACED} references. A forward pass is that of "
            f"the bare model in inference mode on the same image of {plan.size} px, {plan.rounds} "
            f"rounds. Maps of many passes are made once, of an image of {of_sets.size} px, P = "
            f"{num_patches}; there a forward pass is an image's share of one of {of_sets.images} "
            "images. *stated* is what the method says of itself. What is run on references alone, "
            "once for all images, is not counted. Below, both curves of one map, "
            f"{2 * NUM_STEPS} sets of black patches, and the deletion of each patch, with the same "
            "image, map and sets, by vitscope and by other packages around the same model. Seconds "
            "are the processor's, because other processes ran on the machine."
        ),
        tables=[
            Table(("maps", "stated", "forward passes"), rows),
            Table(
                ("numbers", "route", "seconds / vitscope's", "differ by"),
                _time_curves(one, plan.rounds),
            ),
        ],
        notes=(
            "pytorch-grad-cam runs one set at a time, and the whole image beside each; captum "
            "runs one at a time unless asked for more, torch-cam 32, vitscope as many as have "
            f"{CPU_TOKENS} tokens",
            "vit_cx groups channels by their cosine: random weights leave more groups than trained "
            "ones",
            "pytorch-grad-cam removes a patch at 0 % too: the first point of its curves is taken "
            "from the image itself",
        ),
    )


@dataclass(frozen=True)
class _Images:
    """Images and what they are compared with."""

    vit: ViTAdapter
    pixels: Pixels
    references: References

    def take(self, count: int) -> "_Images":
        return _Images(self.vit, self.pixels[:count], self.references)

    def make(self) -> MapInput:
        """An input of which nothing has been computed yet."""
        return MapInput(
            vit=self.vit, pixels=self.pixels, choice=explain_self, references=self.references
        )

    def compute(self, names: Iterable[str]) -> None:
        given = self.make()
        for name in names:
            METHODS[name].compute(given)

    def run(self) -> None:
        with torch.inference_mode():
            self.vit.run(self.pixels)


def _load_input(vit: ViTAdapter, plan: Plan, settings: Settings) -> _Images:
    total = plan.images + _NUM_REFERENCES
    with decoded_images(
        vit, replace(plan, images=total, batch_size=total), settings.images
    ) as decoded:
        pixels = decoded.batches[0].pixels
    references = make_references(vit, [pixels[plan.images :]])
    assert len(references.traced[1])  # made when first asked for, once for all images
    return _Images(vit, pixels[: plan.images], references)


def _time_maps(images: _Images, rounds: int) -> list[list[str]]:
    groups = [(name,) for name in METHODS if name not in _BY_SETS]
    groups += _TOGETHER
    return [[_name(group), _state(group), _time_map(images, group, rounds)] for group in groups]


def _time_map(images: _Images, group: tuple[str, ...], rounds: int) -> str:
    contenders = {"forward": images.run, "maps": partial(images.compute, group)}
    seconds = alternate(contenders, rounds, clock=time.process_time)
    return _write(compare(seconds["maps"], seconds["forward"]))


def _name(group: tuple[str, ...]) -> str:
    return ", ".join(group)


def _state(group: tuple[str, ...]) -> str:
    return METHODS[group[0]].cost if len(group) == 1 else "of one"


def _write(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _time_sets(many: _Images, one: _Images) -> list[list[str]]:
    rows = []
    for name in _BY_SETS:
        before, seconds, after = map(_time, (many.run, partial(one.compute, [name]), many.run))
        ratio = seconds / ((before + after) / 2 / len(many.pixels))
        rows.append([name, METHODS[name].cost, f"{ratio:.0f}"])
    return rows


def _time(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _time_curves(one: _Images, rounds: int) -> list[list[str]]:
    given = one.make()
    values = METHODS["contribution_norm"].compute(given).values[0]
    of_patches = values[given.patches.start : given.patches.stop]
    judged = _Judged(given, of_patches.to(given.pixels))
    rows: list[list[str]] = []
    for title, routes in (
        ("deletion and insertion", judged.areas),
        ("deletion of each patch", judged.deletions),
    ):
        numbers: dict[str, np.ndarray] = {}
        contenders = {name: partial(_keep, numbers, name, run) for name, run in routes.items()}
        seconds = alternate(contenders, rounds, clock=time.process_time)
        own = next(iter(routes))
        for name, found in numbers.items():
            ratio = _write(compare(seconds[name], seconds[own])) if name != own else "1"
            difference = np.abs(found - numbers[own]).max()
            rows.append([title, name, ratio, "" if name == own else f"{difference:.0e}"])
    return rows


def _keep(found: dict[str, np.ndarray], name: str, run: Callable[[], np.ndarray]) -> None:
    found[name] = run()


class _Judged:
    """Routes to the same numbers: the target without sets of patches, which are black."""

    def __init__(self, given: MapInput, values: Tensor) -> None:
        self._given = given
        self._values = values
        mean, std = (
            given.pixels.new_tensor(levels).reshape(1, 3, 1, 1)
            for levels in (given.vit.preprocessing.mean, given.vit.preprocessing.std)
        )
        self._black = (-mean / std).expand(1, -1, *given.pixels.shape[-2:])
        (rows, columns), (height, width) = given.layout.grid, given.pixels.shape[-2:]
        self._patch = (height // rows, width // columns)

    @property
    def areas(self) -> Mapping[str, Callable[[], np.ndarray]]:
        """Areas under the curves of deletion and insertion."""
        return {
            "vitscope": self._judge,
            "torch-cam's DeletionInsertionMetric": self._use_torchcam,
            "pytorch-grad-cam's RemoveMostRelevantFirst": self._use_grad_cam,
        }

    @property
    def deletions(self) -> Mapping[str, Callable[[], np.ndarray]]:
        """What each patch's deletion takes from the target."""
        at_once = CPU_TOKENS // self._given.num_tokens
        return {
            "vitscope": self._delete_each,
            "captum's FeatureAblation": self._ablate,
            f"captum's FeatureAblation, {at_once} at once": lambda: self._ablate(at_once),
        }

    def _judge(self) -> np.ndarray:
        order = np.argsort(-self._values.numpy())
        # Neither the whole image nor one without any patch is run twice.
        sets = np.concatenate([make_prefixes(order), make_prefixes(order[::-1])[1:-1]])
        deletion, backwards = np.split(self._measure(sets), [NUM_STEPS + 1])
        insertion = np.concatenate([deletion[-1:], backwards[::-1], deletion[:1]])
        return _find_areas(deletion, insertion)

    def _delete_each(self) -> np.ndarray:
        num = len(self._values)
        found = self._measure(np.concatenate([np.zeros((1, num), bool), np.eye(num, dtype=bool)]))
        return found[0] - found[1:]

    def _measure(self, sets: np.ndarray) -> np.ndarray:
        return REMOVALS["black"].measure(self._given, 0, torch.from_numpy(sets)).double().numpy()

    def _score(self, pixels: Pixels) -> Tensor:
        with torch.inference_mode():
            return self._given.target.measure(self._given.vit.run(pixels))

    def _enlarge(self, of_patches: Tensor) -> Tensor:
        grid = of_patches.reshape(1, *self._given.layout.grid)
        return grid.repeat_interleave(self._patch[0], 1).repeat_interleave(self._patch[1], 2)

    def _use_torchcam(self) -> np.ndarray:
        extractor = _Extractor(_Scored(self._score), self._enlarge(self._values))
        metric = DeletionInsertionMetric(extractor, steps=NUM_STEPS, baseline=self._black)
        metric.update(self._given.pixels, class_idx=0)
        return np.array([metric.deletion, metric.insertion])

    def _use_grad_cam(self) -> np.ndarray:
        cams, model = self._enlarge(self._values).numpy(), _Scored(self._score)
        own = float(self._given.scores[0])

        def blacken(pixels: Tensor, kept: Tensor) -> Tensor:
            return torch.where(kept.bool(), pixels, self._black[0])

        def follow(remove: Callable[..., object]) -> np.ndarray:
            curve = [own]
            for step in range(1, NUM_STEPS + 1):
                metric = PerturbationConfidenceMetric(remove(100 * (1 - step / NUM_STEPS), blacken))
                (change,) = metric(self._given.pixels, cams, [lambda out: out[0]], model)
                curve.append(own + float(change))
            return np.array(curve)

        backwards = follow(RemoveLeastRelevantFirst)
        return _find_areas(follow(RemoveMostRelevantFirst), backwards[::-1])

    def _ablate(self, at_once: int = 1) -> np.ndarray:
        features = self._enlarge(torch.arange(len(self._values))).unsqueeze(0)
        with torch.inference_mode():
            found = FeatureAblation(self._score).attribute(
                self._given.pixels,
                baselines=self._black,
                feature_mask=features,
                perturbations_per_eval=at_once,
            )
        return found[0, 0, :: self._patch[0], :: self._patch[1]].flatten().numpy()


def _find_areas(deletion: np.ndarray, insertion: np.ndarray) -> np.ndarray:
    return np.array([compute_area(deletion), compute_area(insertion)])


class _Scored(nn.Module):
    """The target as a model with one class."""

    def __init__(self, score: Callable[[Pixels], Tensor]) -> None:
        super().__init__()
        self._score = score

    def forward(self, pixels: Pixels) -> Tensor:
        return self._score(pixels).unsqueeze(1)


class _Extractor:
    """A map as torch-cam's metrics ask for it."""

    def __init__(self, model: nn.Module, cam: Tensor) -> None:
        self.model = model
        self._cam = cam

    def __call__(self, *_: object, **__: object) -> list[Tensor]:
        return [self._cam]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> nullcontext[None]:
        return nullcontext()
