"""The cost that fronts of NE against FLOPs are drawn over."""

from __future__ import annotations

import math

from recloom.search.evaluator import CostModel, SearchContext
from recloom.search.program import Program
from recloom.search.space import Genotype


class LogMACs(CostModel):
    """The decimal logarithm of the multiply-accumulates a sample: MACs of a front span orders of magnitude.

    Cost: `log_macs`. Minimised in place of `macs`, it gives models of every size the same share of a hypervolume, and
    of what methods that spread over a front explore.

    Args:
        floor: Models of fewer MACs count as having so many: nobody needs them smaller.
    """

    def __init__(self, floor: int = 1000) -> None:
        self.floor = floor

    def __call__(self, program: Program, genotype: Genotype, context: SearchContext) -> dict[str, float]:
        """Return the cost."""
        return {"log_macs": math.log10(max(program.macs, self.floor, 1))}
