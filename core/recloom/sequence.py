"""Behaviour sequences in a model: the slot `sequence_encoder`, and what brings a history to it.

Letters in shapes: B rows, L places of the padded histories, K aligned ids of a step, D embedding width, W width of a
step. The latest step is at place L-1; shorter histories are padded in front, where `mask` is False.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from recloom.batch import Batch
from recloom.embedding import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingFactory
from recloom.errors import RecloomError
from recloom.features import FeatureSchema, SequenceFeature, SparseFeature
from recloom.tracing import is_exporting

Histories = dict[str, Tensor]
"""What a model's `forward` gets of histories; of one that is named NAME: "NAME" B x L x K ids, "NAME:mask" B x L, True
where there is a step, and, if its steps have times, "NAME:gaps" B x L seconds from a step to the sample's own time."""


class SequenceEncoder(nn.Module, ABC):
    """Makes one vector of a history, as seen from a candidate: the slot `sequence_encoder` of a model.

    Nothing of the places where `mask` is False may reach the output, which is finite for empty histories too, and
    which does not change when more padding is put in front.

    Args:
        width: Width of a step's vector and of the query, W.
        max_length: The longest history there can be; L is at most this.
    """

    output_dim: int
    """Width of the output; set by the subclass's constructor."""
    uses_query: bool = True
    """Whether the output depends on the candidate."""

    def __init__(self, width: int, max_length: int) -> None:
        super().__init__()
        self.width = width
        self.max_length = max_length

    @abstractmethod
    def forward(self, steps: Tensor, query: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return B x output_dim.

        Args:
            steps: B x L x W, oldest first, zeros where there is no step.
            query: B x W, the candidate.
            mask: B x L, True where there is a step.
            gaps: B x L seconds from each step to now (0 where there is no step), if the data have times.
        """


SequenceEncoderFactory = Callable[[int, int], SequenceEncoder]


class AuxiliaryLoss(nn.Module):
    """A module with a loss of its own, which training adds to the model's.

    `forward` sets `auxiliary_loss` while training; RankingModule.training_loss takes it, wherever the module is.
    """

    auxiliary_loss: Tensor | None = None


def take_auxiliary_losses(modules: Iterable[AuxiliaryLoss]) -> list[Tensor]:
    """Return the losses that `modules` have set since the last call."""
    found = [module.auxiliary_loss for module in modules if module.auxiliary_loss is not None]
    for module in modules:
        module.auxiliary_loss = None
    return found


def histories_of(batch: Batch) -> Histories:
    """Return the padded views of a batch's sequences, with the gaps to the rows' times."""
    found: Histories = {}
    for name, sequences in batch.sequences.items():
        length = max(sequences.longest, 1)
        found[name], found[f"{name}:mask"] = sequences.padded(length)
        if sequences.timestamps is not None and batch.timestamps is not None:
            found[f"{name}:gaps"] = sequences.gaps(batch.timestamps, length)
    return found


class SequenceArch(nn.Module):
    """The histories of a schema as vectors of the tables' width, one a history.

    A step's vector is its keys' rows side by side (W = K D). A key that shares its table with a sparse feature looks up
    there, and its part of the query is that feature's vector; other keys (a behaviour, a rating) have tables here, and
    learned vectors in the query.

    Args:
        schema: The data's schema.
        tables: The model's tables, of which `forward` gets the same.
        embedding: Makes the tables of the other keys.
        encoder: Makes the encoder of a history from W and its longest length.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        tables: EmbeddingBagCollection,
        embedding: EmbeddingFactory,
        encoder: SequenceEncoderFactory,
    ) -> None:
        super().__init__()
        if not schema.sequences:
            raise RecloomError(
                "a sequence_encoder is configured, and the data have no histories",
                "Use data with histories (recloom prepare taobao, movielens or events), or leave sequence_encoder out.",
            )
        self.histories = schema.sequences
        self._shared = {feature.table_name: i for i, feature in reversed(list(enumerate(schema.sparse)))}
        self._lender = {feature.table_name: feature.name for feature in schema.sparse}
        own = [key for history in schema.sequences for key in history.keys if key.table_name not in self._shared]
        tables_ = {key.table_name: key for key in own}.values()
        width = tables.output_dim
        stored = tables.tables[0].embedding_dim  # as the model's own tables were made, and as wide they come out
        self.own = embedding([_table(key, stored) for key in tables_]) if own else None
        encoders = [encoder(len(history.keys) * width, history.max_length) for history in schema.sequences]
        self.encoders = nn.ModuleList(encoders)
        self.project = nn.ModuleList(
            [nn.Identity() if e.output_dim == width else nn.Linear(e.output_dim, width) for e in encoders]
        )
        unseen = [
            _query_name(history, key)
            for history, made in zip(schema.sequences, encoders, strict=True)
            for key in history.keys
            if made.uses_query and key.table_name not in self._shared
        ]
        self.unseen = nn.ParameterDict({name: nn.Parameter(torch.randn(width) * 0.1) for name in unseen})

    @property
    def num_vectors(self) -> int:
        """Number of histories, S."""
        return len(self.histories)

    def forward(self, tables: EmbeddingBagCollection, vectors: Tensor, histories: Histories | None) -> Tensor:
        """Return B x S x D.

        Args:
            tables: The model's tables.
            vectors: B x F x D, the sparse features' vectors.
            histories: See `Histories`.
        """
        if histories is None:
            raise RecloomError("this model encodes histories, and got none", "Use data with histories.")
        found = []
        for history, encoder, project in zip(self.histories, self.encoders, self.project, strict=True):
            ids, mask = histories[history.name], histories[f"{history.name}:mask"]
            steps = self._steps(tables, history, ids, mask)
            if encoder.uses_query:
                query = torch.cat([self._query(history, key, vectors) for key in history.keys], dim=1)  # B x W
            else:
                query = torch.zeros_like(steps[:, 0])
            found.append(project(encoder(steps, query, mask, histories.get(f"{history.name}:gaps"))))
        return torch.stack(found, dim=1)

    def _steps(self, tables: EmbeddingBagCollection, history: SequenceFeature, ids: Tensor, mask: Tensor) -> Tensor:
        """Return B x L x W; only the rows of real steps are looked up."""
        if is_exporting():  # without shapes that depend on data
            return torch.cat(self._rows(tables, history, ids), dim=-1) * mask[..., None]
        places = mask.reshape(-1).nonzero().squeeze(1)
        rows = torch.cat(self._rows(tables, history, ids.flatten(0, 1)[places]), dim=-1)  # N x W
        if len(places) < mask.numel():
            rows = rows.new_zeros(mask.numel(), rows.shape[1]).index_copy(0, places, rows)
        return rows.view(*mask.shape, -1)

    def _rows(self, tables: EmbeddingBagCollection, history: SequenceFeature, ids: Tensor) -> list[Tensor]:
        found = []
        for place, key in enumerate(history.keys):
            if key.table_name in self._shared:
                found.append(tables.lookup(self._lender[key.table_name], ids[..., place]))
            else:
                assert self.own is not None
                found.append(self.own.lookup(key.table_name, ids[..., place]))
        return found

    def _query(self, history: SequenceFeature, key: SparseFeature, vectors: Tensor) -> Tensor:
        if key.table_name in self._shared:
            return vectors[:, self._shared[key.table_name]]
        return self.unseen[_query_name(history, key)].expand(vectors.shape[0], -1)


def _table(key: SparseFeature, width: int) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(key.table_name, width, key.num_embeddings, (key.table_name,))


def _query_name(history: SequenceFeature, key: SparseFeature) -> str:
    return f"{history.name} {key.name}".replace(".", "_")
