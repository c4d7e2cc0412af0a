"""Measure a trained cell: accuracy, audit, transfer to unseen classes, maps."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from data import PREPROCESSING, make_test_set, make_training_set
from plan import Cell, Preset
from safetensors.torch import save_file
from training import measure_accuracy, train
from variants import describe_costs

from vitscope import audit, judge, one_shot, wrap_model

JUDGED_MAPS = ("contribution_norm", "rollout", "traced", "traced_mean")


def run_cell(cell: Cell, preset: Preset, out: Path, device: str) -> None:
    """Train and measure a cell; its folder is complete when `cell.json` is there."""
    folder = out / "cells" / cell.name
    if (folder / "cell.json").exists():
        return
    test, unseen = out / "scenes" / "test", out / "scenes" / "unseen"
    torch.set_num_threads(1)
    model = train(cell, preset, folder, test / "images", torch.device(device))
    numbers = {
        "train_accuracy": measure_accuracy(
            model, *make_training_set(cell.task, cell.num_images, cell.seed, preset.noise)
        ),
        "accuracy": measure_accuracy(
            model, *make_test_set(cell.task, preset.classified_images, preset.noise)
        ),
        # The same glyphs on backgrounds that give nothing away.
        "needle_accuracy": measure_accuracy(
            model, *make_test_set("needle", preset.classified_images, preset.noise)
        ),
    }
    parameters, flops = describe_costs(model.backbone)
    numbers |= {"parameters": parameters, "flops": flops}
    save_file(model.state_dict(), folder / "model.safetensors")
    vit = wrap_model(model.backbone, preprocessing=PREPROCESSING, model_id=cell.name)
    settings = {"device": device, "num_workers": 0}
    audit(
        vit,
        test / "images",
        limit=preset.audit_images,
        trace=preset.traced_images,
        gallery=8,
        features="drop",
        out=folder / "audit",
        overwrite=True,
        **settings,
    )
    one_shot(vit, unseen, out=folder / "one-shot", overwrite=True, **settings)
    if preset.judges(cell):
        judge(
            vit,
            test / "images",
            limit=preset.judged_images,
            maps=JUDGED_MAPS,
            masks=test / "masks",
            out=folder / "judged",
            overwrite=True,
            **settings,
        )
    written = folder / "cell.json.part"
    written.write_text(json.dumps({"cell": asdict(cell), **numbers}, indent=1))
    written.replace(folder / "cell.json")
