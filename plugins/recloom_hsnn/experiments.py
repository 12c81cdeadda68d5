"""`recloom reproduce hsnn`: how much of the exhaustive ranker a hierarchical index keeps, and at what cost."""

from __future__ import annotations

import statistics
from typing import Any

from recloom import plots
from recloom.document import Report
from recloom.experiment import Budget, Claim, Experiment, Lab
from recloom_hsnn import compare, trials
from recloom_hsnn.compare import Setting
from recloom_hsnn.scorer import MoNNConfig
from recloom_hsnn.trials import SHARES

SETTINGS: dict[Budget, Setting] = {
    "small": Setting(rows=1_000_000, queries=100, large_queries=20),
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
    processors = 2  # it takes one, and measures CPU time, which a neighbour's use of caches would change

    def run(self, lab: Lab, report: Report) -> list[Claim]:
        """Measure everything; return the claims."""
        compare.one_thread()
        runs = lab.each_seed("world", lambda seed: _measure(SETTINGS[lab.budget], seed))
        _tables(runs, report)
        return _claims(runs)


def _measure(setting: Setting, seed: int) -> dict[str, Any]:
    """Train the models of one world and search it."""
    data = compare.world(setting, seed)
    first, two_tower = compare.train("two tower", data, setting, seed)
    _, ranker = compare.train("ranker", data, setting, seed)
    model, joint = compare.train("hsnn", data, setting, seed)
    larger, large = compare.train("hsnn", data, setting, seed, MoNNConfig(size=setting.ranker))
    nes = {"two tower": two_tower, "ranker": ranker, "joint": joint, "large": large}
    at = compare.searched(model, data, setting.queries)
    return {
        "ne": nes,
        "exhaustive_ms": at.milliseconds,
        "learned": trials.recalls(at),
        "learned_plain": trials.recalls(at, rated=0.0),
        "kmeans": trials.recalls(at, setting.sizes),
        "kmeans_plain": trials.recalls(at, setting.sizes, rated=0.0),
        "flat_plain": trials.recalls(at, setting.sizes[-1:], rated=0.0),
        "cascade": trials.cascade(at, first),
        "fresh": trials.freshness(at),
        "large": trials.large(at, setting),
        "models": trials.models(at, first, compare.searched(larger, data, setting.queries), nes),
        "misaligned": trials.misaligned(setting, seed),
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
    kinds = {
        "learned": "HSNN, learned nodes, items rated first",
        "kmeans": "HSNN, k-means nodes (SIL), items rated first",
        "learned_plain": "HSNN, learned nodes, whole leaves",
        "kmeans_plain": "HSNN, k-means nodes, whole leaves",
        "flat_plain": "HSNN, k-means, one level, whole leaves",
    }
    rows: list[tuple[Any, ...]] = [
        (text, *(_median(runs, kind, name, "recall") for name in names)) for kind, text in kinds.items()
    ]
    rows.append(("cascade: two tower, then the ranker", *(_median(runs, "cascade", name) for name in names)))
    report.table(("recall of the exhaustive ranker's 100 best, scoring", *names), rows, "Medians over seeds.")
    series = {row[0]: (list(SHARES), [float(value) for value in row[1:]]) for row in rows}
    report.plot(
        "recall", plots.lines({"recall": series}, "share scored", columns=1), "Recall against the share scored."
    )
    cost = [(name, _median(runs, "learned", name, "milliseconds")) for name in names]
    cost.append(("all", _median(runs, "exhaustive_ms")))
    report.table(("share scored", "CPU ms a query"), cost)
    report.table(("model", "test NE"), [(name, _median(runs, "ne", name)) for name in runs[0]["ne"]])
    report.section("Models and their costs")
    facts = ("ne", "macs", "milliseconds", "recall")
    table = [
        (row["model"], *(_median([run["models"][place] for run in runs], fact) for fact in facts))
        for place, row in enumerate(runs[0]["models"])
    ]
    header = ("model", "test NE", "multiply-adds a query", "CPU ms a query", "recall of the true best 100")
    report.table(
        header, table, "The paper's table 1 in shape: what a larger ranker gains, and what the index keeps of it."
    )
    report.section("500,000 items, none trained on")
    large = [name for name in runs[0]["large"] if name != "exhaustive_ms"]
    spent = _median(runs, "large", "exhaustive_ms")
    rows_ = []
    for name in large:
        recall, ms = (_median(runs, "large", name, key) for key in ("recall", "milliseconds"))
        rows_.append((name, recall, ms, spent / ms))
    report.table(("share scored", "recall", "CPU ms a query", "times fewer than exhaustive"), rows_)
    report.section("Features that mislead")
    report.facts({name: _median(runs, "misaligned", name) for name in runs[0]["misaligned"]}, ("", "median"))
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
    gain = statistics.median(100 * (run["misaligned"]["learned"] - run["misaligned"]["kmeans"]) for run in runs)
    plain = statistics.median(
        100 * (run["misaligned"]["learned_plain"] - run["misaligned"]["kmeans_plain"]) for run in runs
    )
    nodes = statistics.median(
        100 * (run["misaligned"]["kmeans_node_ne"] / run["misaligned"]["learned_node_ne"] - 1) for run in runs
    )
    kept = statistics.median(_kept(run) for run in runs)
    cost = statistics.median(run["models"][5]["milliseconds"] / run["models"][4]["milliseconds"] for run in runs)
    leaves = runs[0]["learned"]["stats"]["nodes"][-1]
    faster = statistics.median(_faster(run["large"]) for run in runs)
    churn = 100 * (_median(runs, "fresh", "rebuilt") - _median(runs, "fresh", "churned"))
    cold = 100 * (_median(runs, "fresh", "trained") - _median(runs, "fresh", "cold"))
    return [
        Claim("recall-3.5", "50,000 items: recall scoring 3.5%", learned("0.035"), ">= 0.95"),
        Claim("recall-6", "50,000 items: recall scoring 6%", learned("0.06"), ">= 0.985"),
        Claim("large-1.8", "500,000 items never trained on: recall scoring 1.8%", large("0.018"), ">= 0.975"),
        Claim("large-3", "500,000 items never trained on: recall scoring 3%", large("0.03"), ">= 0.99"),
        Claim("large-cpu", "there: CPU time of exhaustive over that at a recall of .975", faster, ">= 50"),
        Claim("cascade-2", "recall over the cascade's at 2%", ahead("0.02"), ">= 0", "points"),
        Claim("cascade-3.5", "recall over the cascade's at 3.5%", ahead("0.035"), ">= 3", "points"),
        Claim("cascade-5", "recall over the cascade's at 5%", ahead("0.05"), ">= 1", "points"),
        Claim("used", "share of leaves in use", _median(runs, "learned", "stats", "used"), ">= 0.99"),
        Claim("even", "perplexity over leaves", _median(runs, "learned", "stats", "perplexity") / leaves, ">= 0.85"),
        Claim("imbalance", "imbalance factor", _median(runs, "learned", "stats", "imbalance"), "<= 1.4"),
        Claim("harm", "item NE of joint training over the ranker's alone", harm, "<= 0.2", "%"),
        Claim("joint-ne", "misaligned features: node NE of k-means over that of learned nodes", nodes, ">= 0.3", "%"),
        Claim("joint", "misaligned features: recall of learned over k-means nodes at 4%", gain, ">= 2", "points"),
        Claim("joint-plain", "the same, whole leaves scored as in the paper", plain, ">= 2", "points"),
        Claim(
            "kept",
            "gain of recall of the truth of a larger ranker over two towers that 2% scored keep",
            kept,
            ">= 0.83",
            paper=0.83,
        ),
        Claim(
            "kept-cost", "CPU time for that, of scoring all items with the larger ranker", cost, "<= 0.07", paper=0.07
        ),
        Claim("upsert", "CPU time of an upsert, towers included", _median(runs, "fresh", "upsert_ms"), "<= 1", "ms"),
        Claim("deleted", "deleted items returned", _median(runs, "fresh", "returned_deleted"), "<= 0"),
        Claim("churn", "recall lost to a rebuild after 10% churn with new topics", churn, "<= 2", "points"),
        Claim("cold", "recall lost by items never trained on", cold, "<= 2", "points"),
    ]


def _faster(large: dict[str, Any]) -> float:
    """Return how much less CPU time the cheapest search takes that finds .975 of the best; 0 if none does."""
    times = [one["milliseconds"] for name, one in large.items() if name != "exhaustive_ms" and one["recall"] >= 0.975]
    return float(large["exhaustive_ms"]) / min(times) if times else 0.0


def _kept(run: dict[str, Any]) -> float:
    """Return the share of the larger ranker's gain of recall over two towers that its HSNN has too."""
    two_tower, ranker, kept = (run["models"][place]["recall"] for place in (0, 4, 5))
    return float((kept - two_tower) / (ranker - two_tower))
