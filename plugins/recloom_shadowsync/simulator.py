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
        period: Seconds from the start of one of its rounds to the next, at the least: what its throttle allows.
        servers: Number of sync servers, each with a link of its own and an equal part of the weights.
    """

    step: float
    spread: float
    round_bytes: float
    link: float = 0.0
    server: float = 0.0
    overhead: float = 0.002
    pause: float = 0.002
    period: float = 0.0
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
        return Predicted(mean, trainers * c.step / mean, max(round_ + c.pause, c.period) / mean)
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
    """A link that transfers share equally while they are under way, as TCP's streams do, more or less.

    Time is counted in bytes that each stream has been given since the beginning (virtual time), so that a stream's end
    is known when it starts, and streams cost the logarithm of their number.

    Args:
        rate: Bytes a second; 0: not limiting.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._streams: list[tuple[float, int]] = []  # (when it ends in virtual time, whose it is)
        self._given, self._now = 0.0, 0.0

    def _advance(self, now: float) -> None:
        if self._streams:
            self._given += (now - self._now) * self.rate / len(self._streams)
        self._now = now

    def begin(self, now: float, size: float, whose: int) -> None:
        """Begin a transfer of `size` bytes."""
        self._advance(now)
        heapq.heappush(self._streams, (self._given + size, whose))

    @property
    def next(self) -> float:
        """When the first transfer under way ends, if no other begins; infinite without one."""
        if not self._streams:
            return float("inf")
        return self._now + max(0.0, self._streams[0][0] - self._given) * len(self._streams) / self.rate

    def end(self) -> tuple[float, int]:
        """End that transfer; return when, and whose it is."""
        now = self.next
        self._advance(now)
        return now, heapq.heappop(self._streams)[1]


class _Servers:
    """Trainers that push to the servers and wait for the answer; in the background, a thread of theirs does.

    Args:
        c: What was measured.
        every: Steps between rounds of trainers that wait for theirs; 0: rounds in the background.
        trainers: Number of trainers.
        seed: Of the steps' times, and of where between two rounds each trainer is at the beginning.
    """

    def __init__(self, c: Calibration, every: int, trainers: int, seed: int) -> None:
        self.c, self.every, self.rng = c, every, random.Random(seed)
        self.up, self.down = _Link(c.server * c.servers), _Link(c.server * c.servers)
        self.began = [0.0] * trainers  # when each trainer's round began
        self.own = [0.0] * trainers  # when its own link has carried what is under way
        self.ends: list[list[float]] = [[] for _ in range(trainers)]
        """When each trainer's rounds ended."""
        cycle = every * c.step or max(c.step, c.period)
        self.events = [(self.rng.random() * cycle, i, "push") for i in range(trainers)]
        heapq.heapify(self.events)

    def run(self, horizon: float, rounds: float) -> None:
        """Go on until `horizon`, or until a trainer has done so many rounds."""
        while True:
            first = self.events[0][0] if self.events else float("inf")
            now = min(first, self.up.next, self.down.next)
            if now > horizon:
                return
            if now < first:
                link, then = (self.up, "pushed") if self.up.next <= self.down.next else (self.down, "answered")
                now, i = link.end()
                heapq.heappush(self.events, (max(now, self.own[i]), i, then))
                continue
            now, i, what = heapq.heappop(self.events)
            if what == "answered":
                self.ends[i].append(now + self.c.overhead)
                if len(self.ends[i]) >= rounds:
                    return
                heapq.heappush(self.events, (self._next(now + self.c.overhead, i), i, "push"))
            else:
                self._send(now, i, what)

    def _send(self, now: float, i: int, what: str) -> None:
        if what == "push":
            self.began[i] = now
        # streams' shares are never quite equal: without that, trainers would go on in one bunch for ever
        size = self.c.round_bytes * self.rng.uniform(0.5, 1.5)
        self.own[i] = now + (size / self.c.link if self.c.link else 0.0)
        link, then = (self.up, "pushed") if what == "push" else (self.down, "answered")
        if link.rate:
            link.begin(now, size, i)
        else:
            heapq.heappush(self.events, (self.own[i], i, then))

    def _next(self, ended: float, i: int) -> float:
        """Return when a trainer whose round has ended begins another."""
        if self.every:
            return ended + sum(_times(self.c, self.rng) for _ in range(self.every))
        return max(ended + self.c.pause, self.began[i] + self.c.period)


def _centralised(c: Calibration, algorithm: str, trainers: int, every: int, steps: int, seed: int) -> Predicted:
    if algorithm == "fr_easgd":
        servers = _Servers(c, every, trainers, seed)
        servers.run(float("inf"), max(4, steps // every))
        spans = [ends[len(ends) // 5 :] for ends in servers.ends]
        means = [(span[-1] - span[0]) / (every * (len(span) - 1)) for span in spans if len(span) > 1]
        mean = sum(means) / len(means)
        return Predicted(mean, trainers * c.step / mean, float(every))
    rng = random.Random(seed)
    mean = sum(_times(c, rng) for _ in range(steps)) / steps
    if algorithm == "none":
        return Predicted(mean, trainers * c.step / mean, float("inf"))
    queue = trainers * c.round_bytes / (c.server * c.servers) if c.server else 0.0
    horizon = max(steps * c.step, 20 * queue)  # rounds are counted once as many are under way as ever will be
    servers = _Servers(c, 0, trainers, seed)
    servers.run(horizon, float("inf"))
    total = sum(end > 0.25 * horizon for ends in servers.ends for end in ends)
    gap = 0.75 * horizon / mean * trainers / total if total else float("inf")
    return Predicted(mean, trainers * c.step / mean, gap)
