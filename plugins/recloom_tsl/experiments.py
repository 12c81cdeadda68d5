"""`recloom reproduce tsl`: the layers on the designed data, encoders side by side, and what they cost."""

from __future__ import annotations

import functools
import re
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from recloom import plots
from recloom.document import Report
from recloom.experiment import Budget, Claim, Experiment, Lab
from recloom_tsl import compare
from recloom_tsl.compare import NO_HISTORY, Contender, Setting
from recloom_tsl.figures import Runs, auc, interval, mean, over_oracle, tell_cost

TERMS = (0, 10, 20, 30)
GENERATED = Setting(256, 1, 16, (64, 32), {"dense": "Adam", "dense_lr": 0.002, "sparse": "adagrad", "sparse_lr": 0.05})
WORLDS: dict[Budget, dict[str, Any]] = {
    "small": {"num_train": 80_000, "num_val": 10_000, "num_test": 30_000, "max_length": 20, "mean_length": 15.0},
    "full": {"num_train": 2_000_000, "num_val": 100_000, "num_test": 200_000},
}
LOGGED: dict[Budget, Setting] = {
    "small": Setting(64, 3, 16, (32,), {"dense": "Adagrad", "dense_lr": 0.05, "sparse": "adagrad", "sparse_lr": 0.05}),
    # the reference's bench/tbsm_bench.sh
    "full": Setting(
        256, 1, 16, (64, 32), {"dense": "Adagrad", "dense_lr": 0.05, "sparse": "adagrad", "sparse_lr": 0.05}
    ),
}
SCOPE: dict[Budget, str] = {
    "small": "One epoch of 50,000 designed rows a layer; 80,000 generated histories of up to 20 steps; a small "
    "log such as MovieLens-100k with --data. It shows which layer can express what, not what is gained in "
    "production.",
    "full": "2 million generated histories of up to 50 steps, and with --data a log in the reference's Taobao "
    "setting (batch 256, one epoch): hours on two cores.",
}


class TSLExperiment(Experiment):
    """The time series layer beside what it is compared with, on data that show what each can do."""

    paper = (
        "Ishkhanov et al. 2020, Time-based Sequence Model for Personalization and Recommendation Systems, "
        "arXiv 2008.11922"
    )
    summary = (
        "The published script's layers on the paper's designed data, trained and, as that script does, with their "
        "attention left at random weights. Sequence encoders in one DLRM, and TBSM, on generated histories whose "
        "clicks depend on real time, with places and with time gaps. With --data, the same on a real log, with "
        "intervals over users. Time, FLOPs and memory of every encoder against the length of the history."
    )
    scope = SCOPE

    def run(self, lab: Lab, report: Report) -> list[Claim]:
        """Measure everything; return the claims."""
        claims = _designed(lab, report)
        claims += _periodic(lab, report)
        if lab.data is not None:
            claims += _logged(lab, report)
        else:
            report.section("A real log")
            report.text(
                "Not measured: no --data. `recloom prepare movielens --input ml-100k.inter --output DIR --history 20 "
                "--windows-per-user 10 --negatives uniform:1 --split users:0.6,0.1,0.3 --no-user`, then "
                "`recloom reproduce tsl --seeds 0,1,2 --data DIR`."
            )
        tell_cost(lab, report)
        return claims


def _designed(lab: Lab, report: Report) -> list[Claim]:
    """Measure the layers on the designed data, trained and as published."""
    tables: dict[bool, dict[str, list[float]]] = {False: {}, True: {}}
    for frozen, table in tables.items():
        for layer, (kind, heads) in compare.LAYERS.items():
            if frozen and kind in ("dot", "concat"):
                continue
            table[layer] = []
            for terms in TERMS:
                key = f"designed-{kind}{heads}-K{terms}{'-frozen' if frozen else ''}"
                found = lab.each_seed(key, functools.partial(compare.designed_auc, layer, terms, frozen))
                table[layer].append(statistics.fmean(found))
    report.section("Designed data")
    header = ("layer", *(f"K = {terms}" for terms in TERMS))
    for frozen, caption in (
        (False, "Test AUC in percent after one epoch, all weights trained."),
        (
            True,
            "The same as the published script has it: A keeps its random initial values, and multi-head attention "
            "gets new random weights at every call.",
        ),
    ):
        report.table(header, [(layer, *(round(v, 2) for v in row)) for layer, row in tables[frozen].items()], caption)
    trained = tables[False]
    claims = [
        Claim("dot-K0", "the dot product separates the classes when K = 0", trained["dot"][0], ">= 99.9", "% AUC"),
        Claim(
            "heads-frozen",
            "with A left at random weights more heads help (AUC of 8 heads - of 1, mean over K > 0)",
            statistics.fmean(tables[True]["def, 8 heads"][1:]) - statistics.fmean(tables[True]["def"][1:]),
            "> 0",
            "points",
        ),
        Claim(
            "heads-trained",
            "trained, one head is enough (AUC of 8 heads - of 1, mean over K > 0)",
            statistics.fmean(trained["def, 8 heads"][1:]) - statistics.fmean(trained["def"][1:]),
            "-0.5 .. 0.5",
            "points",
        ),
    ]
    for place, terms in enumerate(TERMS[1:], start=1):
        text = "separates the classes"
        for kind in ("def", "ind"):
            claims.append(
                Claim(
                    f"{kind}-K{terms}",
                    f"TSL {kind}, trained, {text} at K = {terms}",
                    trained[kind][place],
                    ">= 99.0",
                    "% AUC",
                )
            )
        claims.append(
            Claim(
                f"dot-K{terms}", f"the dot product does not at K = {terms}", trained["dot"][place], "63 .. 69", "% AUC"
            )
        )
    return claims


def _runs(lab: Lab, name: str, contenders: Mapping[str, Contender], setting: Setting, data: Callable[..., Any]) -> Runs:
    """Train every contender with every seed."""
    found: Runs = {}
    for title, contender in contenders.items():
        key = re.sub(r"[^\w.-]+", "-", f"{name}-{title}")
        found[title] = lab.each_seed(key, functools.partial(compare.train, contender, setting, data))
    return found


def _periodic(lab: Lab, report: Report) -> list[Claim]:
    """Compare places with real time gaps on generated histories."""
    data = compare.behaviour(**WORLDS[lab.budget])
    places = _runs(lab, "places", compare.PLACES, GENERATED, data)
    gaps = _runs(lab, "gaps", compare.GAPS, GENERATED, data)
    report.section("Generated histories with periodic interests")
    report.text(
        "Whether a candidate is clicked depends on how current the user's interest in its category is, and on whether "
        "that category is due, which only real time gaps tell (docs/data.md)."
    )
    rows = []
    for name, runs in places.items():
        other = gaps.get(name)
        rows.append(
            (
                name,
                auc(runs),
                auc(other) if other else "",
                over_oracle(runs),
                over_oracle(other) if other else "",
                f"{mean(runs, 'seconds'):.0f}",
            )
        )
    header = ("model", "AUC, places", "AUC, time gaps", "NE / oracle's, places", "NE / oracle's, gaps", "seconds")
    report.table(header, rows, "Means over seeds, with the standard deviation where there are several.")
    report.plot(
        "periodic",
        plots.bars(
            {
                n: mean(r, "auc")
                for n, r in {
                    **{f"{n}": r for n, r in places.items()},
                    **{f"{n} + gaps": r for n, r in gaps.items()},
                }.items()
            },
            "test AUC, %",
        ),
        "Higher is better.",
    )
    claims = []
    for name in ("TSL", "DIN", "BST"):
        margin = mean(gaps[name], "auc") - mean(places[name], "auc")
        text = f"real time gaps beat places where time matters ({name}: AUC with gaps - with places)"
        claims.append(Claim(f"gaps-{name.lower()}", text, margin, ">= 2", "points"))
    margin = mean(places["TSL"], "auc") - mean(places[NO_HISTORY], "auc")
    claims.append(Claim("history", "TSL makes use of the history (AUC - that of no history)", margin, ">= 5", "points"))
    return claims


def _logged(lab: Lab, report: Report) -> list[Claim]:
    """Compare the encoders on a real log, with intervals over users."""
    assert lab.data is not None
    data = compare.parquet(lab.data)
    contenders = {**compare.PLACES, **{f"{name} + gaps": c for name, c in compare.GAPS.items()}}
    runs = _runs(lab, "log", contenders, LOGGED[lab.budget], data)
    report.section("A real log")
    report.text(
        f"Data: {lab.data.name}. Users are drawn with replacement for the intervals, which do not hold the "
        "spread between seeds; that is beside the mean."
    )
    if not runs[NO_HISTORY][0]["groups"]:
        report.table(
            ("model", "test AUC, %", "test NE"), [(n, auc(r), round(mean(r, "ne"), 4)) for n, r in runs.items()]
        )
        return []
    resampled = {name: compare.user_bootstrap(found) for name, found in runs.items()}
    rows = [
        (
            name,
            auc(found),
            interval(resampled[name] - resampled[NO_HISTORY]),
            interval(resampled[name] - resampled["mean"]),
            round(mean(found, "ne"), 4),
        )
        for name, found in runs.items()
    ]
    header = ("model", "test AUC, %", "against no history", "against mean pooling", "test NE")
    report.table(header, rows, "Differences of AUC in points, with 95% intervals over users.")
    best = max(mean(runs[name], "auc") for name in ("TSL", "TSL dot", "TBSM"))
    gain = best - mean(runs[NO_HISTORY], "auc")
    return [
        Claim("log-auc", "the best of TSL and TBSM on the log (user-disjoint)", best, ">= 83.0", "% AUC"),
        Claim(
            "log-gain",
            "the history is worth at least a point of AUC (the best of them - no history)",
            gain,
            ">= 1.0",
            "points",
        ),
    ]
