"""The report of a search: what was found, how it stands beside baselines, how the search went, where time went."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recloom import machine, plots
from recloom.document import Report
from recloom.search import charts
from recloom.search.compare import ne_difference
from recloom.search.drawing import draw_program
from recloom.search.finish import Trained
from recloom.search.ranking import correlations

if TYPE_CHECKING:
    from recloom.search.run import Search, SearchRun


def write_report(run: SearchRun, search: Search) -> Path:
    """Write report.html and report.md into the search's folder; return the HTML's path."""
    space, times = run.context.space, run.journal.times()
    seconds = sum(entry["seconds"] for entry in times.values())
    report = Report(
        f"Search: {run.context.folder.name}",
        f"{type(search.method).__name__} on {type(space).__name__} (10^{space.log10_size:.1f} genotypes), "
        f"{len(run.study.observations())} trials, measured by {type(search.evaluator).__name__}, "
        f"{seconds / 60:.1f} minutes",
    )
    _headline(report, run)
    _models(report, run)
    _architecture(report, run)
    _costs(report, run)
    _course(report, run)
    _correlation(report, run)
    _times(report, times)
    report.section("Where and with what")
    report.facts({"seed": search.seed, **machine.facts(), **machine.versions()})
    config = run.context.folder / "config.yaml"
    if config.exists():
        report.code(config.read_text(), "config.yaml", "yaml")
    return report.save(run.context.folder)


def _headline(report: Report, run: SearchRun) -> None:
    observations = run.study.observations()
    duplicates = len(observations) - len({run.context.space.canonical(o.genotype) for o in observations})
    report.section("Result")
    facts: dict[str, Any] = {"trials finished": len(observations), "of them of a model tried before": duplicates}
    facts["above a limit by their costs alone"] = sum(not o.evaluated for o in observations)
    facts["diverged"] = sum(o.diverged for o in observations)
    facts["failed"] = len(run.study.failures())
    retrained = run.finished.retrained
    if retrained and retrained[0].reasons:
        report.text(f"Every retrained candidate diverged; the first, because {retrained[0].reasons[0]}.")
    elif retrained:
        found = retrained[0]
        stage = "test" if found.test else "val"
        text = f"The best candidate, retrained, has {_stage(stage)} NE {found.mean('ne', stage):.5f}"
        best = found.mean("oracle_ne", stage)
        if math.isfinite(best):
            text += f"; the best possible NE of the same rows is {best:.5f}: {_above(found, stage)}% above it"
        report.text(text + ". It is `found.yaml`, for `recloom fit`.")
    else:
        report.text("No candidate was retrained: `found.yaml` is the best of the trials, by the search's own measure.")
    report.facts(facts)


def _models(report: Report, run: SearchRun) -> None:
    """Add the retrained candidates and the baselines, with the gap to the oracle and to the best."""
    finished = run.finished
    if not finished.retrained and not finished.baselines:
        return
    report.section("Trained from scratch")
    stages = ["val", "test"] if any(m.test for m in [*finished.retrained[:1], *finished.baselines]) else ["val"]
    costs = list(dict.fromkeys(name for m in [*finished.retrained, *finished.baselines] for name in m.costs))
    known = any(math.isfinite(m.mean("oracle_ne")) for m in [*finished.retrained, *finished.baselines])
    header = ["model", "seeds", *(f"{_stage(s)} NE" for s in stages), *(f"{_stage(s)} AUC" for s in stages)]
    header += [f"{_stage(s)} NE above the oracle's, %" for s in stages] if known else []
    rows = []
    for model in [*finished.retrained, *finished.baselines]:
        row: list[Any] = [model.name, len(model.runs)]
        row += [_spread(model, "ne", s) for s in stages] + [_spread(model, "auc", s) for s in stages]
        row += [_above(model, s) for s in stages] if known else []
        rows.append([*row, *(_cost(model.costs.get(name)) for name in costs)])
    report.table([*header, *costs], rows, "Means over seeds and their standard deviation. Costs are for one sample.")
    for model in [*finished.retrained, *finished.baselines]:
        if model.reasons:
            report.text(
                f"{model.name} diverged with {len(model.reasons)} of {len(model.runs)} seeds: {model.reasons[0]}."
            )
    _differences(report, run)


def _differences(report: Report, run: SearchRun) -> None:
    """Add by how much the best candidate is ahead of each other model."""
    if not run.finished.retrained:
        return
    best = run.finished.retrained[0]
    rows = []
    for other in [*run.finished.retrained[1:], *run.finished.baselines]:
        stage = "test" if best.test and other.test else "val"
        theirs, ours = ((m.test_logits if stage == "test" else m.logits) for m in (other, best))
        if any(len(logits) == 0 for logits in [*theirs, *ours]):
            continue  # one that diverged
        found = ne_difference(theirs, ours, charts.labels(run, stage), run.context.seed)
        share = 100 / best.mean("ne", stage)
        interval = f"{share * found.low:+.3f} .. {share * found.high:+.3f}"
        rows.append((other.name, _stage(stage), f"{share * found.mean:+.3f}", interval, "yes" if found.clear else "no"))
    caption = (
        "How much higher the other model's NE is, in %, with 95% intervals of a paired bootstrap over rows; how far"
        " trainings differ is in the table above. Validation rows chose the best, and flatter it; test rows did not."
    )
    report.table(("the best against", "rows", "NE, %", "interval", "clear"), rows, caption)


def _architecture(report: Report, run: SearchRun) -> None:
    retrained = run.finished.retrained
    best = run.study.best()
    genotype = retrained[0].genotype if retrained else best.genotype if best else None
    if genotype is None:
        return
    context = run.context
    canonical = context.space.canonical(genotype)
    report.section("Architecture")
    program = context.space.program(canonical, context.schema)
    caption = f"What was found: {program.macs:,} MACs a sample, {program.parameters:,} parameters without tables."
    report.plot("architecture", draw_program(program), caption)
    report.facts(context.space.to_json(canonical), ("choice", "option"))


def _costs(report: Report, run: SearchRun) -> None:
    """Add what the cost models say about the retrained candidates, or about the front."""
    context = run.context
    members = {model.name: model.genotype for model in run.finished.retrained}
    members = members or {f"trial {o.number}": context.space.canonical(o.genotype) for o in run.study.front()[:10]}
    models = {name: (context.space.program(genotype, context.schema), genotype) for name, genotype in members.items()}
    tables = [table for cost in context.costs for table in cost.compare(models, context)] if models else []
    if tables:
        report.section("Costs")
    for table in tables:
        report.table(table.header, table.rows, table.caption)


def _course(report: Report, run: SearchRun) -> None:
    """Add how the search went: the best so far, and fronts."""
    good = [o for o in run.study.observations() if o.measured]
    if not good:
        return
    report.section("The search")
    text = "The best so far, by trial."
    if len(run.context.objective.minimize) > 1:
        text += " Hypervolume: the share of the box between the best values and a point behind the worst."
    report.plot("trajectory", charts.trajectory(run, good), text)
    if (front := charts.fronts(run, good)) is not None:
        report.plot("fronts", front, "Every trial; dashed: the front, which nothing beats in both.")
    values = run.context.objective.minimize
    names = list(dict.fromkeys([*values, *run.context.objective.names, *charts.cost_names(run)]))
    members = run.study.front()[:20]
    rows = [(o.number, *(float(o.metrics.get(n, math.nan)) for n in names)) for o in members]
    report.table(("trial", *names), rows, "The front." if len(values) > 1 else "The best trial.")


def _correlation(report: Report, run: SearchRun) -> None:
    found = run.finished.correlation
    if not found:
        return
    report.section("Rank correlation")
    target = np.array(found["scratch"]["ne"])
    rows = []
    for name, values in found["evaluator"].items():
        kept = np.isfinite(target) & np.isfinite(values)
        if name in ("seconds", "oracle_ne") or kept.sum() < 3 or np.ptp(np.array(values)[kept]) == 0:
            continue
        sign = -1.0 if name.startswith(("auc", "gauc")) else 1.0
        for kind, c in correlations(sign * np.array(values), target, run.context.seed).items():
            rows.append((name, kind, f"{c.mean:.3f}", f"{c.low:.3f} .. {c.high:.3f}", int(kept.sum())))
    caption = (
        "The evaluator's metrics against the NE from scratch, over random candidates that were drawn independently of"
        " the search; bootstrap intervals of 95% over candidates. AUC with its sign turned."
    )
    report.table(("metric", "correlation", "value", "interval", "candidates"), rows, caption)
    shown = next((n for n in (run.context.objective.minimize[0], "ne") if n in found["evaluator"]), None)
    if shown is not None:
        series = {"candidates": (found["evaluator"][shown], found["scratch"]["ne"])}
        drawing = plots.scatter({"": series}, [f"{shown}, by the evaluator"], "NE from scratch")
        report.plot("correlation", drawing, "Random candidates, measured both ways.")


def _times(report: Report, times: dict[str, dict[str, float]]) -> None:
    report.section("Time")
    total = {key: sum(entry[key] for entry in times.values()) for key in ("seconds", "samples")}
    rows = [(name, round(t["seconds"], 1), int(t["samples"])) for name, t in [*times.items(), ("total", total)]]
    caption = "Sample passes: training samples, each counted as often as it was used, by every worker."
    report.table(("phase", "seconds", "sample passes"), rows, caption)


def _stage(stage: str) -> str:
    return "validation" if stage == "val" else stage


def _above(model: Trained, stage: str) -> str:
    gap = 100 * (model.mean("ne", stage) / model.mean("oracle_ne", stage) - 1)
    return f"{gap:.2f}" if math.isfinite(gap) else ""


def _spread(model: Trained, metric: str, stage: str) -> str:
    runs = [run.get(metric, math.nan) for run in (model.runs if stage == "val" else model.test)]
    if not runs:
        return ""
    return f"{np.mean(runs):.5f}" + (f" ± {np.std(runs, ddof=1):.5f}" if len(runs) > 1 else "")


def _cost(value: float | None) -> Any:
    return "" if value is None else round(value) if value >= 1000 else value
