"""The services of `recloom reproduce rmc`: the highest rate of one, of several side by side, and their configs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from recloom_rmc.presets import Preset, preset

TARGET = 25.0  # ms, of the 99th percentile


@dataclass(frozen=True)
class Setting:
    """Sizes of one budget.

    Args:
        rows: Factor of the tables' rows.
        batches: Batches of the sweep.
        rounds: Turns of the gather's contenders.
        requests: Requests of a run, at least.
        seconds: Seconds of a run, at least.
        repeats: Searches of the highest rate.
        replicas: Services side by side.
        overload: Seconds of overload on the endpoint.
        clock: "cpu" for single processes, on a machine that others use too.
    """

    rows: float
    batches: tuple[int, ...]
    rounds: int
    requests: int
    seconds: float
    repeats: int
    replicas: int
    overload: float
    clock: str


def highest(model: str, engine_name: str, setting: Setting) -> dict[str, float]:
    """Return the highest rate of a preset by an engine, with its interval."""
    import torch

    from recloom.batch import Batch, KeyedJaggedTensor
    from recloom.online import engines
    from recloom.online.bench import measure_bound
    from recloom.online.inputs import Pool
    from recloom.online.lab import Policy
    from recloom.online.load import Sizes
    from recloom_rmc.bench.sweep import requests

    sizes = preset(model).scaled(setting.rows)
    module = sizes.build()
    ((dense, ids, offsets),) = requests(sizes, 1024, 1)
    names = module.schema.sparse_names
    pool = Pool(Batch(dense, KeyedJaggedTensor(names, ids, offsets=offsets), torch.zeros(len(dense))))
    unbatched = engine_name == "unbatched"
    engine = engines.build(module, "eager" if unbatched else engine_name)
    options = SimpleNamespace(
        requests=setting.requests, seconds=setting.seconds, repeats=setting.repeats, target=TARGET, clock=setting.clock
    )
    policy = Policy(0) if unbatched else Policy(64 if model == "rmc2" else 256)
    bound, _ = measure_bound(engine, pool, policy, Sizes.parse("1"), options, 500.0)
    return {"rate": bound.estimate.value, "low": bound.estimate.low, "high": bound.estimate.high}


def side_by_side(path: Path, count: int, setting: Setting) -> dict[str, Any]:
    """Return the highest common rate of `count` services on a machine."""
    from recloom.online.bench import colocated
    from recloom.online.lab import Policy
    from recloom.online.load import Sizes
    from recloom.online.replicas import Service

    options = SimpleNamespace(
        requests=setting.requests, seconds=setting.seconds, repeats=setting.repeats, target=TARGET
    )
    service = Service(path, policy=Policy(256), rows=1024, fresh=True)
    found = colocated([service] * count, Sizes.parse("1"), options)
    return {name: found[name] for name in ("rate", "interval", "rates")}


def write_config(sizes: Preset, path: Path) -> Path:
    """Write a config file of a preset on generated clicks; return its path."""
    names = [f"c{i}" for i in range(sizes.tables)]
    data = {
        "num_train": 1024,
        "num_val": 1024,
        "num_test": 0,
        "num_dense": sizes.dense,
        "cardinalities": [sizes.rows] * sizes.tables,
        "multi_hot": dict.fromkeys(names, sizes.lookups),
    }
    section = {"model": sizes.model_section(), "data": {"class_path": "SyntheticClicks", "init_args": data}}
    path.write_text(yaml.safe_dump(section), encoding="utf-8")
    return path
