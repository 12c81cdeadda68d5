"""A ranking model behind the named inputs that a server feeds it, and random inputs to check it with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recloom.embedding import EmbeddingBagCollection
from recloom.model import RankingModule
from recloom.rowlayout import bag_of_values


class ServingModel(nn.Module):
    """A ranking model behind named inputs; an id that a table does not have counts as id 0, the unknown one.

    Args:
        module: The model.
        logits: Whether to return logits instead of probabilities.
    """

    def __init__(self, module: RankingModule, logits: bool = False) -> None:
        super().__init__()
        self.module = module
        self.logits = logits
        rows = torch.tensor([feature.num_embeddings for feature in module.schema.sparse])
        self.register_buffer("rows", rows, persistent=False)

    def forward(
        self,
        sparse: Tensor | None = None,
        values: Tensor | None = None,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
        dense: Tensor | None = None,
    ) -> Tensor:
        """Return B probabilities, or B x T for T labels.

        Args:
            sparse: B x F ids, for one-hot data; or the next two:
            values: N ids, key-major: those of feature 0 for samples 0..B-1, then those of feature 1, ...
            lengths: F x B numbers of values.
            weights: N value weights, if a table has weighted pooling.
            dense: B x (dense features), if the schema has any.
        """
        rows = self.get_buffer("rows")
        if sparse is not None:
            batch, offsets = sparse.shape[0], None
            ids = torch.where((sparse >= 0) & (sparse < rows), sparse, 0).t().reshape(-1)
        else:
            assert values is not None
            assert lengths is not None
            batch = lengths.shape[1]
            offsets = torch.cat([lengths.new_zeros(1), lengths.flatten().cumsum(0)])
            limit = rows[bag_of_values(values, offsets) // batch]
            ids = torch.where((values >= 0) & (values < limit), values, 0)
        if dense is None:
            dense = torch.zeros(batch, 0, device=ids.device)
        out = self.module(dense, ids, offsets, weights)
        return out if self.logits else torch.sigmoid(out)

    @property
    def output_name(self) -> str:
        """Name of the output."""
        return "logit" if self.logits else "probability"

    def describe(self, batch_size: int | None) -> dict[str, Any]:
        """Return the names, types and shapes of inputs and outputs; `batch_size` None stands for any."""
        schema = self.module.schema
        batch: str | int = batch_size or "batch"
        sparse, dense = schema.sparse_names, [feature.name for feature in schema.dense]
        known: dict[str, dict[str, Any]] = {
            "sparse": {"shape": [batch, len(sparse)], "features": sparse},
            "values": {"shape": ["values"], "layout": "all samples of the first feature, then of the second, ..."},
            "lengths": {"shape": [len(sparse), batch], "features": sparse},
            "weights": {"shape": ["values"]},
            "dense": {"shape": [batch, len(dense)], "features": dense},
        }
        example = random_inputs(self.module, 1, seed=0)
        shape = [batch] if len(schema.labels) == 1 else [batch, len(schema.labels)]
        return {
            "inputs": [
                {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), **known[name]}
                for name, tensor in example.items()
            ],
            "outputs": [{"name": self.output_name, "dtype": "float32", "shape": shape, "labels": list(schema.labels)}],
            "unknown_ids": "an id outside its table counts as id 0",
        }


def random_inputs(module: RankingModule, batch: int, seed: int) -> dict[str, Tensor]:
    """Return random inputs of a ServingModel for `batch` samples; bags have 0 to 4 values."""
    schema, generator = module.schema, torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    if schema.one_hot and not _weighted(module):
        columns = [torch.randint(0, f.num_embeddings, (batch,), generator=generator) for f in schema.sparse]
        inputs["sparse"] = torch.stack(columns, dim=1)
    else:
        bounds = [(1, 2) if f.max_length == 1 else (0, min(f.max_length or 4, 4) + 1) for f in schema.sparse]
        lengths = torch.stack([torch.randint(*bound, (batch,), generator=generator) for bound in bounds])
        counts = zip(schema.sparse, lengths.sum(1).tolist(), strict=True)
        ids = [torch.randint(0, f.num_embeddings, (n,), generator=generator) for f, n in counts]
        inputs |= {"values": torch.cat(ids), "lengths": lengths}
        if _weighted(module):
            inputs["weights"] = torch.rand(len(inputs["values"]), generator=generator)
    if schema.dense:
        inputs["dense"] = torch.randn(batch, len(schema.dense), generator=generator)
    return inputs


def _weighted(module: RankingModule) -> bool:
    collections = (child for child in module.modules() if isinstance(child, EmbeddingBagCollection))
    return any(table.pooling == "weighted" for collection in collections for table in collection.tables)
