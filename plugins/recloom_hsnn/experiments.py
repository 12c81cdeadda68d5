"""`recloom reproduce hsnn`: how much of the exhaustive ranker a hierarchical index keeps, and at what cost."""

from __future__ import annotations

import statistics
from typing import Any

from recloom import plots
from recloom.document import Report
from recloom.experiment import Budget, Claim, Experiment, Lab
from recloom_hsnn import compare
from recloom_hsnn.compare import SHARES, Setting

SETTINGS: dict[Budget, Setting] = {
    "small": Setting(rows=1_000_000),
    "full": Setting(epochs=2, queries=300, large_queries=60),
}
SCOPE: dict[Budget, str] = {
    "small": "One epoch of a million impressions, 50,000 items, and 500,000 items never trained on. Signs and shares "
    "on generated data; nothing of the paper's production figures.",
    "full": "Two epochs of two million impressions, more queries. Give five seeds for the medians.",
}


class HSNNExperiment(Experiment):
    """The learned index beside k-means, the cascade and the exhaustive ranker."""

    paper = (
        "Hierarchical Structured Neural Network: Efficient Retrieval Scaling for Large Scale Recommendation, "
        "arXiv 2408.06653v3"
    )
    summary = (
        "A two tower model, a ranker (MoNN) and the ranker with jointly learned nodes (HSNN) are trained on one "
        "generated world. Recall is the share of the exhaustive ranker's 100 best items; shares scored count nodes and "
        "items; times are CPU milliseconds of one thread."
    )
    scope = SCOPE

    def run(self, lab: Lab, report: Report) -> list[Claim]:
        """Measure everything; return the claims."""
        compare.one_thread()
        runs = lab.each_seed("world", lambda seed: _measure(SETTINGS[lab.budget], seed))
        _tables(runs, report)
        return _claims(runs)


def _measure(setting: Setting, seed: int) -> dict[str, Any]:
    """Train three models on one world and search it."""
    data = compare.world(setting, seed)
    first, two_tower = compare.train("two tower", data, setting, seed)
    _, ranker = compare.train("ranker", data, setting, seed)
    model, joint = compare.train("hsnn", data, setting, seed)
    at = compare.searched(model, data, setting.queries)
    return {
        "ne": {"two tower": two_tower, "ranker": ranker, "joint": joint},
        "exhaustive_ms": at.milliseconds,
        "learned": compare.recalls(at),
        "kmeans": compare.recalls(at, setting.sizes),
        "scores": compare.recalls(at, setting.sizes, space="scores"),
        "fine": compare.recalls(at, (64, 2048), space="scores", beam=0.12),
        "cascade": compare.cascade(at, first),
        "fresh": compare.freshness(at),
        "large": compare.large(at, setting),
    }


def _median(runs: list[dict[str, Any]], *path: str) -> float:
    found = []
    for run in runs:
        value: Any = run
        for name in path:
            value = value[name]
        found.append(float(value))
    return statistics.median(found)


def _tables(runs: list[dict[str, Any]], report: Report) -> None:
    report.section("50,000 items")
    names = [f"{share:g}" for share in SHARES]
    rows: list[tuple[Any, ...]] = [
        ("HSNN, learned nodes", *(_median(runs, "learned", name, "recall") for name in names)),
        ("HSNN, k-means nodes (SIL)", *(_median(runs, "kmeans", name, "recall") for name in names)),
        ("HSNN, k-means on scores", *(_median(runs, "scores", name, "recall") for name in names)),
        ("HSNN, k-means on scores, 2,048 leaves", *(_median(runs, "fine", name, "recall") for name in names)),
        ("cascade: two tower, then the ranker", *(_median(runs, "cascade", name) for name in names)),
    ]
    report.table(("recall of the exhaustive ranker's 100 best, scoring", *names), rows, "Medians over seeds.")
    series = {row[0]: (list(SHARES), [float(value) for value in row[1:]]) for row in rows}
    report.plot(
        "recall", plots.lines({"recall": series}, "share scored", columns=1), "Recall against the share scored."
    )
    cost = [(name, _median(runs, "learned", name, "milliseconds")) for name in names]
    cost.append(("all", _median(runs, "exhaustive_ms")))
    report.table(("share scored", "CPU ms a query"), cost)
    report.table(("model", "test NE"), [(name, _median(runs, "ne", name)) for name in runs[0]["ne"]])
    report.section("500,000 items, none trained on")
    large = [name for name in runs[0]["large"] if name != "exhaustive_ms"]
    spent = _median(runs, "large", "exhaustive_ms")
    rows_ = []
    for name in large:
        recall, ms = (_median(runs, "large", name, key) for key in ("recall", "milliseconds"))
        rows_.append((name, recall, ms, spent / ms))
    report.table(("share scored", "recall", "CPU ms a query", "times fewer than exhaustive"), rows_)
    report.section("Items that come and go")
    report.facts({name: _median(runs, "fresh", name) for name in runs[0]["fresh"]}, ("", "median"))


def _claims(runs: list[dict[str, Any]]) -> list[Claim]:
    def learned(share: str) -> float:
        return _median(runs, "learned", share, "recall")

    def ahead(share: str) -> float:
        return 100 * (learned(share) - _median(runs, "cascade", share))

    def large(share: str, key: str = "recall") -> float:
        return _median(runs, "large", share, key)

    harm = statistics.median(100 * (run["ne"]["joint"] / run["ne"]["ranker"] - 1) for run in runs)
    gain = statistics.median(
        100 * (run["learned"]["0.035"]["recall"] - run["kmeans"]["0.035"]["recall"]) for run in runs
    )
    leaves = runs[0]["learned"]["stats"]["nodes"][-1]
    faster = _median(runs, "large", "exhaustive_ms") / large("0.018", "milliseconds")
    churn = 100 * (_median(runs, "fresh", "rebuilt") - _median(runs, "fresh", "churned"))
    cold = 100 * (_median(runs, "fresh", "trained") - _median(runs, "fresh", "cold"))
    return [
        Claim("recall-3.5", "50,000 items: recall scoring 3.5%", learned("0.035"), ">= 0.95"),
        Claim("recall-6", "50,000 items: recall scoring 6%", learned("0.06"), ">= 0.985"),
        Claim("large-1.8", "500,000 items never trained on: recall scoring 1.8%", large("0.018"), ">= 0.975"),
        Claim("large-3", "500,000 items never trained on: recall scoring 3%", large("0.03"), ">= 0.99"),
        Claim("large-cpu", "CPU time of exhaustive over that at 1.8% scored", faster, ">= 50"),
        Claim("cascade-2", "recall over the cascade's at 2%", ahead("0.02"), ">= 0", "points"),
        Claim("cascade-3.5", "recall over the cascade's at 3.5%", ahead("0.035"), ">= 3", "points"),
        Claim("cascade-5", "recall over the cascade's at 5%", ahead("0.05"), ">= 1", "points"),
        Claim("used", "share of leaves in use", _median(runs, "learned", "stats", "used"), ">= 0.99"),
        Claim("even", "perplexity over leaves", _median(runs, "learned", "stats", "perplexity") / leaves, ">= 0.85"),
        Claim("imbalance", "imbalance factor", _median(runs, "learned", "stats", "imbalance"), "<= 1.4"),
        Claim("harm", "item NE of joint training over the ranker's alone", harm, "<= 0.2", "%"),
        Claim("joint", "recall of learned nodes over k-means nodes at 3.5%", gain, ">= 2", "points"),
        Claim("upsert", "CPU time of an upsert, towers included", _median(runs, "fresh", "upsert_ms"), "<= 1", "ms"),
        Claim("deleted", "deleted items returned", _median(runs, "fresh", "returned_deleted"), "<= 0"),
        Claim("churn", "recall lost to a rebuild after 10% churn with new topics", churn, "<= 2", "points"),
        Claim("cold", "recall lost by items never trained on", cold, "<= 2", "points"),
    ]
