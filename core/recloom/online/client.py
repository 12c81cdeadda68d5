"""Load on an HTTP endpoint: an open loop of requests on a schedule, latencies from the scheduled arrival.

recloom serve --config configs/rmc/rmc1.yaml --untrained &
recloom bench load --url http://127.0.0.1:8000 --rate 200 --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recloom.errors import RecloomError
from recloom.features import FeatureSchema
from recloom.online.latency import percentiles
from recloom.online.load import Schedule, Sizes, poisson
from recloom.online.requests import example

BODIES = 64


@dataclass
class Answers:
    """What came back.

    Args:
        codes: Status code of each request; 0 where there was no answer.
        latencies: Seconds from the scheduled arrival to the answer.
        late: Seconds that the sender was behind its schedule, at worst: a sender that is late measures itself.
        errors: Why requests had no answer, each with how often.
    """

    codes: NDArray[np.int64]
    latencies: NDArray[np.float64]
    late: float
    errors: dict[str, int]

    @property
    def served(self) -> NDArray[np.float64]:
        """Latencies of the requests that were served."""
        return self.latencies[self.codes == 200]


async def send(url: str, schedule: Schedule, bodies: list[bytes], timeout: float = 60.0) -> Answers:
    """Send the schedule's requests to `url`/predict, each when it is due, whatever became of those before."""
    import aiohttp

    loop = asyncio.get_running_loop()
    codes, latencies = np.zeros(len(schedule), np.int64), np.full(len(schedule), np.nan)
    late, errors = 0.0, Counter[str]()
    start = loop.time() + 0.1
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15)  # less than the server's
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(timeout)) as session:

        async def one(number: int, due: float) -> None:
            try:
                async with session.post(f"{url}/predict", data=bodies[number % len(bodies)]) as response:
                    await response.read()
                    codes[number] = response.status
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                errors[f"{type(error).__name__}: {error}"] += 1
            latencies[number] = loop.time() - due

        tasks = []
        for number, arrival in enumerate(schedule.arrivals.tolist()):
            due = start + arrival
            if (left := due - loop.time()) > 0:
                await asyncio.sleep(left)
            late = max(late, loop.time() - due)
            tasks.append(asyncio.create_task(one(number, due)))
        await asyncio.gather(*tasks)
    return Answers(codes, latencies, late, dict(errors))


async def _model(url: str) -> dict[str, Any]:
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session,
            session.get(f"{url}/model") as got,
        ):
            return await got.json()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise RecloomError(f"{url}: nobody answers: {error}", "Start a server: recloom serve --run DIR.") from error


def load(url: str, rate: float, seconds: float, sizes: Sizes, seed: int = 0) -> Answers:
    """Send random requests at `rate` a second for `seconds`; the server says what its model takes."""
    schema = FeatureSchema.from_dict(asyncio.run(_model(url))["schema"])
    schedule = poisson(rate, max(1, int(rate * seconds)), sizes, seed)
    rows = schedule.sizes[:BODIES].tolist()
    bodies = [json.dumps(example(schema, count, seed + n)).encode() for n, count in enumerate(rows)]
    return asyncio.run(send(url, schedule, bodies))


def main(argv: list[str]) -> int:
    """Send requests, print what came back; return 0."""
    parser = argparse.ArgumentParser(
        prog="recloom bench load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--sizes", default="1", help="rows a request: N, normal:MEAN:DEVIATION, lognormal:MEAN:SIGMA")
    options = parser.parse_args(argv)
    answers = load(options.url.rstrip("/"), options.rate, options.seconds, Sizes.parse(options.sizes))
    counts = Counter(answers.codes.tolist())
    told = ", ".join(f"{count:,} x {code or 'no answer'}" for code, count in sorted(counts.items()))
    print(f"{len(answers.codes):,} requests at {options.rate:g}/s: {told}")
    if len(answers.served):
        names = zip(("p50", "p95", "p99"), percentiles(1000 * answers.served), strict=True)
        print("of those served: " + ", ".join(f"{name} {value} ms" for name, value in names))
    for error, count in answers.errors.items():
        print(f"{count:,} x {error}")
    print(f"the sender was at most {1000 * answers.late:.1f} ms behind its schedule")
    return 0
