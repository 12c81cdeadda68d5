"""The time series layer (TSL) of TBSM (Ishkhanov et al. 2020, arXiv 2008.11922), as an encoder of histories.

Letters in shapes: B rows, L places of the histories, T the longest history, W width of a step, K heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.errors import RecloomError, unknown
from recloom.gaps import GapFeatures
from recloom.sequence import SequenceEncoder
from recloom.tracing import is_exporting
from recloom_tsl.heads import HeadMLP

Kind = Literal["dot", "ind", "def"]
Mechanism = Literal["mul", "mlp"]


class TSL(SequenceEncoder):
    """Contexts of a history as seen from a candidate: sums of its steps, weighted by their similarity to it.

    With steps h_t and candidate w, the score of step t is a_t = <h_t, q>, where q is w (kind "dot"), A w ("ind", an
    indefinite inner product) or A^T A w ("def", a definite one). The context is sum_t a_t h_t (mechanism "mul"), or
    sum_t s_t h_t with s = sigmoid(MLP(a)) ("mlp"), whose MLP sees all places at once, and so their order. There is
    neither a softmax nor a scaling. Each head has its own A and MLP; the contexts of all heads are concatenated.

    Args:
        width: Width of a step, W.
        max_length: The longest history, T.
        kind: The inner product: dot, ind or def.
        mechanism: From scores to weights: mul (the scores themselves) or mlp.
        heads: Number of contexts, K. "dot" has one: without an A, heads would be alike.
        seq: Head j of 0 .. K-1 sees the last round(T (K - j) / K) steps only.
        normalize: Bring steps and candidate to length 1 first.
        attention_arch: Hidden widths of the MLP from T scores to T weights.
        time: "none", or "gap": each score, and each weight of "mlp", is multiplied by a gate, a learned function of
            the real time since the step, 1 at first.
    """

    def __init__(
        self,
        width: int,
        max_length: int,
        kind: Kind = "def",
        mechanism: Mechanism = "mlp",
        heads: int = 1,
        seq: bool = False,
        normalize: bool = True,
        attention_arch: Sequence[int] = (15, 15),
        time: Literal["none", "gap"] = "none",
    ) -> None:
        super().__init__(width, max_length)
        _check(kind, mechanism, heads, seq, max_length, time)
        self.kind, self.mechanism, self.heads, self.normalize = kind, mechanism, heads, normalize
        self.output_dim = heads * width
        self.a = None if kind == "dot" else nn.Parameter(torch.randn(heads, width, width) / math.sqrt(width))
        mlp = mechanism == "mlp"
        self.attention = HeadMLP(heads, [max_length, *attention_arch, max_length]) if mlp else None
        self.gate = GapGate(heads) if time == "gap" else None
        self.spans = [round(max_length / heads * j) if seq else max_length for j in range(heads, 0, -1)]
        seen = torch.arange(-max_length, 0) >= -torch.tensor(self.spans)[:, None]  # K x T
        self.register_buffer("seen", seen if seq else None, persistent=False)
        self.seen: Tensor | None

    def forward(self, steps: Tensor, query: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return B x (K W), the contexts side by side; see SequenceEncoder.forward."""
        return self.contexts(steps, query, mask, gaps).flatten(1)

    def contexts(self, steps: Tensor, query: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return B x K x W, a context a head; arguments as in `forward`."""
        steps, query = self._projected(steps, query)
        sees, gate = self._sees(mask), self._gate(gaps)
        weights = self._scores(steps, query, sees, gate)  # B x K x L
        if self.attention is not None:
            missing = self.max_length - weights.shape[2]
            weights = self.attention(F.pad(weights, (missing, 0)))[..., missing:].sigmoid() * sees
            weights = weights if gate is None else weights * gate
        return _combined(weights, steps)

    def scores(self, steps: Tensor, query: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return B x K x L, the similarities a_t, 0 where a head sees no step; arguments as in `forward`."""
        steps, query = self._projected(steps, query)
        return self._scores(steps, query, self._sees(mask), self._gate(gaps))

    def _projected(self, steps: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        if not is_exporting() and steps.shape[1] > self.max_length:
            raise RecloomError(
                f"a history has {steps.shape[1]} steps, and this TSL was made for {self.max_length} at most",
                "Cut histories to the schema's max_length.",
            )
        return (unit(steps), unit(query)) if self.normalize else (steps, query)

    def _gate(self, gaps: Tensor | None) -> Tensor | None:
        return None if self.gate is None else self.gate(gaps)

    def _sees(self, mask: Tensor) -> Tensor:
        """Return B x 1 x L, or B x K x L if heads see different steps: True where a head sees a step."""
        mask = mask.unsqueeze(1)
        return mask if self.seen is None else mask & self.seen[:, self.max_length - mask.shape[2] :]

    def _scores(self, steps: Tensor, query: Tensor, sees: Tensor, gate: Tensor | None) -> Tensor:
        queries = query.unsqueeze(1)  # B x 1 x W
        if self.a is not None:
            queries = _mapped(queries, self.a)  # A w
        if self.a is not None and self.kind == "def":
            queries = _mapped(queries, self.a.transpose(1, 2))  # A^T A w
        scores = _products(queries, steps) * sees
        return scores if gate is None else scores * gate


class GapGate(nn.Module):
    """A factor a step and head from the real time since the step; 1 for all of them at first.

    Args:
        heads: Number of heads, K.
        hidden: Width of the hidden layer.
    """

    def __init__(self, heads: int, hidden: int = 16) -> None:
        super().__init__()
        self.features = GapFeatures()
        self.hidden = nn.Linear(self.features.output_dim, hidden)
        self.output = nn.Linear(hidden, heads)
        for start in (self.hidden.bias, self.output.weight, self.output.bias):
            nn.init.zeros_(start)

    def forward(self, gaps: Tensor | None) -> Tensor:
        """Map B x L seconds to B x K x L factors; RecloomError if the data have no times."""
        return 1 + self.output(torch.relu(self.hidden(self.features(gaps)))).transpose(1, 2)


def unit(vectors: Tensor) -> Tensor:
    """Return ... x W vectors brought to length 1; zeros stay zeros, and get no gradient (torch's normalize: 1e12)."""
    squares = vectors.square().sum(-1, keepdim=True)
    return vectors * (squares.clamp(min=1e-24).rsqrt() * (squares > 0))


def _products(queries: Tensor, steps: Tensor) -> Tensor:
    """Return B x K x L inner products; for one head without batched products, whose gradients are slow on CPU."""
    if queries.shape[1] == 1:
        return (queries * steps).sum(2).unsqueeze(1)
    return torch.bmm(queries, steps.transpose(1, 2))


def _combined(weights: Tensor, steps: Tensor) -> Tensor:
    """Return B x K x W sums of the steps with B x K x L weights."""
    if weights.shape[1] == 1:
        return (weights.transpose(1, 2) * steps).sum(1, keepdim=True)
    return torch.bmm(weights, steps)


def _mapped(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Return B x K x W: head k's matrix times its vector; B x 1 x W vectors are the same for all heads."""
    if matrices.shape[0] == 1:
        return F.linear(vectors, matrices[0])
    if vectors.shape[1] == 1:  # one product for all heads
        return F.linear(vectors[:, 0], matrices.flatten(0, 1)).unflatten(1, matrices.shape[:2])
    return torch.bmm(vectors.transpose(0, 1), matrices.transpose(1, 2)).transpose(0, 1)


def _check(kind: str, mechanism: str, heads: int, seq: bool, max_length: int, time: str) -> None:
    for name, value, known in (
        ("kind of TSL", kind, ("dot", "ind", "def")),
        ("mechanism of TSL", mechanism, ("mul", "mlp")),
        ("time of TSL", time, ("none", "gap")),
    ):
        if value not in known:
            raise unknown(name, value, known)
    if heads < 1 or (kind == "dot" and heads > 1):
        raise RecloomError(f"TSL of kind {kind!r} has {heads} heads", "'dot' has one; 'ind' and 'def' one or more.")
    if seq and round(max_length / heads) < 1:
        raise RecloomError(f"{heads} heads share histories of {max_length} steps", "Use fewer heads, or seq=False.")
