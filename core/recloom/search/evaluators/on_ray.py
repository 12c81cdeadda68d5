"""Candidates evaluated by actors of a Ray cluster. Needs the extra `ray`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from recloom.errors import RecloomError
from recloom.search.evaluator import Evaluator, SearchContext
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.space import Genotype


class OnRay(Evaluator):
    """Evaluates the candidates of a batch at once, on the machines of a Ray cluster.

    Each actor has an evaluator of its own, with the search's space, data and seed, so that results are those of the
    evaluator at home. The data have to be where every machine finds them. An actor that dies is started again, and what
    it had is evaluated again; the study stays with this process.

    Args:
        evaluator: What evaluates candidates. Unset: FromScratch.
        actors: How many actors there are; the search's `batch` should be a multiple.
        address: Address of the cluster: "auto", "ray://HOST:10001". Unset: RAY_ADDRESS, or else this machine alone.
        cpus: Processors of an actor.
        gpus: Its accelerators.
        retries: How often an actor is started again, and a candidate is evaluated again.
    """

    def __init__(
        self,
        evaluator: Evaluator | None = None,
        actors: int = 2,
        address: str | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        retries: int = 3,
    ) -> None:
        if actors < 1 or cpus < 0 or gpus < 0 or retries < 0:
            raise RecloomError(f"OnRay with {actors} actors, {cpus} cpus, {gpus} gpus", "See --help.")
        self.evaluator = evaluator or FromScratch()
        self.measures = self.evaluator.measures
        self.actors, self.address, self.cpus, self.gpus, self.retries = actors, address, cpus, gpus, retries
        self._fresh = copy.deepcopy(self.evaluator)
        self._actors: list[Any] = []
        self._samples = 0

    def setup(self, context: SearchContext) -> None:
        """Prepare for a search here, where a supernet is trained if there is one; then start the actors."""
        super().setup(context)
        self.evaluator.setup(context)
        self._ray = _ray()
        self._connected = not self._ray.is_initialized()
        if self._connected:
            options = {"num_cpus": max(1, round(self.actors * self.cpus))} if self.address is None else {}
            self._ray.init(self.address, log_to_driver=False, logging_level="error", **options)
        remote = self._ray.remote(
            num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=self.retries, max_task_retries=self.retries
        )(Actor)
        there = replace(context, say=print)  # the progress bar stays here
        self._actors = [remote.remote(self._fresh, there) for _ in range(self.actors)]

    @property
    def samples_trained(self) -> int:  # type: ignore[override]
        """Samples that went through training so far, here and for candidates that actors evaluated."""
        return self.evaluator.samples_trained + self._samples

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Evaluate the candidates, each by the next actor that is free."""
        found: dict[int, dict[str, float]] = {}
        waiting, idle = list(range(len(genotypes))), list(self._actors)
        busy: dict[Any, tuple[Any, int]] = {}
        while waiting or busy:
            while waiting and idle:
                actor, place = idle.pop(), waiting.pop(0)
                busy[actor.evaluate.remote(genotypes[place])] = (actor, place)
            done, _ = self._ray.wait(list(busy))
            for reference in done:
                actor, place = busy.pop(reference)
                metrics, reason, samples = self._ray.get(reference)
                found[place] = metrics
                self._samples += samples
                idle.append(actor)
                if reason:
                    self.reasons[self.context.space.canonical(genotypes[place])] = reason
        return [found[place] for place in range(len(genotypes))]

    def release(self) -> None:
        """End the actors, and the connection if it was made here; a cluster stays."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._connected:
            self._ray.shutdown()
        self.evaluator.release()


class Actor:
    """What runs on a machine of the cluster.

    Args:
        evaluator: The evaluator.
        context: The search.
    """

    def __init__(self, evaluator: Evaluator, context: SearchContext) -> None:
        self.evaluator, self.context = evaluator, context
        evaluator.setup(context)

    def evaluate(self, genotype: Genotype) -> tuple[dict[str, float], str, int]:
        """Return a candidate's metrics, why it diverged, and how many samples went through training."""
        before = self.evaluator.samples_trained
        metrics = self.evaluator.evaluate([genotype])[0]
        reason = self.evaluator.reasons.get(self.context.space.canonical(genotype), "")
        return metrics, reason, self.evaluator.samples_trained - before


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise RecloomError(f"OnRay needs Ray: {error}", "pip install 'recloom[ray]'") from error
    return ray
