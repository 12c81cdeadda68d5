"""Small worlds and models for the tests of hsnn."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from recloom import quiet
from recloom.data.retrieval import RetrievalClicks
from recloom.retrieval.module import encode
from recloom_hsnn.model import HSNN
from recloom_hsnn.settings import NodesConfig


def world(**options) -> RetrievalClicks:
    sizes = {"num_train": 8192, "num_val": 1024, "num_items": 1500, "num_users": 200, "groups": 4, "topics": 4}
    return RetrievalClicks(**{**sizes, "width": 8, "batch_size": 512, **options})


def trained(model: pl.LightningModule, data: RetrievalClicks, *callbacks, **options) -> pl.Trainer:
    quiet.hush()
    quiet_ = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"max_epochs": 1, "enable_checkpointing": False, "num_sanity_val_steps": 0, **options}
    trainer = pl.Trainer(callbacks=list(callbacks), **quiet_, **options)
    trainer.fit(model, data)
    return trainer


def began(config: NodesConfig, data: RetrievalClicks, **options) -> HSNN:
    """A model with random weights whose nodes have begun."""
    torch.manual_seed(1)
    model = HSNN(data.schema, nodes=config, **options).eval()
    codes = torch.from_numpy(encode(model.item_encoder, data.item_rows()))
    model.recent.add(codes[:, : model.vector_dim])
    model._begin()
    with torch.no_grad():
        model.ensemble += 0.3 * torch.rand_like(model.ensemble)
        for scorer in model.level_scorers:
            for parameter in scorer.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return model
