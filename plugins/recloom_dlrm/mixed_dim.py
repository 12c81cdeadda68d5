"""Mixed-dimension embedding tables: popular categories wide, rare ones narrow and projected to the common width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from recloom import rowgrad
from recloom.embedding import EmbeddingBagCollection, EmbeddingBagConfig, FusedEmbeddingBag
from recloom.errors import RecloomError, unknown
from recloom.rowlayout import RowLayout, bag_of_values
from recloom.tracing import is_exporting
from recloom_dlrm.values import check_ids, table_layout


class MixedDimEmbeddingBag(EmbeddingBagCollection):
    """Mixed-dimension tables (Ginart et al. 2019, arXiv 1909.11810): table i has width d_i <= D and a projection.

    d_i = D (n_min / n_i)^alpha, rounded, at least 1, for n_i rows and the smallest table's n_min. A pooled vector
    of width d_i goes through a d_i x D matrix without a bias. Tables of one width are one fused weight.

    `table_weight` gives a table's rows, num_embeddings x d_i; `projection` its d_i x D matrix.

    Args:
        tables: The tables, all of one width, D.
        alpha: Temperature: 0 leaves all tables at width D; the larger, the narrower large tables are.
        threshold: Tables with more rows than this are narrowed.
        power_of_two: Round widths to the nearest power of two: fewer fused weights, aligned rows.
        seed: Seed of the initial values; by default the global seed (`seed_everything`).
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        alpha: float = 0.3,
        threshold: int = 200,
        power_of_two: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(tables)
        if alpha < 0:
            raise RecloomError(f"alpha is {alpha}", "It must be 0 or more: 0 narrows nothing.")
        self.layout = table_layout(self.tables)
        seed = torch.initial_seed() if seed is None else seed
        widths = mixed_dims([t.num_embeddings for t in self.tables], self.one_width(), alpha, power_of_two)
        self.widths = {
            table.name: width if table.num_embeddings > threshold else self.output_dim
            for table, width in zip(self.tables, widths, strict=True)
        }
        self.compressed = [table for table in self.tables if self.widths[table.name] < self.output_dim]
        groups = [_Group(self, width, seed) for width in sorted(set(self.widths.values()))]
        self.groups = nn.ModuleList(groups)
        order = torch.tensor([place for group in groups for place in group.places])
        self.register_buffer("order", torch.argsort(order), persistent=False)

    def forward(self, values: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Return the pooled and projected rows, B x F x D; see the base class."""
        check_ids(values, offsets, self.layout)
        outputs = [group(values, offsets, weights) for group in self.groups]
        return torch.cat(outputs, dim=1).index_select(1, self.get_buffer("order"))

    def lookup(self, feature: str, ids: Tensor) -> Tensor:
        """Return the projected rows of `ids`, ids.shape x D; see the base class."""
        for group in self.groups:
            assert isinstance(group, _Group)
            if feature in group.rows.feature_names:
                rows = group.rows.lookup(feature, ids)
                if group.projections is None:
                    return rows
                return rows @ group.projections[group.table_of[group.rows.feature_names.index(feature)]]
        raise unknown("feature", feature, self.feature_names)

    def table_weight(self, name: str) -> Tensor:
        """Return the table's rows, num_embeddings x its own width: a view."""
        return self._group(name).rows.table_weight(name)

    def projection(self, name: str) -> Tensor | None:
        """Return the table's projection, its width x D: a view; None for a table of width D."""
        group = self._group(name)
        if group.projections is None:
            return None
        return group.projections.detach()[[table.name for table in group.rows.tables].index(name)]

    def _group(self, name: str) -> _Group:
        if name not in self.widths:
            raise unknown("table", name, self.widths)
        group = self.groups[sorted(set(self.widths.values())).index(self.widths[name])]
        assert isinstance(group, _Group)
        return group

    def extra_repr(self) -> str:
        """Say how wide the tables are."""
        return (
            f"{len(self.compressed)} of {len(self.tables)} tables narrowed, widths {sorted(set(self.widths.values()))}"
        )


def mixed_dims(rows: Sequence[int], dim: int, alpha: float, power_of_two: bool = False) -> list[int]:
    """Return the width of each table, dim (n_min / n)^alpha, rounded and at least 1 (Ginart et al. 2019, alg. 1)."""
    exact = [max(1.0, dim * (min(rows) / n) ** alpha) for n in rows]
    return [min(dim, 2 ** round(math.log2(width))) if power_of_two else round(width) for width in exact]


class _Group(nn.Module):
    """The tables of one width w: one fused weight, and a projection to D for each table, T x w x D."""

    def __init__(self, owner: MixedDimEmbeddingBag, width: int, seed: int) -> None:
        super().__init__()
        mine = [table for table in owner.tables if owner.widths[table.name] == width]
        self.rows: EmbeddingBagCollection = FusedEmbeddingBag([replace(t, embedding_dim=width) for t in mine], seed)
        self.places = [owner.feature_names.index(name) for name in self.rows.feature_names]
        self.table_of = [index for index, table in enumerate(mine) for _ in table.feature_names]
        self.features = owner.num_features
        self.projections: nn.Parameter | None = None
        if width < owner.output_dim:
            bound = math.sqrt(6 / (width + owner.output_dim))  # xavier_uniform
            generator = torch.Generator().manual_seed(seed)
            start = torch.empty(len(mine), width, owner.output_dim)
            self.projections = nn.Parameter(start.uniform_(-bound, bound, generator=generator))
        self.all = self._among(owner.layout)
        self.register_buffer("place", torch.tensor(self.places), persistent=False)
        self.register_buffer("table", torch.tensor(self.table_of), persistent=False)

    def _among(self, layout: RowLayout) -> RowLayout:
        """Return the layout of all features in this weight, those of other groups in its first row: for export."""
        assert isinstance(self.rows, FusedEmbeddingBag)
        base = dict(zip(self.places, self.rows.layout.base, strict=True))
        bases = tuple(base.get(place, 0) for place in range(self.features))
        return RowLayout(layout.features, bases, layout.rows, layout.pooling, layout.table)

    def forward(self, values: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        """Return the projected bags of this group's features, B x F' x D; inputs are of all features."""
        if len(self.places) == self.features:
            pooled = self.rows(values, offsets, weights)
        elif offsets is None:
            place = self.get_buffer("place")
            mine = values.view(self.features, -1).index_select(0, place).view(-1)
            kept = None if weights is None else weights.view(self.features, -1).index_select(0, place).view(-1)
            pooled = self.rows(mine, None, kept)
        elif is_exporting():
            pooled = self._pool_among(values, offsets, weights)
        else:
            pooled = self.rows(*self._select(values, offsets, weights))
        if self.projections is None:
            return pooled
        projection: Tensor = self.projections
        if len(self.table_of) > len(projection):
            projection = projection.index_select(0, self.get_buffer("table"))
        return torch.bmm(pooled.transpose(0, 1), projection).transpose(0, 1)

    def _select(self, values: Tensor, offsets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the values, offsets and weights of this group's features."""
        batch = (offsets.shape[0] - 1) // self.features
        ends = offsets[::batch].tolist() if batch else [0] * (self.features + 1)
        lengths = offsets.diff().view(self.features, -1).index_select(0, self.get_buffer("place")).view(-1)

        def take(tensor: Tensor) -> Tensor:
            return torch.cat([tensor[ends[place] : ends[place + 1]] for place in self.places])

        bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return take(values), bounds, None if weights is None else take(weights)

    def _pool_among(self, values: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        """As `_select`, without shapes that depend on data: pool all features, keep this group's."""
        assert isinstance(self.rows, FusedEmbeddingBag)
        inside = torch.zeros(self.features, dtype=torch.bool, device=values.device)
        inside[self.places] = True
        batch = (offsets.shape[0] - 1) // self.features
        ids = torch.where(inside[bag_of_values(values, offsets) // batch], values, 0)
        pooled = rowgrad.plain(self.rows.weight, ids, offsets, weights, self.all)  # B x F x w
        return pooled.index_select(1, self.get_buffer("place"))
