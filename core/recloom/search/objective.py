"""What a search minimises: one metric or several, penalties with a target, hard limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from recloom.errors import RecloomError


@dataclass(frozen=True)
class Penalty:
    """A term added to the first minimised metric: weight * (value / target - 1).

    Args:
        target: The value of the metric without penalty.
        weight: Penalty of being 100% above the target.
        one_sided: Whether values below the target cost nothing; otherwise the distance counts, on both sides.
    """

    target: float
    weight: float = 0.1
    one_sided: bool = True

    def __call__(self, value: float) -> float:
        """Return the penalty of `value`."""
        excess = value / self.target - 1
        return self.weight * (max(excess, 0.0) if self.one_sided else abs(excess))


@dataclass(frozen=True)
class Objective:
    """What a search minimises.

    Args:
        minimize: Metrics to minimise: one, or several for a Pareto front.
        penalties: Metrics with a target, by name; their penalties are added to the first metric.
        limits: Largest allowed value of metrics, by name. A candidate that costs alone put above a limit is never
            evaluated, and methods that can are told not to propose it.
    """

    minimize: Sequence[str] = ("ne",)
    penalties: Mapping[str, Penalty] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.minimize:
            raise RecloomError("objective: nothing to minimise", "Name a metric: --objective.minimize '[ne]'")
        for name, penalty in self.penalties.items():
            if penalty.target <= 0:
                raise RecloomError(f"objective: the target of {name} is {penalty.target}", "It must be positive.")

    @property
    def names(self) -> tuple[str, ...]:
        """Every metric that is needed."""
        return tuple(dict.fromkeys([*self.minimize, *self.penalties, *self.limits]))

    def values(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Return what is minimised; infinite where a metric is not a number, so that it ranks last.

        Raises:
            RecloomError: A metric that is needed was not measured.
        """
        self._need(metrics, [*self.minimize, *self.penalties])
        found = [metrics[name] for name in self.minimize]
        found[0] += sum(penalty(metrics[name]) for name, penalty in self.penalties.items())
        return tuple(value if math.isfinite(value) else math.inf for value in found)

    def excess(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Return for each limit by how much it is exceeded, as a share of it; 0 or less where it is kept."""
        self._need(metrics, self.limits)
        return tuple(metrics[name] / limit - 1 if limit else metrics[name] for name, limit in self.limits.items())

    def overshoot(self, costs: Mapping[str, float]) -> float:
        """Return by how much the limits on the metrics in `costs` are exceeded, all together, as shares of them."""
        known = {name: costs.get(name, limit) for name, limit in self.limits.items()}
        return sum(max(excess, 0.0) for excess in self.excess(known))

    def allows(self, costs: Mapping[str, float]) -> bool:
        """Return whether the limits on the metrics in `costs` are kept; limits on others are not looked at."""
        return all(costs[name] <= limit for name, limit in self.limits.items() if name in costs)

    def _need(self, metrics: Mapping[str, float], names: Sequence[str] | Mapping[str, float]) -> None:
        for name in names:
            if name not in metrics:
                raise RecloomError(
                    f"objective: there is no metric {name!r}",
                    f"The evaluator and the costs give: {', '.join(metrics)}",
                )
