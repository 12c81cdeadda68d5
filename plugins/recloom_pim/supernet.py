"""The supernet of a PIMSpace: another supernet, its layers on crossbars that each step draws anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from recloom.batch import Batch
from recloom.features import FeatureSchema
from recloom.search.space import Genotype
from recloom.search.supernet import Supernet
from recloom.sequence import Histories
from recloom_pim.layers import Board, place
from recloom_pim.space import PIMSpace


class PIMSupernet(Supernet):
    """A supernet whose steps train a path on random crossbars, with random bits in each block.

    Ranking computes candidates one by one, except those on the same crossbars: what models have in common differs with
    their bits.

    Args:
        space: The space.
        schema: Feature schema of the data.
    """

    def __init__(self, space: PIMSpace, schema: dict[str, Any]) -> None:
        inner = space.space.supernet(FeatureSchema.from_dict(schema))
        super().__init__(space, schema, inner.seed, inner.optimizer_config)
        self.pim_space = space
        self.inner = inner
        self.uses_histories = inner.uses_histories
        self.pim = Board(None, space.device, "inner.")
        place(self, self.pim)

    def sample_path(self, step: int) -> tuple[Any, Genotype]:
        """Return the inner supernet's path of this step, and crossbars with bits; none in the first steps."""
        self.inner.seed = self.seed
        if step < self.pim_space.supernet_exact_steps:
            return self.inner.sample_path(step), ()
        rng = np.random.default_rng([self.seed, step, 1])
        own = self.pim_space.choices[self.pim_space.split :]
        return self.inner.sample_path(step), tuple(int(rng.integers(len(choice.options))) for choice in own)

    def forward(
        self,
        dense: Tensor,
        values: Tensor,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
        histories: Histories | None = None,
    ) -> Tensor:
        """Return B logits along `self.path`, a genotype or what `sample_path` returned."""
        model, own = self._parts(self.path)
        self.inner.path = model
        self.pim.crossbars = self.pim_space.crossbars(own) if own else None
        inputs = (dense, values, offsets, weights)
        found: Tensor = self.inner(*inputs, histories) if self.uses_histories else self.inner(*inputs)
        return found

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return what every path starts from."""
        return self.inner.embed(batch)

    def features(
        self, inputs: tuple[Tensor, ...], paths: Sequence[Genotype], memory: dict[Any, Any] | None = None
    ) -> list[Tensor]:
        """Return for each path the input of its last layer; paths on the same crossbars are computed together."""
        together: dict[Genotype, list[int]] = {}
        parts = [self._parts(path) for path in paths]
        for number, (_, own) in enumerate(parts):
            together.setdefault(own, []).append(number)
        found: dict[int, Tensor] = {}
        for own, numbers in together.items():
            self.pim.crossbars = self.pim_space.crossbars(own)
            results = self.inner.features(inputs, [parts[number][0] for number in numbers])
            found |= dict(zip(numbers, results, strict=True))
        return [found[number] for number in range(len(paths))]

    def head(self, path: Genotype) -> tuple[Tensor, Tensor]:
        """Return the weight and the bias of a path's last layer."""
        return self.inner.head(self._parts(path)[0])

    def _parts(self, path: Any) -> tuple[Any, Genotype]:
        if len(path) == 2 and isinstance(path[1], tuple):
            return path
        return self.pim_space.model(path), self.pim_space.hardware(path)
