"""Shared by the tests of reproductions: a small plan, and how to run one."""

from vitscope.config import ReproductionConfig
from vitscope.reproduction.planned_models import plan_reproduction
from vitscope.reproduction.run import Reproduction
from vitscope.reproduction.smoke import plan_smoke

CONFIG = ReproductionConfig(draws=2, examples=1)
NAME = "dinov2-small-reg"
DONE = {"images": "done", "imagenet": "done", "one-shot": "done", "maps": "done"}
KEPT = dict.fromkeys(DONE, "kept")


def silent(*_stage):
    return lambda *_progress: None


def plan(families="dinov2-reg", sizes="s"):
    return plan_smoke(plan_reproduction(families.split(","), sizes.split(",")))


def start(out, sets, config=CONFIG, *, models=None, images="main", imagenet: str | None = "a"):
    return Reproduction(
        plan() if models is None else models,
        out,
        config,
        images=sets / images,
        imagenet=None if imagenet is None else sets / imagenet,
    )


def run(*args, **kwargs):
    return {o.stage: o for o in start(*args, **kwargs).execute(silent)}


def statuses(*args, **kwargs):
    return {stage: o.status for stage, o in run(*args, **kwargs).items()}
