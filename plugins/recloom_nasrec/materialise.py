"""A model of its own, cut out of a supernet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from recloom.search.operators import Operator, Piece
from recloom_nasrec.architecture import Architecture, to_document
from recloom_nasrec.blocks import ChoiceBlock
from recloom_nasrec.mergers import SPLITS
from recloom_nasrec.model import NASRecNet
from recloom_nasrec.network import NASRecNetwork
from recloom_nasrec.supernet import NASRecSupernet, Path


def materialise(supernet: NASRecSupernet, path: Path) -> NASRecNet:
    """Return the model of a path with the supernet's weights: it computes what the supernet's fast mode does.

    It has the form "apart": one built from scratch for the same architecture, as published, pads the inputs of sums,
    leaves out projections that change no width, and pairs as many tokens in a dot product as suit its width.
    """
    architecture = supernet.architecture(path)
    model = NASRecNet(
        supernet.schema.to_dict(),
        to_document(architecture),
        supernet.nasrec.embedding_dim,
        supernet.layer_norm,
        supernet.embedding,
        optimizer=supernet.optimizer_config,
        form="apart",
        pairs=supernet.pairs,
    )
    model.sparse_arch.load_state_dict(supernet.sparse_arch.state_dict())
    cut(model.network, supernet.network, architecture)
    head = model.network.head
    head.cut_from(supernet.network.head, *supernet.end_columns(architecture[-1]), width=1)
    return model


@torch.no_grad()
def cut(small: NASRecNetwork, large: NASRecNetwork, architecture: Architecture) -> None:
    """Copy the parts that `architecture` uses from the blocks of a supernet into those of a model."""
    features = [large.stem.features, *(block.dense_dim for block in architecture)]
    tokens = [large.stem.tokens, *(SPLITS * block.interact + block.sparse_dim for block in architecture)]
    skipped = [0, *(SPLITS * (not block.interact) for block in architecture)]

    def pieces(sources: Iterable[int], columns: Mapping[int, int], sparse: bool = False) -> list[Piece]:
        if sparse:
            return [Piece(columns[source] + skipped[source], tokens[source]) for source in sources]
        return [Piece(columns[source], features[source]) for source in sources]

    for block, mine, theirs in zip(architecture, small.blocks, large.blocks, strict=True):
        assert isinstance(mine, ChoiceBlock)
        assert isinstance(theirs, ChoiceBlock)
        places = theirs.columns
        dense, sparse = pieces(block.dense_from, places.dense), pieces(block.sparse_from, places.sparse, True)
        pair = pieces(block.left, places.left), pieces(block.right, places.right)
        inputs = {"fc": (dense,), "dot": (dense, sparse), "gating": pair, "sum": pair}
        for name, operator in mine.dense_ops.items():
            _cut(operator, theirs.dense_ops[name], *inputs[name], width=block.dense_dim)
        for name, operator in mine.sparse_ops.items():
            _cut(operator, theirs.sparse_ops[name], sparse, width=block.sparse_dim)
        if mine.fm is not None:
            _cut(mine.fm, theirs.fm, [Piece(0, block.sparse_dim)], width=block.dense_dim)
        if mine.interact is not None:
            _cut(mine.interact, theirs.interact, [Piece(0, block.dense_dim)], width=SPLITS)


def _cut(mine: object, theirs: object, *inputs: list[Piece], width: int) -> None:
    assert isinstance(mine, Operator)
    assert isinstance(theirs, Operator)
    mine.cut_from(theirs, *inputs, width=width)
