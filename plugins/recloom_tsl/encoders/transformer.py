"""Self-attention over a history, in two styles.

BST (Chen et al. 2019, arXiv 1905.06874): the candidate is one more item of the sequence, every item sees every other,
positions are times. SASRec (Kang and McAuley 2018, arXiv 1808.09781): a step sees itself and those before it,
positions are learned, the last step's output stands for the history.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.errors import RecloomError
from recloom.gaps import GapFeatures
from recloom.sequence import SequenceEncoder
from recloom_tsl.encoders.align import last_steps, left_aligned

EPS = 1e-8  # of LayerNorm, as in SASRec's code: embeddings start much smaller than 1
PAPERS = {"bst": (1, 8, "gap"), "sasrec": (2, 1, "position")}  # blocks, heads, time


class Transformer(SequenceEncoder):
    """Self-attention over the steps (sasrec), or over the steps and the candidate (bst).

    bst gives all outputs side by side, as the paper does: max_length + 1 places, right-aligned, zeros where there is no
    step. The paper places positions beside items; here a linear map brings the two back to width W. The paper does not
    say how wide the hidden layer is.
    sasrec gives the last step's output (zeros for an empty history); the model brings it and the candidate together.

    Args:
        width: Width of a step's vector, W.
        max_length: The longest history there can be.
        style: bst or sasrec.
        num_blocks: Number of blocks; 0: the paper's, 1 (bst) or 2 (sasrec).
        num_heads: Attention heads, a divisor of W; 0: the paper's, 8 (bst) or 1 (sasrec), or fewer of them, so that
            they divide W and a head is at least 8 wide.
        expansion: Width of the feed-forward layers' hidden layer, in W.
        dropout: Dropout of the layers' outputs (and of sasrec's inputs): 0.2 is sasrec's for MovieLens-1M.
        time: "none"; "position": learned positions, counted from the end; "gap": gap features, in bst the paper's
            t(candidate) - t(step); "paper": gap (bst) or position (sasrec).
        output: What bst gives: "concat": all outputs; "mean": the candidate's output and the mean of the steps'.
    """

    def __init__(
        self,
        width: int,
        max_length: int,
        style: Literal["bst", "sasrec"] = "bst",
        num_blocks: int = 0,
        num_heads: int = 0,
        expansion: int = 1,
        dropout: float = 0.2,
        time: Literal["none", "position", "gap", "paper"] = "paper",
        output: Literal["concat", "mean"] = "concat",
    ) -> None:
        super().__init__(width, max_length)
        self.style, self.output = style, output
        blocks, heads, paper_time = PAPERS[style]
        self.uses_query = style == "bst"
        self.num_heads = num_heads or max(
            h for h in range(1, heads + 1) if width % h == 0 and (h == 1 or width >= 8 * h)
        )
        if width % self.num_heads:
            raise RecloomError(
                f"{num_heads} heads do not divide steps of width {width}", "Use a divisor for num_heads, or 0."
            )
        self.time = paper_time if time == "paper" else time
        self.gap_features = GapFeatures() if self.time == "gap" else None
        if self.time == "position":
            self.positions = nn.Parameter(torch.randn(max_length + 1, width) * 0.02)  # 0: the candidate
        extra = self.gap_features.output_dim if self.gap_features is not None else width
        inputs = extra + width if style == "bst" else extra
        needs_map = self.gap_features is not None or (style == "bst" and self.time == "position")
        self.merge = nn.Linear(inputs, width, bias=False) if needs_map else None
        if self.merge is not None:  # at the start, steps as they are, and little of the positions: embeddings are small
            nn.init.normal_(self.merge.weight, std=0.005)
            if style == "bst":
                nn.init.eye_(self.merge.weight[:, :width])
        kind = BSTBlock if style == "bst" else SASRecBlock
        count = num_blocks or blocks
        self.blocks = nn.ModuleList([kind(width, self.num_heads, expansion * width, dropout) for _ in range(count)])
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=EPS) if style == "sasrec" else None
        self.output_dim = width if style == "sasrec" else (max_length + 1 if output == "concat" else 2) * width

    def forward(self, steps: Tensor, query: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return B x output_dim; see SequenceEncoder."""
        steps = steps.masked_fill(~mask[..., None], 0)
        return self._bst(steps, query, mask, gaps) if self.style == "bst" else self._sasrec(steps, mask, gaps)

    def _bst(self, steps: Tensor, query: Tensor, mask: Tensor, gaps: Tensor | None) -> Tensor:
        x = torch.cat([steps, query[:, None]], dim=1)  # B x (L+1) x W
        length = x.shape[1]
        places = None
        if self.gap_features is not None:
            places = self.gap_features(None if gaps is None else F.pad(gaps, (0, 1)))  # the candidate is now: gap 0
        elif self.time == "position":
            places = self.positions[:length].flip(0).expand(x.shape[0], -1, -1)
        if places is not None:
            assert self.merge is not None
            x = self.merge(torch.cat([x, places.to(x.dtype)], dim=-1))
        seen = F.pad(mask, (0, 1), value=True)  # B x (L+1): no row is without a key
        for block in self.blocks:
            x = block(x, seen[:, None, None])
        x = x.masked_fill(~seen[..., None], 0)
        if self.output == "concat":
            return F.pad(x, (0, 0, self.max_length + 1 - length, 0)).flatten(1)
        mean = x[:, :-1].sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.cat([x[:, -1], mean], dim=-1)

    def _sasrec(self, steps: Tensor, mask: Tensor, gaps: Tensor | None) -> Tensor:
        length = steps.shape[1]
        if self.gap_features is not None:
            assert self.merge is not None
            steps = steps + self.merge(self.gap_features(gaps))
        elif self.time == "position":
            steps = steps + self.positions[1 : length + 1].flip(0)
        x, lengths = left_aligned(self.dropout(steps), mask)  # causality then hides the padding too
        for block in self.blocks[:-1]:
            x = block(x)
        # of the last block, only the last step's output is needed
        keys = torch.arange(length, device=x.device) < lengths.clamp(min=1)[:, None]  # B x L
        last = self.blocks[-1](x, keys[:, None, None], last_steps(x, lengths)[:, None]).squeeze(1)  # B x W
        assert self.norm is not None
        return self.norm(last).masked_fill((lengths == 0)[:, None], 0)


class Attention(nn.Module):
    """Multi-head attention without biases; no output projection.

    Args:
        width: Width of queries, keys and values together over all heads.
        num_heads: Heads.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projections = nn.Linear(width, 3 * width, bias=False)  # W^Q, W^K, W^V

    def forward(self, x: Tensor, mask: Tensor | None = None, query: Tensor | None = None) -> Tensor:
        """Return B x M x W.

        Args:
            x: B x L x W: keys and values, and the queries unless there are others.
            mask: Keys that are seen, B x 1 x 1 x L; None: those up to the query's place.
            query: B x M x W.
        """
        if query is None:
            parts = self.projections(x).chunk(3, dim=-1)
        else:
            width = x.shape[-1]
            weight = self.projections.weight
            parts = (F.linear(query, weight[:width]), *F.linear(x, weight[width:]).chunk(2, dim=-1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)  # B x heads x L x d
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return out.transpose(1, 2).flatten(2)


class BSTBlock(nn.Module):
    """BST's block: normalisation after each layer, LeakyReLU.

    Args:
        width: Width of the items, W.
        num_heads: Heads.
        hidden: Width of the feed-forward layer's hidden layer.
        dropout: Dropout of the layers' outputs.
    """

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads)
        self.project = nn.Linear(width, width, bias=False)  # W^H
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.LeakyReLU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width, eps=EPS) for _ in range(2)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return B x L x W of B x L x W and the B x 1 x 1 x L keys that are seen."""
        x = self.norms[0](x + self.dropout(self.project(self.attention(x, mask))))
        return self.norms[1](x + self.dropout(self.feed_forward(x)))


class SASRecBlock(nn.Module):
    """x + Dropout(g(LayerNorm(x))) for g attention, then a feed-forward layer (SASRec).

    Args:
        width: Width of the items, W.
        num_heads: Heads.
        hidden: Width of the feed-forward layer's hidden layer; the paper's is W.
        dropout: Dropout of the layers' outputs.
    """

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width, eps=EPS) for _ in range(2)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, query: Tensor | None = None) -> Tensor:
        """Return B x M x W; see Attention. Without `query`, steps see themselves and those before them."""
        seen = self.norms[0](x)
        to = None if query is None else self.norms[0](query)
        y = (x if query is None else query) + self.dropout(self.attention(seen, mask, to))
        return y + self.dropout(self.feed_forward(self.norms[1](y)))
