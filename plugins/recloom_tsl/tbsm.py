"""The time-based sequence model, TBSM (Ishkhanov et al. 2020, arXiv 2008.11922).

step or candidate + user -> tower -> ReLU -> z / ||z||    the same tower for all positions, in one call
z_1 .. z_T, w -> TSL -> contexts c_1 .. c_K               one context a head
[c_k, w] -> output_arch -> p_k;  p_1 .. p_K -> final_arch -> logit
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recloom.errors import RecloomError
from recloom.model import RankingModule
from recloom.optim import OptimizerConfig
from recloom.plugins import catalog
from recloom.sequence import Histories
from recloom_tsl.heads import HeadMLP
from recloom_tsl.positions import Positions, Time
from recloom_tsl.tsl import TSL, Kind, Mechanism, unit


class TBSM(RankingModule):
    """A ranking model on a history: a tower's vector for each step and the candidate, compared by TSL.

    With the defaults, and a history of items and categories of a user, it is the reference's Taobao model.

    Args:
        schema: Feature schema of the data; filled in from the data module.
        tower: Makes a position's vector of the step's (or candidate's) ids and the sample's other features: any
            RankingModule, such as DLRM; its logits are the vector, its optimizer is not used. Default: the published
            DLRM with embeddings of width 16, dense arch 1-16 and over arch 22-15-15.
        width: Width of the vectors.
        kind: The inner product of TSL: dot, ind or def.
        mechanism: From scores to weights: mul (the scores themselves) or mlp.
        heads: Number of contexts, K; 1 with dot.
        seq: Head j of 0 .. K-1 sees the last round(T (K - j) / K) steps only.
        attention_arch: Hidden widths of TSL's MLP.
        output_arch: Hidden widths of the MLP from a context and the candidate to the head's logit.
        normalize: Bring the vectors to length 1.
        time: What the tower is told of time: "position" (as published), "gap" (the real time since the step, which
            TSL's scores are then gated by too), or "none".
        history: Name of the history; only needed if the data have several.
        keys: Names of the steps' ids to use (item, category, ...); default: all.
        optimizer: Optimizers and learning rates.
    """

    uses_histories = True

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        tower: Callable[[dict[str, Any]], RankingModule] | None = None,
        width: int = 15,
        kind: Kind = "def",
        mechanism: Mechanism = "mlp",
        heads: int = 1,
        seq: bool = False,
        attention_arch: Sequence[int] = (15, 15),
        output_arch: Sequence[int] = (60,),
        normalize: bool = True,
        time: Time = "position",
        history: str = "",
        keys: Sequence[str] | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(schema, optimizer)
        if len(self.schema.labels) != 1:
            raise RecloomError(
                f"TBSM predicts one label, and the data have {len(self.schema.labels)}", "Use data with one label."
            )
        self.width, self.heads, self.normalize = width, heads, normalize
        self.positions = Positions(self.schema, history, time, width, keys)
        self.tower = build_tower(tower, self.positions)
        gate = "gap" if time == "gap" else "none"
        longest = self.positions.history.max_length
        self.tsl = TSL(width, longest, kind, mechanism, heads, seq, False, attention_arch, gate)  # type: ignore[arg-type]
        self.output_arch = HeadMLP(heads, [2 * width, *output_arch, 1])
        self.final_arch = HeadMLP(1, [heads, heads + 4, 1]) if heads > 1 else None

    def forward(
        self,
        dense: Tensor,
        values: Tensor,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
        histories: Histories | None = None,
    ) -> Tensor:
        """Return B logits.

        Args:
            dense: B x (dense features).
            values: N ids, key-major.
            offsets: F*B+1 bag bounds, or None for one-hot data.
            weights: N value weights, or None.
            histories: The padded histories.
        """
        if histories is None:
            raise RecloomError("TBSM needs histories, and got none", "Use data with histories.")
        name = self.positions.history.name
        mask = histories[f"{name}:mask"]
        z = self._vectors(dense, values, offsets, weights, histories, mask)  # B x (L+1) x n
        steps, candidate = z.split([mask.shape[1], 1], dim=1)
        contexts = self.tsl.contexts(steps, candidate.squeeze(1), mask, histories.get(f"{name}:gaps"))  # B x K x n
        pairs = torch.cat([contexts, candidate.expand_as(contexts)], dim=2)  # B x K x 2n
        logits = self.output_arch(pairs).squeeze(2)  # B x K
        if self.final_arch is not None:
            logits = self.final_arch(logits.sigmoid()).squeeze(2)  # B x 1
        return logits.squeeze(1)

    def _vectors(
        self,
        dense: Tensor,
        values: Tensor,
        offsets: Tensor | None,
        weights: Tensor | None,
        histories: Histories,
        mask: Tensor,
    ) -> Tensor:
        """Return B x (L+1) x n, the positions' vectors, the candidate's last; zeros where there is no step."""
        inputs = self.positions.inputs(dense, values, offsets, weights, histories)
        z = torch.relu(self.tower(inputs.dense, inputs.values, inputs.offsets, inputs.weights))  # P x n
        if self.normalize:
            z = unit(z)
        if inputs.places is not None:
            z = z.new_zeros(mask.shape[0] * (mask.shape[1] + 1), self.width).index_copy(0, inputs.places, z)
        return z.view(mask.shape[0], mask.shape[1] + 1, self.width)


def build_tower(factory: Callable[[dict[str, Any]], RankingModule] | None, positions: Positions) -> RankingModule:
    """Return the tower: a ranking model on single positions, of which only `forward` is used."""
    schema = positions.schema.to_dict()
    if factory is None:
        dlrm = catalog().models.load("DLRM")
        tower = dlrm(schema, embedding_dim=16, dense_arch=[], over_arch=[len(schema["labels"])])
    else:
        tower = factory(schema)
    if not isinstance(tower, RankingModule):
        raise RecloomError(f"a tower is a ranking model, not a {type(tower).__name__}", "Use DLRM, for example.")
    tower.evaluation = nn.ModuleDict()  # its metrics are never asked
    return tower
