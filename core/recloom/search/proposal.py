"""A method's proposal, drawn again until it is worth an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import numpy as np

from recloom.errors import RecloomError
from recloom.search.method import History, SearchMethod
from recloom.search.objective import Objective
from recloom.search.space import Genotype

DUPLICATE_TRIES = 50  # of a method's redraws: how many are spent on finding a model that was not tried before


def propose(
    method: SearchMethod,
    history: History,
    seed: int,
    known: Container[Genotype],
    price: Callable[[Genotype], Mapping[str, float]],
) -> Genotype:
    """Return a valid candidate: if the method can be asked again, a new one whose costs keep the limits.

    Args:
        method: The method.
        history: What it is asked about.
        seed: The search's seed.
        known: Models that were tried, in canonical form.
        price: Gives the costs of a model.

    Raises:
        RecloomError: No proposal kept the limits.
    """
    space, objective = method.space, method.objective
    allowed: Genotype | None = None
    nearest: Mapping[str, float] = {}
    for attempt in range(1 + method.redraws):
        proposal = method.ask(history, np.random.default_rng([seed, history.number, attempt]))
        genotype = space.repair(tuple(int(option) for option in proposal))
        model = space.canonical(genotype)
        new = model not in known
        costs = price(model) if new else {}
        if objective.allows(costs):
            allowed = genotype
            if new or attempt >= min(DUPLICATE_TRIES, method.redraws):
                return genotype
        elif not nearest or objective.overshoot(costs) < objective.overshoot(nearest):
            nearest = costs
    if allowed is None and method.redraws:
        raise _nothing_allowed(objective, nearest, 1 + method.redraws)
    return allowed or genotype


def _nothing_allowed(objective: Objective, nearest: Mapping[str, float], tries: int) -> RecloomError:
    limits = ", ".join(f"{name} <= {limit:g}" for name, limit in objective.limits.items())
    closest = ", ".join(f"{name} {value:g}" for name, value in nearest.items() if name in objective.limits)
    return RecloomError(
        f"almost nothing of the space keeps the limits ({limits}): none of {tries} candidates did",
        f"The nearest had {closest}. Raise the limits, or use a smaller space.",
    )
