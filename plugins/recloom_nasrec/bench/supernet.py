"""Supernet training and ranking beside the reference implementation (facebookresearch/NasRec).

    recloom bench nasrec                                  # ours alone
    recloom bench nasrec --reference NasRec               # a checkout of facebookresearch/NasRec
    recloom bench nasrec --sizes full --steps 40 --reference NasRec --out supernet.json

Training: both train the same sampled paths on the same batches (13 dense and 26 sparse features, uniform ids), with
layer normalisation, Adagrad and clipped gradients, taking turns; samples per CPU second of all steps together.
Ranking: candidates as a search has them (children of a few parents, with mutations), each with its last layer
fine-tuned and then evaluated; ours together, ours one by one, and the reference one by one on the first few.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from recloom.batch import Batch, KeyedJaggedTensor
from recloom.features import DenseFeature, FeatureSchema, SparseFeature
from recloom.search.evaluators.heads import Heads
from recloom.search.slices import build_sliced_optimizer
from recloom.search.space import Genotype
from recloom_nasrec.architecture import Architecture
from recloom_nasrec.bench import reference
from recloom_nasrec.space import NASRecSpace
from recloom_nasrec.supernet import NASRecSupernet

DENSE, SPARSE = 13, 26  # Criteo's
CHUNK = 1024


def make_batch(size: int, rows: int, seed: int) -> Batch:
    """Return a batch of uniform ids."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.rand(size, DENSE, generator=generator),
        KeyedJaggedTensor(
            [f"c{i}" for i in range(SPARSE)], torch.randint(0, rows, (size * SPARSE,), generator=generator)
        ),
        torch.randint(0, 2, (size,), generator=generator).float(),
    )


def supernet(size: str, rows: int) -> NASRecSupernet:
    """Return a supernet on Criteo's numbers of features, with tables of `rows` rows."""
    schema = FeatureSchema(
        tuple(DenseFeature(f"d{i}") for i in range(DENSE)), tuple(SparseFeature(f"c{i}", rows) for i in range(SPARSE))
    )
    assert size in ("small", "full")
    net = NASRecSpace("small" if size == "small" else "full").supernet(schema)
    assert isinstance(net, NASRecSupernet)
    net.configure_model()
    return net


Step = Callable[[Architecture, Batch], object]


def our_step(net: NASRecSupernet) -> Step:
    """Return a function that trains ours one step."""
    optimizer, _ = build_sliced_optimizer(net, net.optimizer_config)

    def step(path: Architecture, batch: Batch) -> None:
        net.path = path
        optimizer.zero_grad()
        net.loss(net.logits(batch), batch).backward()
        optimizer.step()

    return step


def their_step(net: Any, size: str, checkout: Path) -> Step:
    """Return a function that trains the reference one step, as its train_supernet.py does."""
    optimizer = torch.optim.Adagrad(net.parameters(), lr=0.12, eps=1e-2)

    def step(path: Architecture, batch: Batch) -> None:
        net.configure_choice(reference.choices(size, path, checkout))
        optimizer.zero_grad()
        logits = net(batch.dense_features, _ids(batch)).squeeze(1)
        F.binary_cross_entropy_with_logits(logits, batch.labels).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()

    return step


def training(size: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return samples per CPU second of both."""
    net = supernet(size, arguments.rows)
    steps: dict[str, Step] = {"recloom": our_step(net)}
    if arguments.reference:
        theirs = reference.build(arguments.reference, size, DENSE, [arguments.rows] * SPARSE, True)
        steps["reference"] = their_step(theirs, size, arguments.reference)
    batches = [make_batch(arguments.batch, arguments.rows, seed) for seed in range(8)]
    spent = dict.fromkeys(steps, 0.0)
    for number in range(-2, arguments.steps):  # two steps to warm up
        path, batch = net.sample_path(number + 2), batches[number % len(batches)]
        for name, step in steps.items():
            start = time.process_time()
            step(path, batch)
            spent[name] += (time.process_time() - start) * (number >= 0)
    rates = {name: arguments.steps * arguments.batch / seconds for name, seconds in spent.items()}
    return {"space": size, "what": "training, samples per CPU second", "batch": arguments.batch, **rates}


def population(space: NASRecSpace, count: int, parents: int = 8, mutations: int = 2) -> list[Genotype]:
    """Return canonical candidates like those of an evolution: children of a few parents."""
    rng = np.random.default_rng(0)
    elders = [space.sample(rng) for _ in range(parents)]
    return [space.canonical(space.mutate(elders[i % parents], rng, mutations)) for i in range(count)]


@torch.no_grad()
def rank(net: NASRecSupernet, paths: Sequence[Genotype], tune: Sequence[Batch], test: Sequence[Batch]) -> None:
    """Fine-tune the last layer of each candidate on `tune` and compute its logits on `test`."""
    heads = Heads([net.head(path) for path in paths], 0.04, 1e-2)
    for batch in tune:
        for place, features in enumerate(net.features(net.embed(batch), paths)):
            heads.step(place, features, batch.labels)
    for batch in test:
        for place, features in enumerate(net.features(net.embed(batch), paths)):
            heads.logits(place, features)


def rank_reference(net: Any, choice: Any, tune: Sequence[Batch], test: Sequence[Batch]) -> None:
    """Do the same for one candidate, as the reference does: nothing but the last layer is trained."""
    net.configure_choice(choice)
    net.set_mode_to_finelune_last_only()
    optimizer = torch.optim.Adagrad(net.parameters(), lr=0.04, eps=1e-2)
    for batch in tune:
        optimizer.zero_grad()
        logits = net(batch.dense_features, _ids(batch)).squeeze(1)
        F.binary_cross_entropy_with_logits(logits, batch.labels).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
    with torch.no_grad():
        for batch in test:
            net(batch.dense_features, _ids(batch))


def ranking(size: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return CPU seconds a candidate: together, one by one, and the reference."""
    net = supernet(size, arguments.rows)
    net.eval()
    paths = population(net.nasrec, arguments.candidates)
    tune = [make_batch(512, arguments.rows, seed) for seed in range(arguments.tune)]
    test = [make_batch(CHUNK, arguments.rows, 100 + seed) for seed in range(arguments.test // CHUNK)]
    start = time.process_time()
    rank(net, paths, tune, test)
    found = {"recloom, together": (time.process_time() - start) / len(paths)}
    few = paths[:: max(1, len(paths) // arguments.one_by_one)]
    start = time.process_time()
    for path in few:
        rank(net, [path], tune, test)
    found["recloom, one by one"] = (time.process_time() - start) / len(few)
    if arguments.reference:
        theirs = reference.build(arguments.reference, size, DENSE, [arguments.rows] * SPARSE, True)
        few = few[: arguments.reference_candidates]
        start = time.process_time()
        for path in few:
            choice = reference.choices(size, net.nasrec.architecture(path), arguments.reference)
            rank_reference(theirs, choice, tune, test)
        found["reference, one by one"] = (time.process_time() - start) / len(few)
    return {"space": size, "what": "ranking, CPU seconds a candidate", "candidates": len(paths), **found}


def _ids(batch: Batch) -> torch.Tensor:
    """Return B x F ids."""
    return batch.sparse_features.values.view(SPARSE, -1).t()


def main(argv: list[str]) -> int:
    """Measure, print, and return 0."""
    parser = argparse.ArgumentParser(
        prog="recloom bench nasrec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=["small", "full"], default=["small", "full"])
    parser.add_argument("--batch", type=int, default=512, help="rows of a training step")
    parser.add_argument("--steps", type=int, default=20, help="training steps that are timed")
    parser.add_argument("--rows", type=int, default=1000, help="rows of each embedding table")
    parser.add_argument("--candidates", type=int, default=64, help="candidates to rank; 0: no ranking")
    parser.add_argument("--one-by-one", type=int, default=16, help="how many of them are also ranked alone")
    parser.add_argument("--reference-candidates", type=int, default=2, help="how many the reference ranks")
    parser.add_argument("--tune", type=int, default=4, help="fine-tuning steps of 512 rows")
    parser.add_argument("--test", type=int, default=4096, help="rows that are evaluated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reference", type=Path, help="checkout of facebookresearch/NasRec")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} threads", file=sys.stderr)
    results = []
    for size in arguments.sizes:
        for measure in (training, ranking) if arguments.candidates else (training,):
            results.append(measure(size, arguments))
            print(", ".join(f"{k}: {_shown(v)}" for k, v in results[-1].items()), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
