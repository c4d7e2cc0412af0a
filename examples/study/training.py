"""Train one cell with Lightning, audited while it trains."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import torch
from data import PREPROCESSING, make_training_set
from jaxtyping import Float, Int
from lightning.pytorch.loggers import CSVLogger
from plan import Cell, Preset
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from variants import make_variant

from vitscope.images.scenes import count_classes
from vitscope.training import TrainingAudit
from vitscope.training.lightning_callback import AuditCallback

LEARNING_RATE, WEIGHT_DECAY, WARMUP = 1e-3, 0.05, 0.05

# One process trains a cell at a time: what Lightning says of each would drown the plan.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless batches of tensors that are on the device already, in an order given by a seed."""

    def __init__(self, pixels: Tensor, labels: Tensor, batch_size: int, seed: int) -> None:
        self.pixels, self.labels = pixels, labels
        self.batch_size, self.seed = batch_size, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        size = min(self.batch_size, len(self.labels))
        while True:
            order = torch.randperm(len(self.labels), generator=generator)
            for start in range(0, len(order) - size + 1, size):
                chosen = order[start : start + size].to(self.labels.device)
                yield self.pixels[chosen], self.labels[chosen]


class Classifier(pl.LightningModule):
    """A variant with a linear head."""

    def __init__(self, cell: Cell, preset: Preset) -> None:
        super().__init__()
        self.backbone = make_variant(
            cell.variant, depth=cell.depth, width=cell.width, heads=preset.heads
        )
        self.head = nn.Linear(cell.width, count_classes(cell.task))
        self.steps = preset.steps

    def forward(self, pixels: Float[Tensor, "image 3 height width"]) -> Tensor:
        """Scores of the classes."""
        return self.head(self.backbone(pixels))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy."""
        pixels, labels = batch
        loss = nn.functional.cross_entropy(self(pixels), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW; the learning rate rises for 5 % of the steps and falls as a cosine."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, total_steps=self.steps, pct_start=WARMUP
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def train(
    cell: Cell, preset: Preset, folder: Path, images: Path, device: torch.device
) -> Classifier:
    """Train a cell. Its losses and audits go to `folder`/history/metrics.csv."""
    pl.seed_everything(cell.seed, verbose=False)
    model = Classifier(cell, preset)
    pixels, labels = make_training_set(cell.task, cell.num_images, cell.seed, preset.noise)
    batches = Batches(pixels.to(device), labels.to(device), preset.batch_size, cell.seed)
    audit = TrainingAudit(
        images, limit=preset.callback_images, submodule="backbone", preprocessing=PREPROCESSING
    )
    every = max(1, preset.steps // preset.audits)
    trainer = pl.Trainer(
        max_steps=preset.steps,
        accelerator=device.type,
        devices=1,
        precision=preset.precision,
        gradient_clip_val=1.0,
        callbacks=[AuditCallback(audit, every=every)],
        logger=CSVLogger(folder, name="history", version=""),
        log_every_n_steps=every,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        # Batches are on the device already, and an interrupted cell's history is replaced.
        for text in ("does not have many workers", "LeafSpec", "logs directory"):
            warnings.filterwarnings("ignore", f".*{text}")
        trainer.fit(model, DataLoader(batches, batch_size=None))
    return model.eval()


@torch.inference_mode()
def measure_accuracy(
    model: Classifier,
    pixels: Float[Tensor, "image 3 height width"],
    labels: Int[Tensor, " image"],
) -> float:
    """Fraction of images whose class has the highest score."""
    chosen = [model(some.to(model.device)).argmax(-1).cpu() for some in pixels.split(512)]
    return float((torch.cat(chosen) == labels).double().mean())
