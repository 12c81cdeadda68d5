"""Candidates ranked by a supernet: weights shared by all, the last layer fine-tuned for each."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from recloom import checkpoint
from recloom.data.loader import BatchLoader
from recloom.errors import RecloomError
from recloom.optim import OptimizerConfig
from recloom.search.evaluator import Evaluator, SearchContext
from recloom.search.evaluators.embedded import EmbeddedRows, embed, pieces
from recloom.search.evaluators.heads import Heads
from recloom.search.rows import MemoryLoader, read_batches, tensor_bytes
from recloom.search.space import Genotype
from recloom.search.training import METRICS, device_for, fit, metrics_of
from recloom.search.transfer import load_matching


class SupernetEvaluator(Evaluator):
    """Trains a network that shares the weights of all candidates, then ranks candidates by it.

    The supernet is trained once and kept in the search's folder. A candidate is measured on the validation rows with
    the shared weights, after its last layer was fine-tuned (NASRec, arXiv 2207.07187, as its published code does:
    500 steps of 512 rows, Adagrad, learning rate 0.04). Embeddings are looked up once for all candidates, and what
    candidates that are ranked together have in common is computed once.

    Metrics: ne, logloss, auc, calibration; ne_shared, logloss_shared, auc_shared: without fine-tuning.

    Args:
        steps: Optimizer steps of the supernet.
        batch_size: Rows of a training batch; unset: the data module's.
        rows: Training rows of the supernet, kept in memory and repeated as often as needed. Unset: all, streamed.
        optimizer: Optimizers and learning rates of the supernet; unset: those that the space gives it.
        checkpoint: A supernet trained earlier: a .ckpt file. Unset: train one.
        warm_start: A .ckpt file with weights to start from, where names agree: an earlier search's supernet.
        checkpoint_every: Steps between checkpoints, from which an interrupted training goes on.
        finetune_steps: Steps of fine-tuning a candidate's last layer; 0: none.
        finetune_batch: Rows of such a step.
        finetune_lr: Its learning rate.
        finetune_eps: Added to the root of Adagrad's state.
        eval_rows: Validation rows; unset: all.
        memory_mb: Memory for embedded rows: if they do not fit, fewer are used, and that is said. As much again for
            the features of candidates that are ranked together.
        chunk: Most rows of which features are computed together.
        together: Most candidates that are ranked together.
        precision: Arithmetic of the features: "bf16" is faster where the processor has it, and rounds them.
        trainer: Further arguments of Lightning's Trainer: accelerator, precision, gradient_clip_val, ...
    """

    measures = (*METRICS, "ne_shared", "logloss_shared", "auc_shared", "seconds")

    def __init__(
        self,
        steps: int = 2000,
        batch_size: int | None = None,
        rows: int | None = None,
        optimizer: OptimizerConfig | None = None,
        checkpoint: str | None = None,
        warm_start: str | None = None,
        checkpoint_every: int = 500,
        finetune_steps: int = 500,
        finetune_batch: int = 512,
        finetune_lr: float = 0.04,
        finetune_eps: float = 1e-2,
        eval_rows: int | None = None,
        memory_mb: int = 1024,
        chunk: int = 4096,
        together: int = 64,
        precision: Literal["32", "bf16"] = "32",
        trainer: dict[str, Any] | None = None,
    ) -> None:
        self.steps, self.batch_size, self.rows, self.optimizer = steps, batch_size, rows, optimizer
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every
        self.warm_start = warm_start
        self.callbacks: list[Callback] = []  # of the supernet's training: methods that draw its paths have one
        self.finetune_steps, self.finetune_batch = finetune_steps, finetune_batch
        self.finetune_lr, self.finetune_eps = finetune_lr, finetune_eps
        self.eval_rows, self.memory_mb, self.together = eval_rows, memory_mb, together
        self.chunk = max(1, chunk // finetune_batch) * finetune_batch
        self.precision = precision
        self.trainer = dict(trainer or {})

    def setup(self, context: SearchContext) -> None:
        """Train the supernet, or load it: the one named by `checkpoint`, or that of an earlier call."""
        super().setup(context)
        self.device = device_for(self.trainer)
        with torch.random.fork_rng():
            pl.seed_everything(context.seed, verbose=False)
            self.supernet = context.space.supernet(context.schema)
            self.supernet.seed = context.seed
            if self.optimizer is not None:
                self.supernet.optimizer_config = self.optimizer
            self._train_or_load(context.folder / "supernet")
        self.supernet.requires_grad_(False).to(self.device).eval()
        self._rows: dict[str, list[EmbeddedRows]] = {}

    def _train_or_load(self, folder: Path) -> None:
        trained = Path(self.checkpoint) if self.checkpoint else folder / "trained.ckpt"
        if self.checkpoint or trained.exists():
            self.supernet.configure_model()
            checkpoint.load_weights(self.supernet, trained)
            return
        self.context.say(f"supernet: {self.steps:,} steps of {self._batch_size:,} rows")
        if self.warm_start:
            filled, count = load_matching(self.supernet, self.warm_start)
            self.context.say(f"supernet: {filled} of {count} tensors from {self.warm_start}")
        start = time.perf_counter()
        keeper = ModelCheckpoint(
            folder,
            filename="last",
            every_n_train_steps=self.checkpoint_every,
            save_on_train_epoch_end=False,
            save_on_exception=False,
            enable_version_counter=False,
        )
        last = folder / "last.ckpt"
        options = {"max_steps": self.steps, "max_epochs": -1, **self.trainer}
        loader = self._loader()
        try:
            callbacks = [keeper, *self.callbacks]
            reason = fit(self.supernet, loader, options, callbacks, str(last) if last.exists() else None)
        finally:
            if isinstance(loader, BatchLoader):
                loader.close()
        if reason:
            raise RecloomError(f"the supernet diverged: {reason}", "Lower its learning rate: --evaluator.optimizer")
        self.samples_trained += self.steps * self._batch_size
        folder.mkdir(parents=True, exist_ok=True)
        aside = trained.with_suffix(".part")
        torch.save({"state_dict": self.supernet.state_dict()}, aside)
        aside.replace(trained)
        last.unlink(missing_ok=True)
        self.context.say(f"supernet: trained in {time.perf_counter() - start:.0f} s")

    @property
    def _batch_size(self) -> int:
        return self.batch_size or self.context.data.batch_size

    def _loader(self) -> Any:
        data = self.context.data
        if self.rows is not None:
            batches = read_batches(data, "train", self._batch_size, self.rows)
            full = [batch for batch in batches if len(batch) == self._batch_size]
            return MemoryLoader(full or batches, self.context.seed, data.shuffle)
        source = data.source("train", data.shuffle)
        return BatchLoader(source, self._batch_size, drop_last=True, num_workers=data.num_workers)

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Fine-tune and measure the candidates, those together that have most in common."""
        canonical = [self.context.space.canonical(genotype) for genotype in genotypes]
        paths = sorted(set(canonical))
        found: dict[Genotype, dict[str, float]] = {}
        while paths:
            count, size = self._fitting(paths[: self.together])
            part, paths = paths[:count], paths[count:]
            found.update(zip(part, self._measure(part, size), strict=True))
        return [found[path] for path in canonical]

    def release(self) -> None:
        """Forget the embedded rows."""
        self._rows = {}

    @torch.no_grad()
    def _fitting(self, paths: list[Genotype]) -> tuple[int, int]:
        """Return how many of the paths to take, and of how many rows, so that their features fit the memory."""
        probe = self._embedded("val")[0].rows(0, 64)
        budget = self.memory_mb * 2**20
        while True:
            memory: dict[Any, Any] = {}
            features = self._features(probe, paths, memory)
            rows = budget * len(probe) // max(1, tensor_bytes([features, memory]))
            if rows >= self.finetune_batch or len(paths) == 1:
                return len(paths), min(self.chunk, max(1, rows // self.finetune_batch) * self.finetune_batch)
            paths = paths[: len(paths) // 2]

    def _features(self, rows: EmbeddedRows, paths: list[Genotype], memory: dict[Any, Any]) -> list[Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return [tensor.float() for tensor in self.supernet.features(rows.inputs, paths, memory)]

    @torch.no_grad()
    def _measure(self, paths: list[Genotype], size: int) -> list[dict[str, float]]:
        shared = [self.supernet.head(path) for path in paths]
        heads, plain = Heads(shared, self.finetune_lr, self.finetune_eps), Heads(shared, 0.0, 1.0)
        for rows in self._finetuning(size):
            features = self._features(rows, paths, {})
            for start in range(0, len(rows), self.finetune_batch):
                batch = rows.rows(start, min(start + self.finetune_batch, len(rows)))
                for place, values in enumerate(features):
                    heads.step(place, values[start : start + len(batch)], batch.labels, batch.weights)
        tuned: list[list[Tensor]] = [[] for _ in paths]
        untuned: list[list[Tensor]] = [[] for _ in paths]
        for rows in pieces(self._embedded("val"), size):
            for place, values in enumerate(self._features(rows, paths, {})):
                tuned[place].append(heads.logits(place, values))
                untuned[place].append(plain.logits(place, values))
        return [self._told(*candidate) for candidate in zip(paths, tuned, untuned, strict=True)]

    def _told(self, path: Genotype, tuned: list[Tensor], untuned: list[Tensor]) -> dict[str, float]:
        chunks = self._embedded("val")
        labels = torch.cat([rows.labels for rows in chunks])
        parts = [rows.weights for rows in chunks if rows.weights is not None]
        weights = torch.cat(parts) if parts else None
        found = metrics_of(torch.cat(tuned), labels, weights)
        if not math.isfinite(found["ne"]):
            self.reasons[path] = f"the supernet gives it NE {found['ne']}"
        shared = metrics_of(torch.cat(untuned), labels, weights)
        return {**found, **{f"{name}_shared": shared[name] for name in ("ne", "logloss", "auc")}}

    def _finetuning(self, size: int) -> Iterator[EmbeddedRows]:
        """Yield pieces of training rows until there were enough steps; rows that are few are repeated."""
        left = self.finetune_steps
        while left:
            for rows in pieces(self._embedded("train"), size):
                steps = min(left, -(-len(rows) // self.finetune_batch))
                yield rows.rows(0, min(len(rows), steps * self.finetune_batch))
                left -= steps
                if not left:
                    return

    def _embedded(self, split: str) -> list[EmbeddedRows]:
        """Return the rows of `split`, embedded once; as many as are wanted and fit the memory."""
        if split not in self._rows:
            wanted = self.finetune_steps * self.finetune_batch if split == "train" else self.eval_rows
            source = self.context.data.source(split)
            budget = self.memory_mb * 2**20 // 2  # one half for each split
            found = embed(self.supernet, source, wanted, self.chunk, budget, self.device)
            total = sum(source.block_rows(0))
            count, wanted = sum(map(len, found)), total if wanted is None else min(wanted, total)
            if count < wanted:
                self.context.say(
                    f"ranking on {count:,} of {wanted:,} {split} rows: they fill memory_mb={self.memory_mb}"
                )
            self._rows[split] = found
        return self._rows[split]
