"""StackModel: layers as engineers would stack them, each a few blocks; an EngineersSpace's candidates.

tokens X_0 = [embeddings, dense features as one token] -> layer 1 -> ... -> layer L -> over MLP -> logit
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from recloom.embedding import EmbeddingFactory, FusedEmbeddingBag
from recloom.errors import RecloomError, unknown
from recloom.optim import OptimizerConfig
from recloom.sequence import SequenceEncoder
from recloom_rankitect.blocks.tokens import TOKEN_WIDTH
from recloom_rankitect.graph import STEMS, Graph, Node
from recloom_rankitect.model import ComposedModel
from recloom_rankitect.plan import Limits

USES = {
    "mlp": ("tokens",),
    "cross": ("rank",),
    "mask": ("tokens", "width"),
    "wukong": ("tokens", "rank", "width"),
    "dhen": ("tokens", "rank"),
}
"""The kinds of layers, and the sizes that each has."""


@dataclass(frozen=True)
class Layer:
    """A layer.

    Args:
        kind: mlp, cross (DCN V2), mask (MaskNet), wukong, dhen.
        tokens: Tokens that it gives.
        rank: Compressed tokens of dot products (wukong, dhen); a 16th of the rank of a cross layer.
        width: Hidden width (wukong, mask).
    """

    kind: str
    tokens: int = 8
    rank: int = 4
    width: int = 64


class _Builder:
    """Collects nodes.

    Args:
        dim: Width of a token.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.nodes: list[Node] = []

    def add(self, group: str, name: str, block: str, *sources: int, width: int = 0, gates: tuple[str, ...] = ()) -> int:
        """Add a node; return its place."""
        self.nodes.append(Node(block, sources, width, f"{group}-{name}", group, gates))
        return len(STEMS) + len(self.nodes) - 1

    def layer(self, layer: Layer, group: str, x: int, first: int, gates: tuple[str, ...]) -> int:
        """Add the nodes of a layer; return the place of its tokens."""

        def add(name: str, block: str, *sources: int, width: int = 0, last: bool = False) -> int:
            return self.add(group, f"{layer.kind}-{name}", block, *sources, width=width, gates=gates if last else ())

        columns, rank = layer.tokens * self.dim, layer.rank * TOKEN_WIDTH
        if layer.kind == "mlp":
            return add("relu", "relu", add("fc", "linear", x, width=columns), last=True)
        if layer.kind == "cross":  # x_0 * (U V x + b) + x
            return add("cross", "low_rank_cross", first, x, width=rank, last=True)
        if layer.kind == "mask":  # relu(LN(W (x * mask(x_0))))
            hidden = add("fc", "linear", add("mask", "mask", x, first, width=layer.width), width=columns)
            return add("relu", "relu", add("norm", "layer_norm", hidden), last=True)
        if layer.kind == "wukong":  # LN([FMB(x), LCB(x)] + x)
            dots = add("norm", "layer_norm", add("dots", "compressed_dot", x, width=rank))
            hidden = add("relu", "relu", add("fc", "linear", dots, width=layer.width))
            half = max(1, layer.tokens // 2)
            made = add("out", "linear", hidden, width=half * self.dim)
            kept = add("compress", "efc", x, width=max(1, layer.tokens - half) * TOKEN_WIDTH)
            return add("sum", "residual", add("both", "concat", kept, made), x, last=True)
        assert layer.kind == "dhen"  # LN(W [attention(x), dots(x), compressed x] + x)
        dots = add("out", "linear", add("dots", "compressed_dot", x, width=rank), width=columns)
        modules = add("modules", "concat", add("attention", "attention", x), dots)
        mixed = add("ensemble", "efc", modules, width=layer.tokens * TOKEN_WIDTH)
        return add("sum", "residual", mixed, x, last=True)


def stack(layers: Sequence[Layer], over: Sequence[int], dim: int) -> Graph:
    """Return the graph of a stack.

    Args:
        layers: The layers.
        over: Widths of the hidden layers of the over MLP.
        dim: Width of a token.
    """
    builder = _Builder(dim)
    first = builder.add("stem", "tokens", "concat", 0, builder.add("stem", "dense", "linear", 1, width=dim))
    x = first
    for number, layer in enumerate(layers, start=1):
        gates = (f"layer{number}", *(["stack"] if number == len(layers) else []))
        x = builder.layer(layer, f"layer{number}", x, first, gates)
    for number, width in enumerate(over, start=1):
        hidden = builder.add("over", f"fc{number}", "linear", x, width=width)
        x = builder.add("over", f"relu{number}", "relu", hidden, gates=("over",) if number == len(over) else ())
    return Graph(tuple(builder.nodes), (x,))


def read_layers(layers: Sequence[Mapping[str, Any]]) -> list[Layer]:
    """Return layers that a config describes.

    Raises:
        RecloomError: A kind or a key is unknown, or a size is not positive.
    """
    found = []
    keys = [field.name for field in fields(Layer)]
    for number, given in enumerate(layers, start=1):
        for key in given:
            if key not in keys:
                raise unknown(f"key of layer {number}", key, keys)
        if given.get("kind") not in USES:
            raise unknown(f"kind of layer {number}", str(given.get("kind")), USES)
        found.append(Layer(**given))
        if min(found[-1].tokens, found[-1].rank, found[-1].width) < 1:
            raise RecloomError(f"layer {number}: a size is below 1", "Tokens, rank and width are 1 or more.")
    return found


class StackModel(ComposedModel):
    """A stack of layers, each made as DHEN, Wukong, DCN V2 or MaskNet make theirs, and an MLP.

    Layers: `{kind: wukong, tokens: 8, rank: 4, width: 64}`. Kinds and their sizes: mlp (tokens), cross (rank), mask
    (tokens, width), wukong (tokens, rank, width), dhen (tokens, rank).

    Args:
        schema: Feature schema of the data; filled in from the data module.
        layers: The layers.
        over_arch: Hidden widths of the over MLP.
        embedding_dim: Width of embeddings and tokens, D.
        max_features: Results of more features are projected down to so many.
        max_tokens: Results of more tokens are projected down to so many.
        embedding: Embedding tables: FusedEmbeddingBag, or any other EmbeddingBagCollection.
        sequence_encoder: Makes one more token of each behaviour history: TSL, DIN, or any other SequenceEncoder.
            Without one, histories are not used.
        optimizer: Optimizers and learning rates; unset: Adam 0.002, row-wise Adagrad 0.05, gradients clipped to 5.
    """

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        layers: Sequence[dict[str, Any]] = ({"kind": "wukong"}, {"kind": "wukong"}),
        over_arch: Sequence[int] = (64,),
        embedding_dim: int = 16,
        max_features: int = 1024,
        max_tokens: int = 64,
        embedding: EmbeddingFactory = FusedEmbeddingBag,
        sequence_encoder: Callable[[int, int], SequenceEncoder] | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        graph = stack(read_layers(layers), over_arch, embedding_dim)
        limits = Limits(max_features, max_tokens)
        super().__init__(graph, schema, embedding_dim, limits, embedding, sequence_encoder, optimizer)
