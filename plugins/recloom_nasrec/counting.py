"""What an architecture does for a sample, counted in three ways.

Published figures are multiply-accumulates of what reaches the head, with gates padded to the wider of their inputs. The
reference implementation also computes blocks that reach nothing. Ours computes neither those nor padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch

from recloom.features import FeatureSchema
from recloom.search.operators import Operator
from recloom.search.program import Program
from recloom_nasrec.architecture import PAIRED, Architecture, Live, liveness
from recloom_nasrec.blocks import Form, Node
from recloom_nasrec.mergers import SPLITS
from recloom_nasrec.network import NASRecNetwork, sizes_of


def program(
    architecture: Architecture,
    schema: FeatureSchema,
    dim: int = 16,
    norm: bool = False,
    form: Form = "joint",
    dead: bool = False,
) -> Program:
    """Return the work of a model.

    Args:
        architecture: The architecture.
        schema: The data's schema.
        dim: Width of an embedding, D.
        norm: Whether there are layer normalisations.
        form: "joint": as NASRecNet computes it; "padded": as the reference implementation does.
        dead: Whether blocks that reach nothing are computed too.
    """
    live = [Live(True, True, True, True) for _ in range(len(architecture) + 1)] if dead else liveness(architecture)
    with torch.device("meta"):
        network = NASRecNetwork(architecture, sizes_of(schema), dim, norm, form, len(schema.labels), live)
    return _Lowering(network, schema, dim).run(live)


class _Lowering:
    """Makes a network's program.

    Args:
        network: The network.
        schema: The data's schema.
        dim: Width of an embedding, D.
    """

    def __init__(self, network: NASRecNetwork, schema: FeatureSchema, dim: int) -> None:
        self.network, self.dim = network, dim
        rows = {feature.table_name: feature.num_embeddings for feature in schema.sparse}
        lookups = sum(max(1, feature.max_length) for feature in schema.sparse)
        self.program = Program(table_bytes=4 * dim * sum(rows.values()))
        gather = self.program.add(
            "embedding", "gather", 1, dim, lookups, group="stem", parameters=sum(rows.values()) * dim
        )
        dense = self.program.add("dense", "elementwise", 1, max(1, len(schema.dense)), group="stem")
        self.places: dict[Node, int] = {("features", 0): dense, ("tokens", 0): gather}

    def run(self, live: Sequence[Live]) -> Program:
        """Return the program, of what is live."""
        for place in range(1, len(self.network.architecture) + 1):
            self._block(place, live[place])
        last = len(self.network.architecture)
        ends = [self.places[("features", last)], self.places[("tokens", last)]]
        self.network.head.lower(self.program, ends, "head", "head")
        return self.program

    def _block(self, place: int, live: Live) -> None:
        block, made, group = self.network.architecture[place - 1], self.network.blocks[place - 1], f"block{place}"
        tokens = self._results("tokens", block.sparse_from)
        for name, operator in made.dense_ops.items():
            inputs = self._results("features", (*block.left, *block.right) if name in PAIRED else block.dense_from)
            inputs += tokens if name == "dot" else []
            found = cast(Operator, operator).lower(self.program, inputs, f"{group}.{name}", group)
            self.places[("dense", place)] = self.places[("features", place)] = found
        for name, operator in made.sparse_ops.items():
            found = cast(Operator, operator).lower(self.program, tokens, f"{group}.{name}", group)
            self.places[("sparse", place)] = self.places[("tokens", place)] = found
        if made.fm is not None:
            added = made.fm.lower(self.program, self._results("sparse", [place]), f"{group}.fm", group)
            inputs = [self.places[("dense", place)], added]
            self.places[("features", place)] = self.program.add(
                f"{group}.add", "elementwise", 1, block.dense_dim, 1, inputs, group
            )
        if made.interact is not None:
            source = self._results("features" if made.shortcut else "dense", [place])
            more = made.interact.lower(self.program, source, f"{group}.interact", group)
            inputs = [self.places[("sparse", place)], more]
            count = SPLITS + block.sparse_dim
            self.places[("tokens", place)] = self.program.add(
                f"{group}.concat", "elementwise", 1, self.dim, count, inputs, group
            )

    def _results(self, kind: str, sources: Iterable[int]) -> list[int]:
        """Return the places of the results that there are: an operator names inputs that it does not use, too."""
        return [self.places[(kind, source)] for source in sources if (kind, source) in self.places]
