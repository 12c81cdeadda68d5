"""Small data and the command line in-process, for tests of plugins and of recloom."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import torch

from recloom.batch import Batch, KeyedJaggedTensor, Sequences
from recloom.cli.main import main
from recloom.features import DenseFeature, FeatureSchema, SequenceFeature, SparseFeature

NOW = 1_600_000_000


class CliResult(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def run_cli(argv: Sequence[str]) -> CliResult:
    """Run `recloom ARGV...` in this process; return its exit code and what it wrote to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(argv))
        except SystemExit as exit_:  # argparse's way of ending after --help or a wrong option
            code = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
    return CliResult(code, out.getvalue(), err.getvalue())


def tiny_schema(one_hot: bool = False, histories: bool = False) -> FeatureSchema:
    """Return a schema with 3 dense and 4 sparse features; one of these is a bag, unless `one_hot`.

    With `histories`, rows have a time, and a history of at most 6 steps: an item, an action, a time.
    """
    sizes = {"user": 40, "item": 30, "hour": 24}
    sparse = [SparseFeature(name, size) for name, size in sizes.items()]
    sparse.append(SparseFeature("tags", 15, max_length=1 if one_hot else 4))
    dense = tuple(DenseFeature(f"d{i}") for i in range(3))
    if not histories:
        return FeatureSchema(dense=dense, sparse=tuple(sparse))
    keys = (SparseFeature("item", 30, table="item"), SparseFeature("action", 5))
    history = SequenceFeature("history", keys, max_length=6, timestamps=True)
    return FeatureSchema(dense=dense, sparse=tuple(sparse), sequences=(history,), timestamp="time")


def tiny_batch(schema: FeatureSchema | None = None, rows: int = 16, seed: int = 0) -> Batch:
    """Return a random batch of `schema` (default: `tiny_schema()`), with both labels in it.

    Bags have 0 to `max_length` ids, histories 0 to `max_length` steps. Features with `max_length` 1 only make a
    one-hot batch.
    """
    schema = tiny_schema() if schema is None else schema
    generator = torch.Generator().manual_seed(seed)
    values, lengths = [], []
    for feature in schema.sparse:
        if feature.max_length == 1:
            count = torch.ones(rows, dtype=torch.int64)
        else:
            count = torch.randint(0, (feature.max_length or 5) + 1, (rows,), generator=generator)
        lengths.append(count)
        values.append(torch.randint(0, feature.num_embeddings, (int(count.sum()),), generator=generator))
    labels = torch.rand(rows, len(schema.labels), generator=generator).round()
    labels[0], labels[-1] = 0.0, 1.0
    return Batch(
        dense_features=torch.randn(rows, len(schema.dense), generator=generator),
        sparse_features=KeyedJaggedTensor(
            schema.sparse_names,
            torch.cat(values) if values else torch.empty(0, dtype=torch.int64),
            lengths=None if schema.one_hot else torch.cat(lengths),
        ),
        labels=labels.squeeze(1) if len(schema.labels) == 1 else labels,
        sequences={history.name: _histories(history, rows, generator) for history in schema.sequences},
        timestamps=torch.full((rows,), NOW) if schema.timestamp else None,
    )


def _histories(feature: SequenceFeature, rows: int, generator: torch.Generator) -> Sequences:
    lengths = torch.randint(0, feature.max_length + 1, (rows,), generator=generator)
    total = int(lengths.sum())
    ids = [torch.randint(0, key.num_embeddings, (total,), generator=generator) for key in feature.keys]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    left = torch.arange(total, 0, -1)  # steps to the end: times grow within every history
    times = NOW - 3600 * left if feature.timestamps else None
    return Sequences([key.name for key in feature.keys], torch.stack(ids, dim=1), offsets, times)
