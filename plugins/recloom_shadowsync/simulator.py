"""A discrete-event simulator of trainers and links: what throughput and sync gap hundreds of trainers would have.

Calibrated with what a few real trainers show: the time of a step and its spread, the bytes of a round, the rate that a
link gives, and the time of a round that is not the link's. It knows nothing of quality.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["none", "ddp", "fr_ma", "shadow_ma", "fr_easgd", "shadow_easgd"]


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Args:
        step: Seconds of a step without synchronisation.
        spread: Standard deviation of that, relative.
        round_bytes: Bytes of weights (one way, to a server).
        link: Bytes a second of a trainer's link, each direction; 0: not limiting.
        server: Bytes a second of a sync server's link, each direction, as it gives when many trainers share it.
        overhead: Seconds of a round besides the link's: copies, system calls, waiting for a CPU.
        pause: Seconds between rounds of a background thread, at the least.
        servers: Number of sync servers, each with a link of its own and an equal part of the weights.
    """

    step: float
    spread: float
    round_bytes: float
    link: float = 0.0
    server: float = 0.0
    overhead: float = 0.002
    pause: float = 0.002
    servers: int = 1


@dataclass(frozen=True)
class Predicted:
    """What the simulator says.

    Args:
        step: Mean seconds of a step of a trainer, waiting included.
        speedup: Throughput of all trainers over that of one without synchronisation.
        gap: Mean steps between syncs of a trainer; infinite if it never syncs.
    """

    step: float
    speedup: float
    gap: float


def simulate(
    calibration: Calibration, algorithm: Algorithm, trainers: int, every: int = 5, steps: int = 400, seed: int = 0
) -> Predicted:
    """Return what `trainers` trainers would do in `steps` steps each.

    Args:
        calibration: What was measured.
        algorithm: How they synchronise.
        trainers: Their number.
        every: Steps between rounds, of the fixed-rate algorithms.
        steps: Steps of each; the first tenth is left out.
        seed: Of the steps' times.
    """
    if algorithm in ("ddp", "fr_ma", "shadow_ma"):
        return _collective(calibration, algorithm, trainers, 1 if algorithm == "ddp" else every, steps, seed)
    return _centralised(calibration, algorithm, trainers, every, steps, seed)


def allreduce_seconds(calibration: Calibration, trainers: int) -> float:
    """Return the time of a ring all-reduce: each link carries 2 (n - 1) / n of the bytes."""
    if trainers == 1:
        return 0.0
    wire = 2 * (trainers - 1) / trainers * calibration.round_bytes / calibration.link if calibration.link else 0.0
    return wire + calibration.overhead


def _times(calibration: Calibration, rng: random.Random) -> float:
    return max(0.2 * calibration.step, rng.gauss(calibration.step, calibration.spread * calibration.step))


def _collective(c: Calibration, algorithm: str, trainers: int, every: int, steps: int, seed: int) -> Predicted:
    rng = random.Random(seed)
    round_ = allreduce_seconds(c, trainers)
    if algorithm == "shadow_ma":  # training waits for nothing; rounds follow one another
        mean = sum(_times(c, rng) for _ in range(steps)) / steps
        return Predicted(mean, trainers * c.step / mean, (round_ + c.pause) / mean)
    clock, begin = [0.0] * trainers, 0.0
    for step in range(1, steps + 1):
        clock = [time + _times(c, rng) for time in clock]
        if step % every == 0:
            clock = [max(clock) + round_] * trainers
        if step == steps // 10:
            begin = sum(clock) / trainers
    mean = (sum(clock) / trainers - begin) / (steps - steps // 10)
    return Predicted(mean, trainers * c.step / mean, float(every))


class _Link:
    """A link that serves transfers one after the other: with equal sizes, fair sharing ends as many by any time."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free = rate, 0.0

    def send(self, now: float, size: float) -> float:
        """Return when a transfer that is ready at `now` is through."""
        if not self.rate:
            return now
        self.free = max(self.free, now) + size / self.rate
        return self.free


def _centralised(c: Calibration, algorithm: str, trainers: int, every: int, steps: int, seed: int) -> Predicted:
    """Trainers push to the servers and wait for the answer; in the background, a thread does while training goes on."""
    rng = random.Random(seed)
    up, down = _Link(c.server * c.servers), _Link(c.server * c.servers)
    own = c.round_bytes / c.link if c.link else 0.0
    clock = [rng.random() * c.step for _ in range(trainers)]  # when each trainer ended its last step
    begin, done, rounds = [0.0] * trainers, [0] * trainers, [0] * trainers
    queue = trainers * c.round_bytes / (c.server * c.servers) if c.server else 0.0
    horizon = max(steps * c.step, 20 * queue)  # rounds are counted once the queue at the server is as long as it gets
    events = [(clock[i], i, "go") for i in range(trainers)]
    if algorithm == "none":
        events = []
    heapq.heapify(events)
    blocks = algorithm == "fr_easgd"
    while events:
        now, i, what = heapq.heappop(events)
        if what == "go":  # a trainer begins `every` steps, or a thread its round
            if blocks:
                if done[i] >= steps:
                    continue
                now += sum(_times(c, rng) for _ in range(every))
                done[i] += every
                heapq.heappush(events, (now, i, "push"))
                continue
            if now > horizon:
                continue
            what = "push"
        if what == "push":
            heapq.heappush(events, (max(up.send(now, c.round_bytes), now + own), i, "answer"))
        else:
            back = max(down.send(now, c.round_bytes), now + own) + c.overhead
            rounds[i] += int(0.25 * horizon < back <= horizon)
            clock[i] = back
            if blocks and done[i] <= steps // 10:
                begin[i] = back
            heapq.heappush(events, (back + (0.0 if blocks else c.pause), i, "go"))
    if not blocks:
        mean = sum(_times(c, rng) for _ in range(steps)) / steps
        total = sum(rounds)
        return Predicted(
            mean, trainers * c.step / mean, 0.75 * horizon / mean * trainers / total if total else float("inf")
        )
    left = steps - steps // 10
    mean = sum(end - start for end, start in zip(clock, begin, strict=True)) / trainers / left
    return Predicted(mean, trainers * c.step / mean, float(every))
