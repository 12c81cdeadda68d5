"""NASRec's blocks: which operators one has, at which sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from torch import nn

from recloom.search.operators import Operator
from recloom_nasrec.architecture import Block, Live
from recloom_nasrec.dense_operators import FC, DotProduct, Gating, Sum
from recloom_nasrec.mergers import DeepFM, DenseTokens
from recloom_nasrec.token_operators import EFC, Transformer

Form = Literal["joint", "apart", "padded"]
"""How a model is built: as published models are, without what only meets zeros ("joint") or with it ("padded", for
counting what the reference implementation computes); or as a part of a supernet ("apart")."""
Node = tuple[str, int]
"""A result: "features" or "tokens" of a source, or "dense" or "sparse", what a block's operators gave, unmerged."""


def paired_tokens(width: int) -> int:
    """Return how many tokens a dot product of `width` pairs: about as many pairs as its width."""
    return round(sqrt(2 * width))


@dataclass(frozen=True)
class Columns:
    """Where the sources of a block stand in the inputs of its operators: the first column of each.

    Args:
        dense: Of the features of `fc` and `dot`.
        sparse: Of the tokens.
        left: Of the left features of `gating` and `sum`.
        right: Of the right ones.
    """

    dense: Mapping[int, int]
    sparse: Mapping[int, int]
    left: Mapping[int, int]
    right: Mapping[int, int]


class ChoiceBlock(nn.Module):
    """The operators of a block.

    Args:
        block: The operators, widths and mergers it has.
        features: Width of each source's features.
        tokens: Number of each source's tokens.
        dim: Width of a token, D.
        norm: Whether operators have layer normalisations.
        form: See `Form`.
        pairs: Tokens that a dot product pairs.
        live: Which of its results are needed.
    """

    def __init__(
        self,
        block: Block,
        features: Sequence[int],
        tokens: Sequence[int],
        dim: int,
        norm: bool,
        form: Form,
        pairs: int,
        live: Live,
    ) -> None:
        super().__init__()
        joint = form != "apart"
        self.columns, widths = _columns(block, features, tokens, joint)
        width = block.dense_dim
        made: dict[str, Callable[[], Operator]] = {
            "fc": lambda: FC(widths["dense"], width, norm),
            "dot": lambda: DotProduct(widths["dense"], widths["sparse"], width, dim, norm, pairs, joint),
            "gating": lambda: Gating(widths["left"], widths["right"], width, norm, joint, form == "padded"),
            "sum": lambda: Sum(widths["sum"], width, norm, joint),
            "efc": lambda: EFC(widths["sparse"], block.sparse_dim, dim, norm),
            "transformer": lambda: Transformer(widths["sparse"], block.sparse_dim, dim, norm),
        }
        self.dense_ops = nn.ModuleDict({name: made[name]() for name in block.dense_ops if live.dense})
        self.sparse_ops = nn.ModuleDict({name: made[name]() for name in block.sparse_ops if live.sparse})
        interact = block.interact and live.tokens
        self.interact = DenseTokens(width, dim, norm, joint) if interact else None
        self.shortcut = self.interact is not None and self.interact.linear is None
        fm = block.fm and (live.features or self.shortcut)
        self.fm = DeepFM(width, dim, norm, joint) if fm else None


def _columns(
    block: Block, features: Sequence[int], tokens: Sequence[int], joint: bool
) -> tuple[Columns, dict[str, int]]:
    """Return where sources stand, and the width of each input; of sum's input under "sum"."""
    dense, dense_width = _line_up(block.dense_from, features)
    sparse, sparse_width = _line_up(block.sparse_from, tokens)
    left, left_width = _line_up(block.left, features)
    right, right_width = _line_up(block.right, features)
    both = max(left_width, right_width)
    if not joint and block.dense_ops == ("sum",):  # a column for each source, once
        left, both = _line_up(sorted({*block.left, *block.right}), features)
        right = left
    widths = {"dense": dense_width, "sparse": sparse_width, "left": left_width, "right": right_width, "sum": both}
    return Columns(dense, sparse, left, right), widths


def _line_up(sources: Iterable[int], widths: Sequence[int]) -> tuple[dict[int, int], int]:
    found, start = {}, 0
    for source in sources:
        found[source] = start
        start += widths[source]
    return found, start
