"""Rows as every path of a supernet sees them: embedded once, kept in memory, handed out in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recloom.batch import Batch
from recloom.data.loader import BlockSource
from recloom.search.rows import read_blocks, tensor_bytes
from recloom.search.supernet import Supernet


@dataclass(frozen=True)
class EmbeddedRows:
    """Some rows.

    Args:
        inputs: What `Supernet.embed` made of them; each tensor has a row a sample.
        labels: Their labels.
        weights: Their sample weights, or None.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    weights: Tensor | None

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, start: int, end: int) -> EmbeddedRows:
        """Return rows start..end-1."""
        part = slice(start, end)
        inputs = tuple(tensor[part] for tensor in self.inputs)
        return EmbeddedRows(inputs, self.labels[part], None if self.weights is None else self.weights[part])


@torch.no_grad()
def embed(
    supernet: Supernet, source: BlockSource, wanted: int | None, chunk: int, budget: int, device: torch.device
) -> list[EmbeddedRows]:
    """Return rows of a source in chunks.

    Args:
        supernet: Its embeddings are looked up.
        source: The rows.
        wanted: How many; None: all.
        chunk: Rows of a chunk.
        budget: Bytes that they may take; there is one chunk at least.
        device: Where they are kept.
    """
    found: list[EmbeddedRows] = []
    for rows in _chunks(read_blocks(source, wanted), chunk):
        batch = rows.to(device)
        found.append(EmbeddedRows(supernet.embed(batch), batch.labels, batch.weights))
        budget -= tensor_bytes([found[-1].inputs, batch.labels])
        if budget < 0 and len(found) > 1:
            return found[:-1]
    return found


def pieces(chunks: Sequence[EmbeddedRows], size: int) -> Iterator[EmbeddedRows]:
    """Yield the rows of `chunks` in pieces of `size` rows at most."""
    for rows in chunks:
        for start in range(0, len(rows), size):
            yield rows if len(rows) <= size else rows.rows(start, min(start + size, len(rows)))


def _chunks(blocks: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Yield the rows of `blocks` in batches of `size`; the last may be smaller."""
    rest: Batch | None = None
    for block in blocks:
        whole = block if rest is None else Batch.concat([rest, block])
        end = len(whole) // size * size
        for start in range(0, end, size):
            yield whole.rows(start, start + size)
        rest = whole.rows(end, len(whole)) if end < len(whole) else None
    if rest is not None:
        yield rest
