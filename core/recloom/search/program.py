"""What a model does for one sample, as a graph of work: the operators' lowering, which costs are computed from.

Every operator of a search space, and every layer of a hand-made model that wants to be priced, says what it becomes:
products with fixed weights (which a crossbar can hold), products of two computed operands (which it cannot), rows
gathered from tables, and elementwise work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

WorkKind = Literal["matmul", "dynamic", "gather", "elementwise"]


@dataclass(frozen=True)
class Work:
    """One piece of work, for one sample.

    Args:
        name: The layer: "block2.dense.fc".
        kind: "matmul": a rows x columns matrix of weights applied to `vectors` vectors. "dynamic": a product of two
            computed matrices, `vectors` x rows and rows x columns. "gather": `vectors` rows of `columns` values read
            from tables. "elementwise": `vectors` x `columns` values, each with about one operation.
        rows: Length of a product's sums (K).
        columns: Width of the result (N).
        vectors: How many vectors a sample sends through (V).
        inputs: Indices of the earlier works of the program whose results this one needs.
        group: The part of the model with one precision: a block.
        bias: Whether a matmul adds a bias (counted as parameters, not as MACs).
        parameters: Parameters of elementwise work (a normalisation's), and table rows x width of a gather.
        weights_of: Place of an earlier work with the same weights (a recurrent network's next step); -1: its own.
    """

    name: str
    kind: WorkKind
    rows: int
    columns: int
    vectors: int = 1
    inputs: tuple[int, ...] = ()
    group: str = ""
    bias: bool = False
    parameters: int = 0
    weights_of: int = -1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the products; nothing for gathers and elementwise work, as papers count."""
        return self.rows * self.columns * self.vectors if self.kind in ("matmul", "dynamic") else 0

    @property
    def weights(self) -> int:
        """Parameters, those of tables left out, and those that an earlier work has."""
        if self.weights_of >= 0:
            return 0
        if self.kind == "matmul":
            return (self.rows + int(self.bias)) * self.columns
        return 0 if self.kind == "gather" else self.parameters


@dataclass
class Program:
    """Works in an order in which they can run.

    Args:
        works: The works; `inputs` refer to earlier places.
        table_bytes: Memory of the embedding tables.
    """

    works: list[Work] = field(default_factory=list)
    table_bytes: int = 0

    def add(
        self,
        name: str,
        kind: WorkKind,
        rows: int,
        columns: int,
        vectors: int = 1,
        inputs: Sequence[int] = (),
        group: str = "",
        bias: bool = False,
        parameters: int = 0,
        weights_of: int = -1,
    ) -> int:
        """Append a work (see `Work`); return its place, for others' `inputs`."""
        assert all(0 <= place < len(self.works) for place in inputs)
        self.works.append(Work(name, kind, rows, columns, vectors, tuple(inputs), group, bias, parameters, weights_of))
        return len(self.works) - 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates a sample."""
        return sum(work.macs for work in self.works)

    @property
    def parameters(self) -> int:
        """Parameters, those of tables left out."""
        return sum(work.weights for work in self.works)
