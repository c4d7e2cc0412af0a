"""Shared by the tests of audits during training: a tiny trainable model, and its reference."""

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitscope import AuditConfig, audit, wrap_model
from vitscope.training.curves import list_numbers

CONFIG = AuditConfig(gallery=0, batch_size=8, device="cpu")
NUM_STEPS, EVERY = 6, 2
AUDITED = [0, 2, 4, 6]


def make_backbone(seed=0):
    """A tiny ViT whose training draws random numbers: dropout and stochastic depth."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return VisionTransformer(
            img_size=32,
            patch_size=8,
            embed_dim=32,
            depth=2,
            num_heads=4,
            num_classes=0,
            reg_tokens=2,
            proj_drop_rate=0.1,
            drop_path_rate=0.1,
        )


class Classifier(nn.Module):
    """A backbone with a classification head."""

    def __init__(self):
        super().__init__()
        self.backbone = make_backbone()
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            self.head = nn.Linear(32, 3)

    def forward(self, pixels):
        return self.head(self.backbone(pixels))


def make_examples(count):
    """Random images and labels, always the same."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(count, 3, 32, 32, generator=generator)
    return list(zip(pixels, torch.randint(3, (count,), generator=generator), strict=True))


def audit_weights(weights, images):
    """Numbers of `vitscope.audit` for a backbone with these weights."""
    backbone = make_backbone(seed=7)
    backbone.load_state_dict(weights)
    return list_numbers(audit(wrap_model(backbone), images, CONFIG).summary)


def copy_weights(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def read_events(folder):
    """(step, value) pairs of every scalar in TensorBoard's event files."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
