"""A model's work as arrays, so that many configurations of hardware are priced at once.

What each work becomes:

| work | on the chip |
|---|---|
| matmul K x N, V vectors | crossbars that hold the matrix; each vector passes as ceil(b/d) slices of its b-bit values |
| dynamic K x N, V vectors | K N V multiply-accumulates of its group's digital unit; or K x N cells are written first |
| gather of V rows | V rows of N values read from memory off the chip |
| elementwise V x N | V N operations of its group's digital unit |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recloom.search.program import Program, Work

Dynamic = Literal["digital", "crossbar"]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """A program's works by what they become; W works in all, M of them on crossbars, G groups of one precision.

    Args:
        names: The works' names, W.
        kinds: What each becomes: "crossbar", "digital", "memory".
        inputs: Places of the works that each needs.
        groups: Names of the groups, G.
        group: The group of each work, W.
        static: Places of the works on crossbars, M.
        rows: Length of a product's sums, K, of these M.
        columns: Width of the result, N.
        vectors: Vectors a sample, V.
        owned: 1 for a work with crossbars of its own, 0 for one that uses those of an earlier work.
        written: 1 for a work whose matrix is written anew for each sample.
        owner: For each work, the work whose crossbars it uses: itself, or an earlier one.
        macs: Multiply-accumulates on digital units, W.
        operations: Other operations on digital units, W.
        values: Values read from memory, W.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    groups: tuple[str, ...]
    group: Integers
    static: Integers
    rows: Floats
    columns: Floats
    vectors: Floats
    owned: Floats
    written: Floats
    owner: tuple[int, ...]
    macs: Floats
    operations: Floats
    values: Floats

    @classmethod
    def of(cls, program: Program, dynamic: Dynamic = "digital", by_work: bool = False) -> Layout:
        """Return the layout of a program.

        Args:
            program: The program.
            dynamic: Where products of two computed operands are computed.
            by_work: Whether each work has a precision of its own; by default those of a group have the same.
        """
        works = program.works
        kinds = tuple(_becomes(work, dynamic) for work in works)
        labels = [work.name if by_work else work.group for work in works]
        groups = tuple(dict.fromkeys(labels))
        static = [place for place, kind in enumerate(kinds) if kind == "crossbar"]
        on = [works[place] for place in static]

        def each(values: Sequence[float]) -> Floats:
            return np.array(values, np.float64)

        def where(kind: str, counts: Sequence[float]) -> Floats:
            return each([count if kind == k else 0.0 for k, count in zip(kinds, counts, strict=True)])

        products = [w.rows * w.columns * w.vectors if w.kind == "dynamic" else 0 for w in works]
        others = [w.columns * w.vectors if w.kind == "elementwise" else 0 for w in works]
        return cls(
            names=tuple(work.name for work in works),
            kinds=kinds,
            inputs=tuple(work.inputs for work in works),
            groups=groups,
            group=np.array([groups.index(label) for label in labels], np.int64),
            static=np.array(static, np.int64),
            rows=each([w.rows for w in on]),
            columns=each([w.columns for w in on]),
            vectors=each([w.vectors for w in on]),
            owned=each([w.weights_of < 0 for w in on]),
            written=each([w.kind == "dynamic" for w in on]),
            owner=tuple(place if w.weights_of < 0 else w.weights_of for place, w in enumerate(works)),
            macs=where("digital", products),
            operations=where("digital", others),
            values=where("memory", [w.columns * w.vectors for w in works]),
        )


def _becomes(work: Work, dynamic: Dynamic) -> str:
    if work.kind == "gather":
        return "memory"
    on_crossbars = work.kind == "matmul" or (work.kind == "dynamic" and dynamic == "crossbar")
    return "crossbar" if on_crossbars else "digital"
