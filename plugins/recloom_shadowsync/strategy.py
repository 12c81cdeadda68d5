"""Synchronisation beside training, as Lightning strategies for any model."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn  # type: ignore[attr-defined]
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim import Optimizer

from recloom.sync import SyncAlgorithm
from recloom_shadowsync.algorithms import MA
from recloom_shadowsync.callback import SyncCallback
from recloom_shadowsync.checkpointing import ReplicaCheckpoints
from recloom_shadowsync.compression import Compression
from recloom_shadowsync.launcher import ShadowLauncher
from recloom_shadowsync.replica import Rows, Write
from recloom_shadowsync.run import Run, Setting
from recloom_shadowsync.session import OnPeerLoss
from recloom_shadowsync.weights import Tables, Weights


class ShadowSyncStrategy(ReplicaCheckpoints):
    """Every rank trains a replica of its own; replicas are synchronised beside training, or every k steps.

    No collective runs on the main thread from the first batch to the last, unless tables are sharded. Ranks may have
    different numbers of batches. Steps, schedules, checkpoints by step and logs are each rank's own.

    Embedding tables: give the model `embedding: ShardedEmbeddingBag` and they are shared out over the ranks, the
    paper's setting; otherwise see `tables`.

    Args:
        algorithm: How replicas come together; by default the strategy's own.
        every: Optimizer steps between synchronisations on the main thread; 0: in the background, without waiting.
        alpha: How far a replica moves to what it is synchronised with: by default 0.5 in the background and with a
            server, 1 on the main thread.
        write: "delta": w + alpha (target - copy), which keeps what was learnt since the copy was taken. "lerp", the
            paper's: (1 - alpha) w + alpha target. By default delta in the background, lerp on the main thread.
        tables: Tables that are not sharded. "synced": each rank's own, synchronised like all weights. "shared": one
            copy in memory that the ranks of this machine share, updated without locks. "local": never synchronised.
        rows: How rows of synced tables come together. "sum": a row takes the changes of all replicas in full, as if
            they had trained on one table. "touched": their mean over replicas that changed a row; "mean", over all.
        exclude: Parameters whose names contain one of these are not synchronised.
        compression: Of what is exchanged: none, bf16, or int8 with error feedback.
        hogwild: Ranks that share one replica's memory and train it without locks; they follow one another by number.
        cpu_budget: Share of a CPU that the background thread may take.
        min_interval: Seconds between the starts of rounds in the background, at the least.
        on_peer_loss: What the others do when a rank dies or hangs: "stop", or "continue" without it.
        round_timeout: Seconds after which a rank that says nothing counts as lost.
        servers: HOST:PORT of running sync servers; by default they are started beside rank 0.
        num_servers: How many to start.
        evaluate: "together": for a validation within the fit, ranks wait for one another and evaluate the model that
            they agree on over all rows. "alone": each evaluates the latest agreed model on its share of the rows.
        process_group_backend: Of the run's own group; weights always travel over gloo.
        timeout: How long a collective outside of training waits for the other ranks.
    """

    default_algorithm: ClassVar[Callable[[], SyncAlgorithm]] = MA
    default_every: ClassVar[int] = 0

    def __init__(
        self,
        algorithm: SyncAlgorithm | None = None,
        every: int | None = None,
        alpha: float | None = None,
        write: Write | None = None,
        tables: Tables = "synced",
        rows: Rows = "touched",
        exclude: list[str] | None = None,
        compression: Compression = "none",
        hogwild: int = 1,
        cpu_budget: float = 0.02,
        min_interval: float = 0.0,
        on_peer_loss: OnPeerLoss = "stop",
        round_timeout: float = 60.0,
        servers: list[str] | None = None,
        num_servers: int = 1,
        evaluate: Literal["together", "alone"] = "together",
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        super().__init__(process_group_backend, timeout)
        algorithm = algorithm or type(self).default_algorithm()
        every = self.default_every if every is None else every
        if alpha is None:
            alpha = 1.0 if every and algorithm.exchange == "mean" else 0.5
        write = write or ("lerp" if every else "delta")
        self.setting = Setting(
            algorithm, every, alpha, write, rows, compression, hogwild, cpu_budget, min_interval, on_peer_loss,
            round_timeout, servers or [], num_servers,
        )  # fmt: skip
        self.setting.check()
        self.tables: Tables = tables
        self.exclude = exclude or []
        self.evaluate: Literal["together", "alone"] = evaluate
        self._run: Run | None = None
        self._weights: Weights | None = None
        self._restored: dict[str, Any] | None = None
        self._token = ""
        self._figures: dict[str, float] = {}

    # Before training

    def _configure_launcher(self) -> None:
        if self._start_method != "popen":
            super()._configure_launcher()
            return
        assert self.cluster_environment is not None
        self._launcher = ShadowLauncher(
            self.cluster_environment, self.num_processes, self.num_nodes, lambda: self._training
        )

    def configure_ddp(self) -> None:
        """Instead of wrapping the module, make its synchronised weights one vector, the same on all ranks."""
        assert self.lightning_module is not None
        self._weights = Weights(self.lightning_module, self.tables, self.exclude, self.setting.hogwild)
        self.keep_metrics_apart(self.lightning_module)

    def setup(self, trainer: pl.Trainer) -> None:
        """Prepare the weights and the optimizers."""
        super().setup(trainer)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        assert self._weights is not None
        self._weights.prepare_optimizers(self.optimizers)
        if not any(isinstance(callback, SyncCallback) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.callbacks.insert(0, SyncCallback(self))  # type: ignore[attr-defined]

    # Training

    def on_train_start(self) -> None:
        """Begin to synchronise; from here to `finish` ranks go their own ways."""
        if dist.get_world_size() == 1:
            return
        assert self._weights is not None
        assert self.lightning_module is not None
        self._run = Run(self.setting, self._weights, self._restored)
        self._token = self._run.token
        self._restored = None
        self._run.session.check_signals = self._check_signals
        self._run.session.start()
        self._apart = not self._weights.sharded
        self._training = True

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Count samples."""
        if self._run is not None:
            self._run.count(batch)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Step; then synchronise if that is due on the main thread, or raise what went wrong in the background."""
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        if self._run is not None and self._training:
            self._run.replica.steps += 1
            self._run.session.step()
        return output

    def on_validation_start(self) -> None:
        """Put the model that replicas agree on into the weights' place."""
        if self._run is None or not self._training:
            return
        if self.evaluate == "together":
            together = self._run.session.meet()
            if not together:
                rank_zero_warn("some ranks have finished: the others evaluate alone, on their share of the rows")
            self._apart = not (together or (self._weights is not None and self._weights.sharded))
        self._run.replica.park()
        if not self._apart:
            self._same_buffers()

    def on_validation_end(self) -> None:
        """Go on with the replica."""
        if self._run is None or not self._training:
            return
        assert self._weights is not None
        self._apart = not self._weights.sharded
        self._run.replica.unpark()
        if self.evaluate == "together":
            self._run.session.leave()

    def finish(self) -> None:
        """Wait for all ranks' last step; then all have the agreed model, and collectives are collectives again."""
        if self._run is None or not self._training:
            return
        self._run.session.finish()
        self._run.replica.settle()
        self._figures = self._run.stats()
        if not self._run.lost:
            self._apart = self._training = False
            self._same_buffers()

    def on_exception(self, exception: BaseException) -> None:
        """End the synchronisation, and let the others know why."""
        super().on_exception(exception)
        self._stop(f"{type(exception).__name__}: {exception}".split("\n")[0].removesuffix(": "))

    def teardown(self) -> None:
        """End what still runs."""
        self._stop("it ended")
        super().teardown()

    def _stop(self, why: str) -> None:
        if self._run is not None:
            self._figures = self._figures or self._run.stats()
            self._run.close(why if self._training else None)
            self._run = None
            if self._training and isinstance(self._launcher, ShadowLauncher):
                self._launcher.reap()

    def _check_signals(self) -> None:
        assert self.lightning_module is not None
        if self.lightning_module.trainer.received_sigterm:
            raise SIGTERMException

    def _same_buffers(self) -> None:
        """Give all ranks rank 0's statistics, which are not averaged: counters among them would be nonsense."""
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            dist.broadcast(buffer, 0)

    # What is known

    def figures(self) -> dict[str, float]:
        """Return this rank's figures for the log: those of the fit so far, and rates since the last call."""
        return {} if self._run is None else self._run.figures()

    def stats(self) -> dict[str, float]:
        """Return this rank's figures of the fit: rounds, sync gap, staleness, bytes, parallelism."""
        return self._figures or ({} if self._run is None else self._run.stats())
