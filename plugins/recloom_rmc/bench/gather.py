"""The gather beside FBGEMM's table-batched embeddings and torch's EmbeddingBag, on the same tables and ids."""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recloom_rmc.presets import Preset

Lookup = Callable[[Tensor, Tensor], Tensor]


def compare(
    tables: Any, sizes: Preset, batch: int, rounds: int, clock: Callable[[], float], row_seconds: float
) -> dict[str, Any]:
    """Return nanoseconds a lookup, over the floor, and the ratios of the contenders' times to ours (None: missing).

    Args:
        tables: The model's FusedEmbeddingBag.
        sizes: Its preset.
        batch: Samples of a lookup.
        rounds: Turns of each contender.
        clock: What to measure with.
        row_seconds: The floor: seconds of a random row.
    """
    contenders: dict[str, Lookup] = {"recloom": tables, "torch": _torch(tables, sizes)}
    if (fbgemm := _fbgemm(tables, sizes)) is not None:
        contenders["fbgemm"] = fbgemm
    bags, ids_a_table = sizes.tables * batch, batch * sizes.lookups
    offsets = torch.arange(0, bags * sizes.lookups + 1, sizes.lookups)
    generator = torch.Generator().manual_seed(2)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    calls = max(2, min(20, int(3e7 / (sizes.gathered_bytes * batch))))
    with torch.no_grad():  # FBGEMM has no kernel for inference mode
        _agree(contenders, torch.randint(sizes.rows, (sizes.tables * ids_a_table,), generator=generator), offsets)
        for turn in range(rounds):
            order = list(contenders)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                spent = []
                for _ in range(calls):
                    ids = torch.randint(sizes.rows, (sizes.tables * ids_a_table,), generator=generator)
                    start = clock()
                    contenders[name](ids, offsets)
                    spent.append(clock() - start)
                times[name].append(statistics.median(spent) / (sizes.tables * ids_a_table))

    def ratio(name: str) -> float | None:
        if name not in times:
            return None
        return statistics.median(theirs / ours for theirs, ours in zip(times[name], times["recloom"], strict=True))

    ours = statistics.median(times["recloom"])
    return {
        "nanoseconds": 1e9 * ours,
        "x_floor": ours / row_seconds,
        "x_fbgemm": ratio("fbgemm"),
        "x_torch": ratio("torch"),
    }


def _agree(contenders: dict[str, Lookup], ids: Tensor, offsets: Tensor) -> None:
    """Check that all give the same vectors."""
    found = {name: contender(ids, offsets) for name, contender in contenders.items()}
    for name, vectors in found.items():
        torch.testing.assert_close(vectors.reshape_as(found["recloom"]), found["recloom"], msg=f"{name} differs")


def _torch(tables: Any, sizes: Preset) -> Lookup:
    """Return one nn.EmbeddingBag a table, as the reference implementation of DLRM has them."""
    bags = [nn.EmbeddingBag.from_pretrained(tables.table_weight(t.name), mode="sum") for t in tables.tables]

    def run(ids: Tensor, offsets: Tensor) -> Tensor:
        parts, starts = ids.view(sizes.tables, -1), offsets[: (len(offsets) - 1) // sizes.tables]
        return torch.stack([bag(part, starts) for bag, part in zip(bags, parts, strict=True)], dim=1)

    return run


def _fbgemm(tables: Any, sizes: Preset) -> Lookup | None:
    """Return FBGEMM's table-batched embeddings with the same rows, or None where it is not installed."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
            from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
                ComputeDevice,
                SplitTableBatchedEmbeddingBagsCodegen,
            )

            made = SplitTableBatchedEmbeddingBagsCodegen(
                [(sizes.rows, sizes.width, EmbeddingLocation.HOST, ComputeDevice.CPU)] * sizes.tables
            )
            for weight, table in zip(made.split_embedding_weights(), tables.tables, strict=True):
                weight.copy_(tables.table_weight(table.name))
    except (ImportError, OSError):  # OSError: its library needs another torch
        return None
    finally:
        logging.disable(level)

    def run(ids: Tensor, offsets: Tensor) -> Tensor:
        return made(ids, offsets).view(-1, sizes.tables, sizes.width)

    return run
