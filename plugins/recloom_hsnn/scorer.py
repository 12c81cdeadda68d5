"""What of a MoNN lies behind its two towers: presets of sizes, interaction tower and over arch, as indexes use them.

Letters in shapes: B rows; U users, L items of a user, T tasks; du, di widths of a user's and an item's code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recloom.errors import unknown
from recloom.linear import Linear
from recloom.model import Interaction
from recloom_hsnn.overarch import InteractionArch, OverArch, ProductArch, Sizes

Size = Literal["two_tower", "tiny", "small", "medium", "large", "xl"]
PRESETS: dict[str, Sizes] = {  # table 5 of the paper; "tiny" is ours, for CPUs: the prototype's ranker
    "tiny": Sizes(4, 1, 0, 32),
    "small": Sizes(8, 1, 1, 40),
    "medium": Sizes(10, 4, 1, 48),
    "large": Sizes(30, 8, 1, 48),
    "xl": Sizes(80, 4, 1, 96),
}
PAIR_WIDTH = 16


@dataclass
class MoNNConfig:
    """Sizes of one MoNN.

    Args:
        size: Numbers and width of the towers' embeddings: small (8, 1 and 1 embeddings of a user, an item and a pair,
            40 wide), medium (10, 4, 1; 48), large (30, 8, 1; 48), xl (80, 4, 1; 96), as in the paper's table 5; tiny
            (4, 1, 0; 32) for CPUs.
        hidden: Hidden widths of the over arch.
        interaction: Combines the towers' embeddings: any Interaction; unset: an MLP on their products, whose first
            layer is made once a request.
        pairs: Embeddings of a pair; unset: as the size says. 0: no interaction tower.
    """

    size: Literal["tiny", "small", "medium", "large", "xl"] = "tiny"
    hidden: Sequence[int] = (128, 64)
    interaction: Callable[[int, int], Interaction] | None = None
    pairs: int | None = None

    def sizes(self) -> Sizes:
        """Return the towers' sizes."""
        if self.size not in PRESETS:
            raise unknown("size of a MoNN", self.size, PRESETS)
        found = PRESETS[self.size]
        return found if self.pairs is None else Sizes(found.user, found.item, self.pairs, found.dim)


class PairScorer(nn.Module):
    """The parts of a MoNN behind its two towers: interaction tower and over arch, on codes.

    A code is the tower's embeddings and, where there is an interaction tower, PAIR_WIDTH numbers more: the interaction
    tower works on the products of the user's and the item's. So it needs no features of the pair, which an index node
    does not have (the paper's section on joint training).

    Args:
        config: Sizes.
        tasks: Number of logits, T.
        user: Where the user's part of this scorer lies in the user's code: start and end.
        item_dim: Width of an item's code without ids.
        item: Sizes of the tower that made the item's code; if they are not this scorer's, a linear layer adapts it.
    """

    def __init__(self, config: MoNNConfig, tasks: int, user: tuple[int, int], item_dim: int, item: Sizes) -> None:
        super().__init__()
        sizes = config.sizes()
        self.sizes, self.user, self.item_dim = sizes, user, item_dim
        wanted = item_width(sizes)
        same = (item.item, item.dim, bool(item.pair)) == (sizes.item, sizes.dim, bool(sizes.pair))
        self.adapter = None if same else Linear(item_dim, wanted)
        self.over_arch: OverArch = (
            ProductArch(sizes, config.hidden, tasks)
            if config.interaction is None
            else InteractionArch(sizes, config.hidden, tasks, config.interaction)
        )
        self.inter_arch = nn.Sequential(Linear(PAIR_WIDTH, sizes.pair * sizes.dim), nn.ReLU()) if sizes.pair else None

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Return B x T logits: users B x du, items B x di."""
        users, items, pairs = self._parts(users, items)
        return self.over_arch(users, items, pairs)

    def many(self, users: Tensor, items: Tensor) -> Tensor:
        """Return U x L x T logits: users U x du, items U x L x di."""
        users, items, pairs = self._parts(users, items)
        return self.over_arch.many(users, items, pairs)

    @property
    def sloped(self) -> bool:
        """Whether `slopes` can be had."""
        return self.over_arch.sloped and self.adapter is None

    def slopes(self, users: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        """Return U x L x (1 + di): scores (T `weights` of the logits) of U x L x di items, and their gradients."""
        asked, codes, pairs = self._parts(users, items)
        scores, slopes, back = self.over_arch.slopes(asked, codes, pairs, weights)
        columns = [scores[..., None], slopes]
        if self.inter_arch is not None and pairs is not None and back is not None:
            layer = self.inter_arch[0]
            assert isinstance(layer, nn.Linear)
            wide = self.sizes.user * self.sizes.dim
            own = users[:, None, self.user[0] + wide : self.user[1]]
            columns.append(own * ((back * (pairs > 0)) @ layer.weight))
        found = torch.cat(columns, dim=2)
        return torch.nn.functional.pad(found, (0, 1 + items.shape[2] - found.shape[2]))  # ids have no slope

    def pairs(self, users: Tensor, items: Tensor) -> Tensor | None:
        """Return the interaction tower's embeddings, B x nx D; None where there is no such tower."""
        return self._parts(users, items)[2]

    def _parts(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        users = users[:, self.user[0] : self.user[1]]
        items = items if self.adapter is None else self.adapter(items[..., : self.item_dim])
        wide, long = self.sizes.user * self.sizes.dim, self.sizes.item * self.sizes.dim
        if self.inter_arch is None:
            return users[:, :wide], items[..., :long], None
        asked = users[:, wide:] if items.ndim == 2 else users[:, None, wide:]
        return users[:, :wide], items[..., :long], self.inter_arch(asked * items[..., long : long + PAIR_WIDTH])


def user_width(sizes: Sizes) -> int:
    """Return the width of a user's code for one scorer."""
    return sizes.user * sizes.dim + (PAIR_WIDTH if sizes.pair else 0)


def item_width(sizes: Sizes) -> int:
    """Return the width of an item's code."""
    return sizes.item * sizes.dim + (PAIR_WIDTH if sizes.pair else 0)


def spans(start: int, count: int, width: int) -> list[tuple[int, int]]:
    """Return the columns of `count` embeddings from column `start` on."""
    return [(start + place * width, start + (place + 1) * width) for place in range(count)]


class _ForIndexes(nn.Module):
    """What indexes call: U x du users and U x L x di items.

    Args:
        scorer: A MoNN's pair scorer.
        task_weights: T weights of the tasks' logits in the score.
    """

    task_weights: Tensor

    def __init__(self, scorer: PairScorer, task_weights: Tensor) -> None:
        super().__init__()
        self.scorer = scorer
        self.register_buffer("task_weights", task_weights)


class ScoreMany(_ForIndexes):
    """The scorer that indexes use."""

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Return U x L scores."""
        found = self.scorer.many(users, items)
        return found[..., 0] if found.shape[2] == 1 else found @ self.task_weights


class SlopeMany(_ForIndexes):
    """How the score of items changes near given ones; the scorer is `sloped`."""

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Return U x L x (1 + di): the scores, and behind them their gradients."""
        return self.scorer.slopes(users, items, self.task_weights)
