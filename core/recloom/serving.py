"""A ranking model behind the named inputs that a server feeds it, and random inputs to check it with."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recloom.batch import Batch, KeyedJaggedTensor, Sequences
from recloom.embedding import EmbeddingBagCollection
from recloom.features import SequenceFeature
from recloom.model import RankingModule
from recloom.rowlayout import bag_of_values
from recloom.sequence import Histories

NAMES = ("sparse", "values", "lengths", "weights", "dense")
LONGEST_GAP = 30 * 86_400  # s, of random inputs


@dataclass(frozen=True)
class HistoryInput:
    """The inputs of one history: B x L x K ids, B lengths, and, if the model is told gaps, B x L seconds.

    Args:
        history: The history; L is its longest length.
        name: Name of the ids' input: the history's own, or the nearest one that is legal and free.
        timed: Whether there is an input of gaps.
    """

    history: SequenceFeature
    name: str
    timed: bool

    @property
    def lengths(self) -> str:
        """Name of the lengths' input."""
        return f"{self.name}_lengths"

    @property
    def gaps(self) -> str:
        """Name of the gaps' input."""
        return f"{self.name}_gaps"

    def mask(self, lengths: Tensor) -> Tensor:
        """Return B x L, True where there is a step: the last `lengths` places."""
        return torch.arange(-self.history.max_length, 0, device=lengths.device) >= -lengths[:, None]


def history_inputs(module: RankingModule) -> list[HistoryInput]:
    """Return the inputs of the histories that `module` uses, with names that a Python keyword can have."""
    found: list[HistoryInput] = []
    taken = {"self", *NAMES}
    for history in module.schema.sequences if module.uses_histories else ():
        name = re.sub(r"\W|^(?=\d)", "_", history.name, flags=re.ASCII)
        timed = history.timestamps and bool(module.schema.timestamp)
        names = {name, f"{name}_lengths", f"{name}_gaps"}
        while taken & names or keyword.iskeyword(name):
            name += "_"
            names = {name, f"{name}_lengths", f"{name}_gaps"}
        taken |= names
        found.append(HistoryInput(history, name, timed))
    return found


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
        self.histories = history_inputs(module)
        for place, part in enumerate(self.histories):
            rows = torch.tensor([key.num_embeddings for key in part.history.keys])
            self.register_buffer(f"history_rows_{place}", rows, persistent=False)

    def forward(
        self,
        sparse: Tensor | None = None,
        values: Tensor | None = None,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
        dense: Tensor | None = None,
        **histories: Tensor,
    ) -> Tensor:
        """Return B probabilities, or B x T for T labels.

        Args:
            sparse: B x F ids, for one-hot data; or the next two:
            values: N ids, key-major: those of feature 0 for samples 0..B-1, then those of feature 1, ...
            lengths: F x B numbers of values.
            weights: N value weights, if a table has weighted pooling.
            dense: B x (dense features), if the schema has any.
            histories: Of each history NAME that the model uses: NAME, B x L x K ids, the latest step at place L-1;
                NAME_lengths, B numbers of steps (places before them may hold anything); and, if steps and samples
                have times, NAME_gaps, B x L seconds from a step to now.
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
        inputs = (dense, ids, offsets, weights)
        out = self.module(*inputs, self._padded(histories)) if self.histories else self.module(*inputs)
        return out if self.logits else torch.sigmoid(out)

    def _padded(self, inputs: dict[str, Tensor]) -> Histories:
        """Return what the model's `forward` takes of histories."""
        found: Histories = {}
        for place, part in enumerate(self.histories):
            name, ids = part.history.name, inputs[part.name]
            mask = part.mask(inputs[part.lengths])
            known = (ids >= 0) & (ids < self.get_buffer(f"history_rows_{place}"))
            found[name], found[f"{name}:mask"] = torch.where(known & mask[..., None], ids, 0), mask
            if part.timed:
                found[f"{name}:gaps"] = torch.where(mask, inputs[part.gaps], 0.0)
        return found

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
        for part in self.histories:
            history = {"history": part.history.name}
            shape = [batch, part.history.max_length]
            keys = [key.name for key in part.history.keys]
            layout = "the latest step last; what is before the steps is not read"
            known[part.name] = {"shape": [*shape, len(keys)], **history, "keys": keys, "layout": layout}
            known[part.lengths] = {"shape": [batch], **history}
            known[part.gaps] = {"shape": shape, **history, "unit": "seconds from the step to now"}
        example = random_inputs(self.module, 1, seed=0)
        out = [batch] if len(schema.labels) == 1 else [batch, len(schema.labels)]
        return {
            "inputs": [
                {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), **known[name]}
                for name, tensor in example.items()
            ],
            "outputs": [{"name": self.output_name, "dtype": "float32", "shape": out, "labels": list(schema.labels)}],
            "unknown_ids": "an id outside its table counts as id 0",
        }


def random_inputs(module: RankingModule, batch: int, seed: int) -> dict[str, Tensor]:
    """Return random inputs of a ServingModel for `batch` samples; bags have 0 to 4 values, histories 0 to L steps."""
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
    for part in history_inputs(module):
        inputs |= _random_history(part, batch, generator)
    return inputs


def _random_history(part: HistoryInput, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return a history's inputs; of two or more samples, the first has no step and the last has L."""
    longest = part.history.max_length
    keys = [torch.randint(0, key.num_embeddings, (batch, longest), generator=generator) for key in part.history.keys]
    lengths = torch.randint(0, longest + 1, (batch,), generator=generator)
    if batch > 1:
        lengths[0], lengths[-1] = 0, longest
    inputs = {part.name: torch.stack(keys, dim=2), part.lengths: lengths}
    if part.timed:
        gaps = torch.randint(0, LONGEST_GAP, (batch, longest), generator=generator)
        inputs[part.gaps] = gaps.sort(dim=1, descending=True).values.float()
    return inputs


def batch_of(module: RankingModule, inputs: dict[str, Tensor]) -> Batch:
    """Return the batch of training data that `inputs` are the named inputs of; ids must be in their tables."""
    names, lengths = module.schema.sparse_names, inputs.get("lengths")
    values = inputs["sparse"].t().reshape(-1) if "sparse" in inputs else inputs["values"]
    rows = len(inputs["sparse"]) if lengths is None else lengths.shape[1]
    flat = None if lengths is None else lengths.flatten()
    now, sequences = torch.full((rows,), 2 * LONGEST_GAP), {}
    for part in history_inputs(module):
        mask = part.mask(inputs[part.lengths])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
        times = (now[:, None] - inputs[part.gaps].long())[mask] if part.timed else None
        keys = [key.name for key in part.history.keys]
        sequences[part.history.name] = Sequences(keys, inputs[part.name][mask], offsets, times)
    return Batch(
        dense_features=inputs.get("dense", torch.zeros(rows, 0)),
        sparse_features=KeyedJaggedTensor(names, values, lengths=flat, weights=inputs.get("weights")),
        labels=torch.zeros(rows),
        sequences=sequences,
        timestamps=now,
    )


def _weighted(module: RankingModule) -> bool:
    collections = (child for child in module.modules() if isinstance(child, EmbeddingBagCollection))
    return any(table.pooling == "weighted" for collection in collections for table in collection.tables)
