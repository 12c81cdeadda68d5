"""The part of a composed model that comes after the embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recloom.linear import Linear, linear
from recloom.search.block import Block, Weights
from recloom_rankitect.plan import Plan


class StepModule(nn.Module):
    """A step with weights of its own.

    Args:
        block: The block.
        group: The part of the architecture that it belongs to.
    """

    def __init__(self, block: Block, group: str = "") -> None:
        super().__init__()
        self.block = block
        self.group = group
        self.names: list[str] = []
        for name, weight in block.weights().items():
            tensor = torch.empty(weight.shape)
            weight.fill(tensor)
            self.names.append(name)
            if weight.trained:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the block's result."""
        weights = Weights((name, getattr(self, name)) for name in self.names)
        weights.training, weights.product = self.training, self.product
        return self.block.forward(weights, *inputs)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, name: str) -> Tensor:
        """Return x weight^T + bias; what replaces products in layers of other modules replaces this of an instance."""
        return linear(x, weight, bias)


class GraphNetwork(nn.Module):
    """The steps of a plan, and a linear head.

    Args:
        plan: The plan.
        tasks: Number of logits, T.
    """

    def __init__(self, plan: Plan, tasks: int = 1) -> None:
        super().__init__()
        self.inputs = [step.inputs for step in plan.steps]
        self.steps = nn.ModuleDict({step.slot: StepModule(step.block, step.group) for step in plan.steps})
        self.ends = plan.head
        self.head = Linear(plan.width, tasks)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, dense: Tensor, tokens: Tensor) -> Tensor:
        """Return B x T logits.

        Args:
            dense: B x (dense features), at least one.
            tokens: B x N x D embedding vectors.
        """
        results = [tokens, dense]
        for inputs, step in zip(self.inputs, self.steps.values(), strict=True):
            results.append(step(*(results[place] for place in inputs)))
        ends = [results[place].flatten(1) for place in self.ends]
        logits: Tensor = self.head(ends[0] if len(ends) == 1 else torch.cat(ends, dim=1))
        return logits


def stem_features(dense: Tensor) -> Tensor:
    """Return B x d; a column of zeros where there are no dense features."""
    return dense if dense.shape[1] else dense.new_zeros(dense.shape[0], 1)
