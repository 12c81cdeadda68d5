"""Ranking models that are split for retrieval: a user's code once a request, items' codes stored, a scorer of both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recloom.batch import Batch
from recloom.errors import RecloomError
from recloom.features import FeatureSchema
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig
from recloom.retrieval.index import Floats, Parts
from recloom.retrieval.rows import Rows
from recloom.retrieval.sides import Sides

ENCODED_ROWS = 8192


class RetrievalModule(RankingModule):
    """A RankingModule whose logit is a function of a user's code and an item's code.

    A subclass makes `user_encoder` and `item_encoder`, RankingModules over the two sides' schemas
    (`self.sides.schemas`) whose labels stand for the codes' columns, and defines `rows` and `scorers`.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        item_features: Features that describe the item; unset: those that the data name.
        optimizer: Optimizers and learning rates.
    """

    user_encoder: RankingModule
    item_encoder: RankingModule
    inner_product: bool = False
    """Whether the score is the inner product of the codes, plus what is the same for all items."""

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        item_features: Sequence[str] | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, optimizer)
        self.sides = Sides(self.schema, item_features or ())

    @abstractmethod
    def rows(self, users: Tensor, items: Tensor) -> Tensor:
        """Return B logits, or B x T, of B users' codes and B items' codes."""

    @abstractmethod
    def scorers(self) -> dict[str, nn.Module]:
        """Return modules that map U x du users and U x L x di items to U x L scores: "score", and others by name."""

    def tables(self) -> dict[str, NDArray]:
        """Return the arrays that an index of the model's own kind needs; by default none."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return further numbers and names for such an index, JSON values; by default none."""
        return {}

    def parts(self) -> Parts:
        """Return what indexes are made of, with this module's own (eager) scorers."""
        user, item = (len(side.schema.labels) for side in (self.user_encoder, self.item_encoder))
        return Parts(user, item, self.inner_product, self.scorers(), self.tables(), self.facts())

    def codes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the users' and the items' codes of a batch, B x du and B x di."""
        users = self.user_encoder.logits(self.sides.batch(batch, 0))
        return users, self.item_encoder.logits(self.sides.batch(batch, 1))

    def forward(
        self, dense: Tensor, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return B logits, or B x T; for data without histories. `logits` takes any batch."""
        user, item = self.sides.tensors(dense, values, offsets, weights)
        return self.rows(self.user_encoder(*user), self.item_encoder(*item))

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of a batch."""
        return self.rows(*self.codes(batch))


@torch.no_grad()
def encode(encoder: RankingModule, rows: Rows) -> Floats:
    """Return the codes of users or items, N x (width of the code)."""
    training = encoder.training
    encoder.eval()
    parts = [encoder.logits(part.batch.to(encoder.device)).float().cpu().numpy() for part in rows.chunks(ENCODED_ROWS)]
    encoder.train(training)
    return np.concatenate(parts) if parts else np.empty((0, len(encoder.schema.labels)), np.float32)


class Encoder(RankingModule):
    """A tower whose output is the code, with parts of it brought to length 1, and ids of the side beside it.

    Made by `of`, which sets the tower: a RankingModule's own arguments are to be primitives.

    Args:
        schema: The side's schema; its labels stand for the columns of the code.
        normalised: Spans of columns (start, end), in ascending order, that are scaled to length 1.
        ids: Sparse features, with one id a row, whose ids stand in the last columns of the code.
    """

    tower: RankingModule
    """Maps features to the code, before lengths and without ids."""

    def __init__(
        self, schema: dict[str, Any], normalised: Sequence[Sequence[int]] = (), ids: Sequence[str] = ()
    ) -> None:
        super().__init__(schema)
        names = self.schema.sparse_names
        for name in ids:
            if name not in names or self.schema.sparse[names.index(name)].max_length != 1:
                raise RecloomError(f"{name!r} is no feature of this side with one id a row", "Name one that is.")
        self.spans = [tuple(span) for span in normalised]
        self.places = [names.index(name) for name in ids]

    @classmethod
    def of(cls, tower: RankingModule, normalised: Sequence[Sequence[int]] = (), ids: Sequence[str] = ()) -> Encoder:
        """Return the encoder of a tower, whose schema's labels stand for the columns of its output."""
        made = cls(side_schema(tower.schema, len(tower.schema.labels) + len(ids)), normalised, ids)
        made.tower = tower
        made.uses_histories = tower.uses_histories
        made.export_tolerance = max(tower.export_tolerance, made.export_tolerance)
        return made

    def forward(
        self,
        dense: Tensor,
        values: Tensor,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
        histories: Any = None,
    ) -> Tensor:
        """Return B x (width of the code)."""
        inputs = (dense, values, offsets, weights)
        code = self.tower(*inputs, histories) if self.uses_histories else self.tower(*inputs)
        columns = list(self._scaled(code)) if self.spans else [code]
        rows = code.shape[0]
        for place in self.places:
            span = slice(place * rows, (place + 1) * rows)
            ids = values[span] if offsets is None else values[offsets[span]]
            columns.append(ids.to(code.dtype)[:, None])
        return torch.cat(columns, dim=1) if len(columns) > 1 else columns[0]

    def _scaled(self, code: Tensor) -> Iterator[Tensor]:
        last = 0
        for start, end in self.spans:
            yield code[:, last:start]
            yield nn.functional.normalize(code[:, start:end], dim=1)
            last = end
        yield code[:, last:]


def side_schema(schema: FeatureSchema, width: int) -> dict[str, Any]:
    """Return a side's schema with `width` labels, which stand for the columns of its code."""
    return {**schema.to_dict(), "labels": [f"e{place}" for place in range(width)]}
