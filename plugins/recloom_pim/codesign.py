"""The comparison behind `recloom reproduce pim`: a model found by accuracy alone, and one found with its crossbars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from recloom.loading import instantiate_model
from recloom.model import RankingModule
from recloom.search.choose import ranked
from recloom.search.evaluator import SearchContext
from recloom.search.evaluators.scratch import FromScratch, Outcome
from recloom.search.methods.evolution import RegularizedEvolution
from recloom.search.objective import Objective
from recloom.search.run import SearchRun
from recloom.search.space import Genotype
from recloom.search.training import candidate_seed
from recloom_pim.cost import PIMCost
from recloom_pim.crossbars import Crossbars
from recloom_pim.fitting import choices_of, costs_of, crossbars_of, fitted, precise
from recloom_pim.layers import Board, place
from recloom_pim.method import NSGA2FromModel
from recloom_pim.pricing import COMPONENTS
from recloom_pim.setting import Setting
from recloom_pim.space import PIMSpace

COSTS = ("macs", "energy_nj", "latency_ns", "area_mm2")
SLACKS = (0.005, 0.02)
BUDGET = {"macs": 2.0, "energy_nj": 1.8, "latency_ns": 1.5, "area_mm2": 1.0}  # the paper's claims, as limits


def by_accuracy(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Search by NE alone, and map the best naively: ISAAC's crossbars, 8 bits.

    The best candidates are trained from scratch for that mapping; the one with the least validation NE is the
    reference. It is trained in full precision, too: if that is better after mapping, its NE is the reference's. For
    this model alone, crossbars are then fitted, too (`recloom_pim.fitting`).
    """
    method = RegularizedEvolution(population=16, sample=8)
    run = setting.search(setting.space(), method, seed, folder, Objective())
    context = run.context
    scratch = setting.scratch(context)
    tried: list[tuple[Genotype, Outcome]] = []
    for genotype in dict.fromkeys(context.space.canonical(o.genotype) for o in ranked(run.study)):
        section = _on_crossbars(setting, context.space.model_config(genotype), Crossbars())
        build = partial(instantiate_model, section, context.schema)
        tried.append((genotype, scratch.run(build, candidate_seed(seed, genotype))))
        if len(tried) == setting.retrain:
            break
    genotype, aware = min(tried, key=lambda t: _finite(t[1].metrics["ne"]))
    plain = scratch.train(genotype)
    ne = {"exact": _both(scratch, plain.module, plain.metrics)}
    _map(plain.module, Board(Crossbars(), setting.device))
    ne |= {"mapped": _both(scratch, plain.module), "trained for it": _both(scratch, aware.module, aware.metrics)}
    way = min(("mapped", "trained for it"), key=lambda name: _finite(ne[name]["val"]))
    module = {"mapped": plain, "trained for it": aware}[way].module
    costs = context.price(genotype)
    trials = [[o.metrics["ne"], o.metrics["macs"]] for o in run.study.observations() if o.measured]
    program = context.space.program(genotype, context.schema)
    same = fitted(scratch, program, module, costs["area_mm2"]) or {"costs": _costs(costs), "crossbars": {}, "tried": 0}
    return {
        "ne": ne,
        "val_ne": ne[way]["val"],
        "test_ne": ne[way]["test"],
        "costs": costs,
        "energy": _shares(context, genotype, Crossbars()),
        "architecture": context.space.to_json(genotype),
        "tried": [{"val_ne": outcome.metrics["ne"], **_costs(context.price(model))} for model, outcome in tried],
        "frugal_macs": min(macs for found, macs in trials if found <= 1.001 * min(trials)[0]),
        "same model": {**_both(scratch, module), **same},
    }


def together(setting: Setting, seed: int, folder: Path, reference: dict[str, Any]) -> dict[str, Any]:
    """Search models with their crossbars, by NE, energy, latency and area: NSGA-II.

    Limits are the reference's area, and the paper's shares of its MACs, energy and latency. The search starts from
    variants of the reference's model, of which few are within these limits as they are. Some of its candidates are
    trained from scratch, like the reference: on the crossbars that they were found with, and on the most precise ones
    within the limits. For those whose validation NE is not above the reference's crossbars are fitted like the
    reference's (`recloom_pim.fitting`), up to that NE: what saves most is the design. (A bound of 0.1% above would be
    met by luck, and missed on the test rows.) If there is none: the one with the least NE.
    """
    space = PIMSpace(
        setting.space(),
        rows=(32, 64, 128, 256),
        device=setting.device,
        exact_steps=setting.exact_steps,
        supernet_exact_steps=int(0.7 * setting.steps),
    )
    limits = {name: reference["costs"][name] / ratio for name, ratio in BUDGET.items()}
    objective = Objective(("ne", *COSTS[1:]), limits=limits)
    run = setting.search(space, NSGA2FromModel(reference["architecture"], population=16), seed, folder, objective)
    context = run.context
    scratch = setting.scratch(context)
    tried: list[Design] = []
    for genotype in candidates(run, reference, max(1, setting.retrain_together // 2 - len(SLACKS))):
        section, program = space.space.model_config(space.model(genotype)), space.program(genotype, context.schema)
        for crossbars in (space.crossbars(genotype), precise(program, limits)):
            if crossbars is not None:
                build = partial(instantiate_model, _on_crossbars(setting, section, crossbars), context.schema)
                outcome = scratch.run(build, candidate_seed(seed, (*genotype, len(tried))))
                costs = {"macs": float(program.macs), **costs_of(PIMCost().prices(program, [crossbars]))}
                tried.append(Design(genotype, crossbars, outcome.module, costs, outcome.metrics["ne"]))
    best, same = _chosen(tried, reference, scratch, space, context)
    best.module.pim.crossbars = best.crossbars  # type: ignore[union-attr, assignment]
    ne, program = _both(scratch, best.module), space.program(best.genotype, context.schema)
    naive = costs_of(PIMCost().prices(program, [Crossbars()]))
    return {
        "ne": {"trained for it": ne},
        "val_ne": ne["val"],
        "test_ne": ne["test"],
        "costs": {**best.costs, **{f"naive_{name}": value for name, value in naive.items()}},
        "energy": _shares(context, best.genotype, best.crossbars),
        "naive_energy": _shares(context, best.genotype, Crossbars()),
        "architecture": {**space.space.to_json(space.model(best.genotype)), **choices_of(best.crossbars)},
        "tried": [{"val_ne": design.val, **design.costs} for design in tried],
        "as_good": same,
        "trials": [[o.metrics[name] for name in ("ne", *COSTS)] for o in run.study.observations() if o.measured],
        "genotypes": space.log10_size,
    }


@dataclass(frozen=True)
class Design:
    """A trained candidate: its genotype, crossbars, model, costs on them, and validation NE."""

    genotype: Genotype
    crossbars: Crossbars
    module: RankingModule
    costs: dict[str, float]
    val: float


def _chosen(
    tried: list[Design], reference: dict[str, Any], scratch: FromScratch, space: PIMSpace, context: SearchContext
) -> tuple[Design, int]:
    """Return the design of the co-search, and how many candidates are as good as the reference."""
    bound: float = reference["val_ne"]
    same = [design for design in tried if design.val <= bound]
    found = list(same)
    for design in same:
        program, area = space.program(design.genotype, context.schema), reference["costs"]["area_mm2"]
        if (fit := fitted(scratch, program, design.module, area, bound / design.val)) is not None:
            val, costs = scratch.measure(design.module)[0]["ne"], {"macs": design.costs["macs"], **fit["costs"]}
            if val <= bound:
                found.append(replace(design, crossbars=Crossbars(**fit["crossbars"]), costs=costs, val=val))
    if found:
        return max(found, key=lambda design: gain(design.costs, reference)), len(same)
    return min(tried, key=lambda design: _finite(design.val)), 0


def anew(
    setting: Setting, seed: int, folder: Path, reference: dict[str, Any], design: dict[str, Any]
) -> dict[str, list[float]]:
    """Train the reference, in the way that was better for it, and the design from other weights; return their test NE.

    What was chosen as the best of several trainings owes something to luck; these trainings chose nothing.
    """
    context = setting.context(seed, folder)
    scratch, space = setting.scratch(context), context.space
    found: dict[str, list[float]] = {}
    for name, run in (("reference", reference), ("design", design)):
        model = {choice.name: run["architecture"][choice.name] for choice in space.choices}
        crossbars = Crossbars() if name == "reference" else crossbars_of(run["architecture"])
        plain = space.model_config(space.from_json(model))
        exact = "mapped" in run["ne"] and run["val_ne"] == run["ne"]["mapped"]["val"]
        section = plain if exact else _on_crossbars(setting, plain, crossbars)
        for repeat in range(setting.repeats):
            own = candidate_seed(seed, tuple(name.encode()), repeat)
            module = scratch.run(partial(instantiate_model, section, context.schema), own).module
            if exact:
                _map(module, Board(crossbars, setting.device))
            found.setdefault(name, []).append(scratch.measure(module, "test")[0]["ne"])
    return found


def _map(module: RankingModule, board: Board) -> None:
    """Put a trained model on crossbars as it is."""
    module.pim = board  # type: ignore[assignment]
    place(module, board)


def candidates(run: SearchRun, reference: dict[str, Any], count: int) -> list[Genotype]:
    """Return the `count` different models of least NE on their best crossbars, and two that save most near the best."""
    space = run.context.space
    assert isinstance(space, PIMSpace)
    ordered = sorted((o for o in run.study.observations() if o.measured and o.feasible), key=lambda o: o.metrics["ne"])
    models: dict[Genotype, Genotype] = {}
    for observation in ordered:
        genotype = space.canonical(observation.genotype)
        models.setdefault(space.model(genotype), genotype)
    found = dict.fromkeys(list(models.values())[:count])
    for slack in SLACKS:
        near = [o for o in ordered if o.metrics["ne"] <= ordered[0].metrics["ne"] * (1 + slack)]
        chosen = max(near, key=lambda o: gain(o.metrics, reference))
        found[space.canonical(chosen.genotype)] = None
    return list(found)


def gain(costs: Any, reference: dict[str, Any]) -> float:
    """Return the geometric mean of how many times fewer MACs, less energy and less time than the reference's."""
    names = COSTS[:3]
    return math.prod(reference["costs"][name] / costs[name] for name in names) ** (1 / len(names))


def _both(scratch: FromScratch, module: RankingModule, val: dict[str, float] | None = None) -> dict[str, float]:
    """Return the NE of a trained module on the validation and the test rows, and the oracle's on the test rows."""
    val = val or scratch.measure(module)[0]
    test = scratch.measure(module, "test")[0]
    return {"val": val["ne"], "test": test["ne"], "oracle": test["oracle_ne"]}


def _on_crossbars(setting: Setting, section: dict[str, Any], crossbars: Crossbars) -> dict[str, Any]:
    """Return a model's section, on crossbars."""
    on: dict[str, Any] = asdict(crossbars) | {"bits": {group: list(pair) for group, pair in crossbars.bits.items()}}
    init_args = {"model": section, "crossbars": on, "device": asdict(setting.device)}
    return {
        "class_path": "recloom_pim.model.OnCrossbars",
        "init_args": {**init_args, "exact_steps": setting.exact_steps},
    }


def _costs(costs: Mapping[str, float]) -> dict[str, float]:
    return {name: costs[name] for name in COSTS}


def _shares(context: SearchContext, genotype: Genotype, crossbars: Crossbars) -> dict[str, float]:
    """Return the energy of a model by component, nJ."""
    prices = PIMCost().prices(context.space.program(genotype, context.schema), [crossbars])
    return {name: float(prices.energy[name][0]) for name in COMPONENTS}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
