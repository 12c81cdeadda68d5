"""What an architecture does for a sample, counted in three ways.

Published figures are multiply-accumulates of what reaches the head, with gates padded to the wider of their inputs. The
reference implementation also computes blocks that reach nothing. Ours computes neither those nor padding.
"""

from __future__ import annotations

from recloom.features import FeatureSchema
from recloom.search.program import Program
from recloom_nasrec.architecture import Architecture, Live, liveness
from recloom_nasrec.blocks import Form, Node
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
    import torch

    live = [Live(True, True, True, True) for _ in range(len(architecture) + 1)] if dead else liveness(architecture)
    with torch.device("meta"):
        network = NASRecNetwork(architecture, sizes_of(schema), dim, norm, form, len(schema.labels), live)
    return lower(network, architecture, schema, dim, live)


def lower(
    network: NASRecNetwork, architecture: Architecture, schema: FeatureSchema, dim: int, live: list[Live]
) -> Program:
    """Return the work of a network."""
    found = Program()
    rows = {feature.table_name: feature.num_embeddings for feature in schema.sparse}
    found.table_bytes = 4 * dim * sum(rows.values())
    lookups = sum(max(1, feature.max_length) for feature in schema.sparse)
    gathered = found.add("embedding", "gather", 1, dim, lookups, group="embedding", parameters=sum(rows.values()) * dim)
    features = found.add("dense", "elementwise", 1, max(1, len(schema.dense)), group="stem")
    places: dict[Node, int] = {("features", 0): features, ("tokens", 0): gathered}
    for place, block in enumerate(architecture, start=1):
        made, group, mine = network.blocks[place - 1], f"block{place}", live[place]
        dense = [places[("features", s)] for s in block.dense_from if ("features", s) in places]
        tokens = [places[("tokens", s)] for s in block.sparse_from if ("tokens", s) in places]
        for name, operator in made.dense_ops.items():
            inputs = (
                [places[("features", s)] for s in (*block.left, *block.right)] if name in ("gating", "sum") else dense
            )
            inputs = inputs + tokens if name == "dot" else inputs
            places[("dense", place)] = operator.lower(found, inputs, f"{group}.{name}", group)
        for name, operator in made.sparse_ops.items():
            places[("sparse", place)] = operator.lower(found, tokens, f"{group}.{name}", group)
        if mine.dense:
            places[("features", place)] = places[("dense", place)]
        if made.fm is not None:
            added = made.fm.lower(found, [places[("sparse", place)]], f"{group}.fm", group)
            both = [places[("dense", place)], added]
            places[("features", place)] = found.add(f"{group}.add", "elementwise", 1, block.dense_dim, 1, both, group)
        if mine.tokens:
            places[("tokens", place)] = places[("sparse", place)]
        if made.interact is not None:
            source = places[("features" if made.shortcut else "dense", place)]
            more = made.interact.lower(found, [source], f"{group}.interact", group)
            places[("tokens", place)] = found.add(
                f"{group}.concat", "elementwise", 1, dim, 0, [places[("sparse", place)], more], group
            )
    last = len(architecture)
    network.head.lower(found, [places[("features", last)], places[("tokens", last)]], "head", "head")
    return found
