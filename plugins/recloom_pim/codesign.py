"""The comparison behind `recloom reproduce pim`: a model found by accuracy alone, and one found with its crossbars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from recloom.loading import instantiate_model
from recloom.model import RankingModule
from recloom.search.choose import ranked
from recloom.search.evaluator import SearchContext
from recloom.search.evaluators.scratch import FromScratch, Outcome
from recloom.search.methods.evolution import RegularizedEvolution
from recloom.search.objective import Objective
from recloom.search.program import Program
from recloom.search.run import SearchRun
from recloom.search.space import Genotype
from recloom.search.training import candidate_seed, measure
from recloom_pim.cost import PIMCost
from recloom_pim.crossbars import Crossbars
from recloom_pim.layers import Board, place
from recloom_pim.method import NSGA2FromModel
from recloom_pim.pricing import COMPONENTS
from recloom_pim.setting import Setting
from recloom_pim.space import PIMSpace

COSTS = ("macs", "energy_nj", "latency_ns", "area_mm2")
SLACKS = (0.005, 0.02)
FEW = 4  # validation batches on which crossbars for one model are compared
GRID = {  # of the crossbars for one model
    "rows": (32, 64, 128, 256),
    "columns": (32, 64, 128, 256),
    "cell_bits": (1, 2),
    "dac_bits": (1, 2),
    "replication": (1, 2, 4, 8, 16),
    "weight_bits": (8, 6, 5, 4),
    "activation_bits": (8, 6, 5, 4),
}
BUDGET = {"macs": 2.0, "energy_nj": 1.8, "latency_ns": 1.5, "area_mm2": 1.0}  # the paper's claims, as limits


def by_accuracy(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Search by NE alone, and map the best naively: ISAAC's crossbars, 8 bits.

    The best candidates are trained from scratch for that mapping; the one with the least validation NE is the
    reference. It is trained in full precision, too: if that is better after mapping, its NE is the reference's. For
    this model alone, crossbars are then chosen too (`same_model`).
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
    plain.module.pim = Board(Crossbars(), setting.device)  # type: ignore[assignment]
    place(plain.module, plain.module.pim)  # type: ignore[arg-type]
    ne |= {"mapped": _both(scratch, plain.module), "trained for it": _both(scratch, aware.module, aware.metrics)}
    way = min(("mapped", "trained for it"), key=lambda name: _finite(ne[name]["val"]))
    module = {"mapped": plain, "trained for it": aware}[way].module
    costs = context.price(genotype)
    best = {"val": ne[way]["val"], "module": module}
    trials = [[o.metrics["ne"], o.metrics["macs"]] for o in run.study.observations() if o.measured]
    return {
        "ne": ne,
        "val_ne": ne[way]["val"],
        "test_ne": ne[way]["test"],
        "costs": costs,
        "energy": _shares(context, genotype, Crossbars()),
        "architecture": context.space.to_json(genotype),
        "tried": [{"val_ne": outcome.metrics["ne"], **_costs(context.price(model))} for model, outcome in tried],
        "frugal_macs": min(macs for found, macs in trials if found <= 1.001 * min(trials)[0]),
        "same model": same_model(scratch, context.space.program(genotype, context.schema), best, costs),
    }


def same_model(
    scratch: FromScratch, program: Program, best: dict[str, Any], costs: Mapping[str, float]
) -> dict[str, Any]:
    """Choose crossbars and bits for a trained model: what saves most at its validation NE, within 0.1%, and its area.

    All of a grid are priced; for each combination of bits and lost ADC bits the one that saves most is tried, in the
    order of what it saves.
    """
    grid = [
        replace(h, adc_bits=max(1, h.lossless_adc_bits - lost))
        for rows, columns, cells, dac, copies, w, b in product(*GRID.values())
        for h in [Crossbars(rows, columns, cells, dac, 8, 1, copies, w, b)]
        for lost in (0, 1)
    ]
    prices = PIMCost().prices(program, grid)
    saved = np.sqrt(costs["energy_nj"] / prices.total * costs["latency_ns"] / prices.latency)
    saved[prices.area > costs["area_mm2"]] = 0
    module, board = best["module"], best["module"].pim
    rows = scratch.eval_batches("val")[:FEW]
    bound = 1.001 * measure(module, rows)[0]["ne"]
    seen: set[tuple[int, int, int]] = set()
    for place_ in np.argsort(-saved)[: np.count_nonzero(saved)]:
        h = grid[place_]
        key = (h.weight_bits, h.activation_bits, h.lossless_adc_bits - h.adc_bits)
        if key in seen:
            continue
        seen.add(key)
        board.crossbars = h
        if measure(module, rows)[0]["ne"] <= bound:
            break
    told = {"energy_nj": prices.total, "latency_ns": prices.latency, "area_mm2": prices.area}
    found = {name: float(values[place_]) for name, values in told.items()}
    return {**_both(scratch, module), "costs": found, "crossbars": asdict(h), "tried": len(seen)}


def together(setting: Setting, seed: int, folder: Path, reference: dict[str, Any]) -> dict[str, Any]:
    """Search models with their crossbars, by NE, energy, latency and area: NSGA-II.

    Limits are the reference's area, and the paper's shares of its MACs, energy and latency. The search starts from
    variants of the reference's model, of which few are within these limits as they are. Some of its candidates are
    trained from scratch, like the reference. Of these the one that saves most is taken, among those whose validation NE
    is within 0.1% of the reference's; if there is none, the one with the least NE.
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
    tried: list[dict[str, Any]] = []
    for genotype in candidates(run, reference, max(1, setting.retrain_together - len(SLACKS))):
        outcome = scratch.train(genotype)
        costs = context.price(genotype)
        tried.append({"genotype": genotype, "outcome": outcome, "costs": costs, "val": outcome.metrics["ne"]})
    same = [t for t in tried if t["val"] <= 1.001 * reference["val_ne"]]
    if same:
        best = max(same, key=lambda t: gain(t["costs"], reference))
    else:
        best = min(tried, key=lambda t: _finite(t["val"]))
    genotype, ne = best["genotype"], _both(scratch, best["outcome"].module, best["outcome"].metrics)
    return {
        "ne": {"trained for it": ne},
        "val_ne": ne["val"],
        "test_ne": ne["test"],
        "costs": best["costs"],
        "energy": _shares(context, genotype, space.crossbars(genotype)),
        "naive_energy": _shares(context, genotype, Crossbars()),
        "architecture": space.to_json(genotype),
        "tried": [{"val_ne": t["val"], **_costs(t["costs"])} for t in tried],
        "trials": [[o.metrics[name] for name in ("ne", *COSTS)] for o in run.study.observations() if o.measured],
        "genotypes": space.log10_size,
    }


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
