"""What core itself registers, through the same catalog as plugins do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recloom.catalog import Catalog


def register(catalog: Catalog) -> None:
    """Add core's components: import paths only, nothing is imported."""
    for name, path, summary in (
        ("plugins", "lists:plugins", "list installed plugins, and why a broken one is not in use"),
        ("components", "lists:components", "list registered components by kind"),
        ("prepare", "prepare:main", "turn a raw log of any size into Parquet shards with a schema"),
        ("fit", "trainer:fit", "train a model from a config"),
        ("validate", "trainer:validate", "evaluate a checkpoint on the validation rows"),
        ("test", "trainer:test", "evaluate a checkpoint on the test rows"),
        ("predict", "trainer:predict", "write a checkpoint's predictions to Parquet"),
        ("export", "export:main", "write a checkpoint as torch.export or ONNX, checked against eager"),
        ("bench", "commands:bench", "run a plugin's speed measurements"),
        ("reproduce", "commands:reproduce", "run a paper's experiment and judge its claims"),
        ("new-plugin", "scaffold:main", "write a plugin of your own to start from"),
    ):
        catalog.commands.add(name, f"recloom.cli.{path}", summary=summary)
    data = catalog.datamodules
    data.add("SyntheticClicks", "recloom.data.synthetic:SyntheticClicks", summary="clicks of known probability")
    data.add("ParquetClicks", "recloom.data.parquet:ParquetClicks", summary="shards written by recloom prepare")
    for name, path, summary in (
        ("criteo", "criteo:Criteo", "Criteo Kaggle: 13 counts, 26 categories, TAB"),
        ("criteo_terabyte", "criteo:CriteoTerabyte", "Criteo 1TB click logs, day files"),
        ("avazu", "avazu:Avazu", "Avazu click-through rate prediction"),
        ("kdd12", "kdd12:KDD12", "KDD Cup 2012 track 2"),
        ("table", "table:Table", "any CSV or Parquet table, columns named by options"),
    ):
        catalog.formats.add(name, f"recloom.data.formats.{path}", summary=summary)
    embeddings = catalog.embeddings
    embeddings.add("FusedEmbeddingBag", "recloom.embedding:FusedEmbeddingBag", summary="all tables in one weight")
    embeddings.add(
        "FbgemmEmbeddingBag",
        "recloom.embedding_fbgemm:FbgemmEmbeddingBag",
        summary="FBGEMM's table-batched",
        extra="fbgemm",
    )
