"""Users of a shard directory as the sets of the vectors of their items."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from recloom.data.manifest import SCHEMA, Manifest
from recloom.errors import DataError, suggest
from recloom.features import FeatureSchema
from recloom_distkernels.readers import GroupTable
from recloom_distkernels.samplesets import SampleSets


def read_users(directory: Path, vectors: str | Path = "", dim: int = 10, feature: str = "item") -> GroupTable:
    """Read the users of all splits: each is the set of the vectors of the items they took up.

    A user's items are those of their histories and of their rows with a positive label, each once.

    Args:
        directory: Written by `recloom prepare` from an event log.
        vectors: .npy file of V x d vectors, a row an id of `feature`; or the folder of a run on these data, whose
            model's embedding is taken; empty: see `svd_vectors`.
        dim: Dimension of the vectors that are made.
        feature: What users are sets of.

    Raises:
        DataError: The data have no users or no such feature, or the vectors don't fit.
    """
    manifest = Manifest.load(directory)
    schema = FeatureSchema.load(directory / SCHEMA)
    names = [f"{history.name}:{key.name}" for history in schema.sequences for key in history.keys]
    sizes = {f.name: f.num_embeddings for f in schema.sparse} | {
        key.name: key.num_embeddings for history in schema.sequences for key in history.keys
    }
    if feature not in sizes:
        raise DataError(f"{directory}: there is no feature {feature!r}", suggest(feature, sizes))
    if not schema.group:
        raise DataError(
            f"{directory}: these data do not tell users apart", "Prepare an event log: recloom prepare movielens, ..."
        )
    histories = [name for name in names if name.rpartition(":")[2] == feature]
    files = [directory / shard.file for shards in manifest.splits.values() for shard in shards]
    own = feature in schema.sparse_names
    pairs = np.concatenate([_pairs(file, schema, feature if own else "", histories) for file in files])
    pairs = np.unique(pairs, axis=0)
    users, starts = np.unique(pairs[:, 0], return_index=True)
    offsets = np.append(starts, len(pairs))
    items = pairs[:, 1]
    if vectors:
        path = Path(vectors)
        table = trained_vectors(path, feature) if path.is_dir() else _load(path)
        if table.ndim != 2 or len(table) != sizes[feature]:
            shape = " x ".join(map(str, table.shape))
            raise DataError(f"{path}: {shape} vectors", f"Give {sizes[feature]:,} rows, one an id of {feature!r}.")
    else:
        table = svd_vectors(items, offsets, sizes[feature], dim)
    sets = SampleSets.from_ids(
        torch.from_numpy(table),
        torch.from_numpy(items),
        torch.from_numpy(offsets),
        _names(directory, schema, users, files),
    )
    return GroupTable(sets, None, tuple(f"{feature}{i}" for i in range(sets.dim)))


def svd_vectors(items: np.ndarray, offsets: np.ndarray, count: int, dim: int) -> np.ndarray:
    """Return count x dim float32 item vectors of unit length: a truncated SVD of who took up what.

    The S x count matrix of ones is divided by the square roots of its row and column sums first.

    Args:
        items: N item ids, user by user.
        offsets: S+1 bounds of the users in `items`.
        count: Number of items, V.
        dim: Dimension.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    users = np.diff(offsets)
    popularity = np.bincount(items, minlength=count)
    values = 1 / np.sqrt(np.repeat(users, users) * popularity[items])
    matrix = csr_matrix((values, items, offsets), shape=(len(users), count))
    if not 0 < dim < min(matrix.shape):
        raise DataError(
            f"there are no {dim} dimensions in {len(users)} users of {count} items", "Take a smaller --dim."
        )
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    _, scale, right = svds(matrix, k=dim, v0=start)
    found = right.T * scale
    return (found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def trained_vectors(run: Path, feature: str) -> np.ndarray:
    """Return the V x d float32 embedding of a feature in the best (else the last) checkpoint of a run.

    Raises:
        DataError: There is no run with a checkpoint, or its model has no embedding of the feature.
    """
    from recloom.embedding import EmbeddingBagCollection
    from recloom.loading import load_trained

    checkpoints = [run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    found = next((path for path in checkpoints if path.exists()), None)
    if found is None:
        raise DataError(f"{run}: there is no run with a checkpoint here", "Train first: recloom fit ...")
    known: list[str] = []
    for part in load_trained(run / "config.yaml", found).modules():
        if isinstance(part, EmbeddingBagCollection):
            known += part.feature_names
            for table in part.tables:
                if feature in table.feature_names:
                    return part.table_weight(table.name).detach().numpy().astype(np.float32)
    raise DataError(f"{run}: its model has no embedding of {feature!r}", suggest(feature, known))


def _pairs(file: Path, schema: FeatureSchema, feature: str, histories: list[str]) -> np.ndarray:
    """Return the distinct (user, item) pairs of a shard."""
    label = schema.labels[0]
    columns = [schema.group, label, *([feature] if feature else []), *histories]
    found = [np.empty((0, 2), np.int64)]
    for batch in _batches(file, columns):
        group = batch[schema.group].to_numpy().astype(np.int64)
        if feature:
            taken = batch[label].to_numpy() > 0
            found.append(np.stack([group[taken], batch[feature].to_numpy()[taken].astype(np.int64)], axis=1))
        for name in histories:
            lengths = np.diff(batch[name].offsets.to_numpy())
            ids = batch[name].flatten().to_numpy().astype(np.int64)
            found.append(np.stack([np.repeat(group, lengths), ids], axis=1))
        found = [np.unique(np.concatenate(found), axis=0)]
    return found[0]


def _batches(file: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(file) as reader:
        for batch in reader.iter_batches(columns=columns):
            yield {name: batch.column(name) for name in batch.schema.names}


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not an array of numpy.save: {error}", "Give V x d vectors.") from error


def _names(directory: Path, schema: FeatureSchema, groups: np.ndarray, files: list[Path]) -> list[Any]:
    """Return the users' names in the raw log, if the data have them, else the numbers of their groups."""
    user = next((f for f in schema.sparse if f.name == "user" and f.vocabulary), None)
    if user is None:
        return groups.tolist()
    words = pq.read_table(directory / user.vocabulary)["value"].to_pylist()
    known: dict[int, int] = {}
    for file in files:
        for batch in _batches(file, [schema.group, "user"]):
            keys, first = np.unique(batch[schema.group].to_numpy(), return_index=True)
            known.update(zip(keys.tolist(), batch["user"].to_numpy()[first].tolist(), strict=True))
    return [words[known[group]] or group for group in groups.tolist()]
