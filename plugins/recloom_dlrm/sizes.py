"""How large a model's embedding tables are, and what compression saves: rows of the run's report."""

from __future__ import annotations

from torch import nn

from recloom.embedding import EmbeddingBagCollection


def size_rows(module: nn.Module) -> list[tuple[str, str]]:
    """Return (name, value) for the embedding collections in `module`: rows, bytes, and the share of whole tables'."""
    rows: list[tuple[str, str]] = []
    for name, collection in _outermost(module):
        stored = sum(parameter.nbytes for parameter in collection.parameters())
        whole = sum(4 * table.num_embeddings * table.embedding_dim for table in collection.tables)
        ids = sum(table.num_embeddings for table in collection.tables)
        kind = type(collection).__name__
        rows.append((name, f"{kind}: {len(collection.tables)} tables for {ids:,} ids, {stored / 1e6:,.2f} MB"))
        if compressed := getattr(collection, "compressed", None):
            rows.append(
                (
                    f"{name} compression",
                    f"{len(compressed)} of {len(collection.tables)} tables compressed: {whole / stored:.2f}x smaller "
                    f"than whole tables of width {collection.tables[0].embedding_dim} ({whole / 1e6:,.2f} MB)",
                )
            )
    return rows


def _outermost(module: nn.Module, prefix: str = "") -> list[tuple[str, EmbeddingBagCollection]]:
    """Return the collections that are not inside of another, by name."""
    if isinstance(module, EmbeddingBagCollection):
        return [(prefix, module)]
    found = []
    for name, child in module.named_children():
        found += _outermost(child, f"{prefix}.{name}" if prefix else name)
    return found
