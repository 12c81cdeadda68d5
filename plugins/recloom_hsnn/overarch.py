"""Over archs of MoNN: from the towers' embeddings to the logits, for one item a user in training, for many in serving.

Letters in shapes: U users, L items of a user, T tasks, D width of an embedding, H first hidden width; nu, ni and nx are
the numbers of a user's, an item's and a pair's embeddings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.linear import Linear
from recloom.model import Interaction


@dataclass(frozen=True)
class Sizes:
    """How many embeddings the towers give, and how wide they are.

    Args:
        user: Embeddings of a user, nu.
        item: Embeddings of an item, ni.
        pair: Embeddings of a pair, nx; 0: no interaction tower.
        dim: Their width, D.
    """

    user: int
    item: int
    pair: int
    dim: int


class OverArch(nn.Module, ABC):
    """Scores users and items from their embeddings.

    Args:
        sizes: The towers' sizes.
        hidden: Hidden widths.
        tasks: Number of logits, T.
    """

    def __init__(self, sizes: Sizes, hidden: Sequence[int], tasks: int) -> None:
        super().__init__()
        self.sizes, self.hidden, self.tasks = sizes, tuple(hidden), tasks

    @abstractmethod
    def forward(self, users: Tensor, items: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Return B x T logits of rows: users B x nu D, items B x ni D, pairs B x nx D."""

    @abstractmethod
    def many(self, users: Tensor, items: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Return U x L x T logits: users U x nu D, items U x L x ni D, pairs U x L x nx D."""

    def slopes(
        self, users: Tensor, items: Tensor, pairs: Tensor | None, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return U x L scores (T `weights` of the logits), and their gradients by items and by pairs, as those are.

        For classes whose attribute `sloped` is True.
        """
        raise NotImplementedError(f"{type(self).__name__} has no slopes")

    sloped: bool = False


class ProductArch(OverArch):
    """An MLP on the products of every user embedding with every item embedding, and on the embeddings themselves.

    All of the first layer is linear in the item. So a user's part of it is one H x (ni D) matrix and one bias, made
    once a request; an item then costs H ni D multiply-adds in the first layer instead of H (nu ni D + ni D + nu D).

    The first layer's units begin near inner products, each of one user embedding with one item embedding.
    """

    def __init__(self, sizes: Sizes, hidden: Sequence[int] = (128, 64), tasks: int = 1) -> None:
        super().__init__(sizes, hidden, tasks)
        width = sizes.dim
        products = sizes.user * sizes.item * width
        self.length = (sizes.item * width) ** 0.5  # items have length 1; coordinates of about 1 learn faster
        self.first = Linear(products + (sizes.item + sizes.user + sizes.pair) * width, hidden[0])
        rest: list[nn.Module] = []
        for before, after in pairwise(hidden):
            rest += [Linear(before, after), nn.ReLU()]
        self.rest = nn.Sequential(*rest, nn.Linear(hidden[-1], tasks))
        with torch.no_grad():
            for unit, row in enumerate(self.first.weight):
                place, sign = unit % (sizes.user * sizes.item), 1 - 2 * (unit // (sizes.user * sizes.item) % 2)
                row[place * width : (place + 1) * width] += sign / width**0.5
            nn.init.normal_(self.first.bias, std=0.5)
        self._splits = [products, sizes.item * width, sizes.user * width, sizes.pair * width]

    def forward(self, users: Tensor, items: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Return B x T logits of rows."""
        size, items = self.sizes, items * self.length
        u = users.view(-1, size.user, 1, size.dim)
        v = items.view(-1, 1, size.item, size.dim)
        columns = [(u * v).flatten(1), items, users]
        hidden = self.first(torch.cat(columns if pairs is None else [*columns, pairs], dim=1))
        return self.rest(F.relu(hidden))

    def many(self, users: Tensor, items: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Return U x L x T logits."""
        return self.rest(F.relu(self._first(users, items, pairs)[0]))

    sloped = True

    def slopes(
        self, users: Tensor, items: Tensor, pairs: Tensor | None, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return U x L scores and their gradients: the layers backwards, as many multiply-adds as forwards."""
        hidden, matrix = self._first(users, items, pairs)
        inputs, output = [hidden], F.relu(hidden)
        layers = [layer for layer in self.rest if isinstance(layer, nn.Linear)]
        for layer in layers[:-1]:
            inputs.append(layer(output))
            output = F.relu(inputs[-1])
        scores = layers[-1](output) @ weights
        back = (weights @ layers[-1].weight).expand(output.shape)
        for layer, before in zip(reversed(layers[:-1]), reversed(inputs[1:]), strict=True):
            back = (back * (before > 0)) @ layer.weight
        back = back * (hidden > 0)
        w_pair = self.first.weight.split(self._splits, dim=1)[3]
        return scores, back @ matrix, None if pairs is None else back @ w_pair

    def _first(self, users: Tensor, items: Tensor, pairs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the first layer's outputs U x L x H, and the users' matrices by which they are made, U x H x ni D."""
        size = self.sizes
        w_product, w_item, w_user, w_pair = self.first.weight.split(self._splits, dim=1)
        grid = w_product.view(-1, size.user, size.item, size.dim)  # H x nu x ni x D
        matrix = (grid * users.view(-1, 1, size.user, 1, size.dim)).sum(2).flatten(2)  # U x H x ni D
        matrix = (matrix + w_item) * self.length
        bias = F.linear(users, w_user, self.first.bias)  # U x H
        hidden = torch.baddbmm(bias[:, None], items, matrix.transpose(1, 2))  # U x L x H
        if pairs is not None:
            hidden = hidden + pairs @ w_pair.t()
        return hidden, matrix


class InteractionArch(OverArch):
    """Any core `Interaction` of all embeddings, then an MLP: nothing of it is shared between the items of a user.

    Args:
        sizes: The towers' sizes.
        hidden: Hidden widths of the MLP.
        tasks: Number of logits, T.
        interaction: Combines the nu + ni + nx vectors of width D.
    """

    def __init__(
        self, sizes: Sizes, hidden: Sequence[int], tasks: int, interaction: Callable[[int, int], Interaction]
    ) -> None:
        super().__init__(sizes, hidden, tasks)
        self.interaction = interaction(sizes.user + sizes.item + sizes.pair, sizes.dim)
        layers: list[nn.Module] = []
        before = self.interaction.output_dim
        for after in hidden:
            layers += [Linear(before, after), nn.ReLU()]
            before = after
        self.mlp = nn.Sequential(*layers, nn.Linear(before, tasks))

    def forward(self, users: Tensor, items: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Return B x T logits of rows."""
        columns = [users, items] if pairs is None else [users, items, pairs]
        vectors = torch.cat(columns, dim=1).unflatten(1, (-1, self.sizes.dim))
        return self.mlp(self.interaction(vectors))

    def many(self, users: Tensor, items: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Return U x L x T logits."""
        count = items.shape[1]
        rows = users[:, None].expand(-1, count, -1).flatten(0, 1)
        found = self(rows, items.flatten(0, 1), None if pairs is None else pairs.flatten(0, 1))
        return found.unflatten(0, (-1, count))
