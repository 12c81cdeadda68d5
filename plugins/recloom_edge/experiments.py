"""`recloom reproduce edge`: steps and quality against the share of decoupled nodes, with and without matching."""

from __future__ import annotations

import functools
import importlib.util
import statistics
from typing import Any

import torch

from recloom.data.streams.module import EventStreams, PowerLawEvents, StreamDataModule
from recloom.data.streams.powerlaw import PowerLawStream
from recloom.data.streams.stream import EventStream
from recloom.document import Report
from recloom.experiment import Budget, Claim, Experiment, Lab
from recloom_edge import partition
from recloom_edge.compare import TIMED, TIMED_WINDOW, Contender, train

SHARES = (0.0, 0.01, 0.05, 0.1)
GENERATED: dict[Budget, dict[str, Any]] = {
    "small": {"events": 40_000, "sources": 4_000, "destinations": 1_000},
    "medium": {"events": 40_000, "sources": 4_000, "destinations": 1_000},
    "full": {"events": 1_000_000, "sources": 100_000, "destinations": 20_000, "eval_window": 500},
}
EPOCHS: dict[Budget, dict[str, int]] = {
    "small": {"real": 2, "generated": 3},
    "medium": {"real": 3, "generated": 10},
    "full": {"real": 20, "generated": 20},
}
TIMED_EPOCHS: dict[Budget, int] = {"medium": 3, "full": 20}
SEGMENTS = 10  # of free embeddings, EDGE's default
CHOSEN = ("activity", "greedy", "greedy-waiting")  # the last one shortens paths that wait, as EDGE does
METRICS = ("mrr", "recall", "ap", "auc", "historical_ap", "inductive_ap", "new_mrr", "new_ap")
SCOPE: dict[Budget, str] = {
    "small": "3 epochs of EDGE (2 with --data) and of JODIE, 1 of TGN, on 40,000 generated events. It shows "
    "what decoupling does to the number of steps, and to a model in its first minute; it settles nothing between "
    "models, none of which has learned all it can.",
    "medium": "Up to 10 epochs on 40,000 generated events; on the stream of --data, such as Wikipedia's, 3 of EDGE "
    "(validation no longer gains then), 12 of JODIE and of TGN with either loss (its authors train up to 50, at a "
    "third of this learning rate); 3 on a million generated events. Training ends early, after two to four epochs "
    "without a better validation MRR. The paper's own streams, models and settings were not at hand.",
    "full": "Up to 20 epochs on a million generated events and on the stream of --data, 50 of JODIE and TGN.",
}
_TARGETS = {0.01: 400.0}  # by share: of the power law's steps, plain over decoupled
Runs = dict[str, list[dict[str, float]]]


class EDGEExperiment(Experiment):
    """How much is gained in parallelism, and lost in quality, by decoupling a few nodes."""

    paper = "Chen et al. 2021, Efficient Dynamic Graph Representation Learning at Scale, arXiv 2112.07768"
    summary = (
        "Sequential steps of a power-law stream of a million events, and of a real one with --data, against the share "
        "of decoupled nodes. Test quality of EDGE without decoupled nodes (exact), with 1, 5 and 10% of them, and with "
        "10% without the matching loss; of JODIE and (with --data) TGN; and of two rules that only count. The "
        "epoch is chosen on validation."
    )
    scope = SCOPE

    def run(self, lab: Lab, report: Report) -> list[Claim]:
        """Measure everything; return the claims."""
        long = PowerLawStream(repeat=0, follow=0).build()
        claims = _steps(lab, report, "power law", long, _TARGETS)
        generated = PowerLawEvents(**GENERATED[lab.budget])
        if lab.data is None:
            report.section("A real stream")
            report.text("Not measured: no --data. `recloom prepare jodie --input CSV --output DIR` writes one.")
        else:
            real = EventStreams(lab.data)
            claims += _steps(lab, report, "real", real.stream, {0.01: 4.0, 0.05: 10.0})
            claims += _quality(lab, report, "real", real)
        claims += _quality(lab, report, "generated", generated)
        return claims + (_timed(lab, report) if lab.budget in TIMED_EPOCHS else [])


def _steps(lab: Lab, report: Report, name: str, stream: EventStream, targets: dict[float, float]) -> list[Claim]:
    """Count sequential steps by share, chosen by activity and greedily."""

    def count(share: float, chosen: str) -> list[float]:
        method, waits = ("greedy", SEGMENTS) if chosen == "greedy-waiting" else (chosen, 1)
        cut = torch.zeros(stream.num_nodes, dtype=torch.bool)
        if share:
            cut = partition.choose(stream, method, share, segments=waits)
        found = partition.partition(stream, cut)
        return [found.steps, found.parallelism, found.cut_share, partition.waiting_steps(stream, cut, SEGMENTS)]

    key = name.replace(" ", "-")
    found: dict[tuple[float, str], list[float]] = {}
    for share in SHARES:
        for method in CHOSEN if share else CHOSEN[:1]:
            if method != "activity" and len(stream) > 500_000 and share > 0.01:
                continue  # minutes, for a stream on which activity does as well
            measure = functools.partial(count, share, method)
            found[share, method] = lab.once(f"steps-{key}-{method}-{share}", measure)
    report.section(f"Sequential steps: {name} stream of {len(stream):,} events")
    rows = [
        (f"{share:.0%}", method, int(steps), int(waiting), round(parallel, 1), f"{cut:.1%}")
        for (share, method), (steps, parallel, cut, waiting) in found.items()
    ]
    header = ("decoupled", "chosen by", "steps", "with waiting", "events a step", "dependencies cut")
    waits = (
        f"With waiting: P are states at the start of {SEGMENTS} segments, and wait for their node's last event. "
        "Greedy takes the nodes that carry the longest paths; greedy-waiting those of paths with waiting, as EDGE does."
    )
    report.table(header, rows, waits)
    plain, claims = found[0.0, "activity"][0], []
    for share, target in targets.items():
        chosen = [counts for (s, _), counts in found.items() if s == share]
        text = f"{share:.0%} of the nodes decoupled divide the steps ({name} stream) by at least {target:.0f}"
        id_ = f"steps-{key}-{share:.0%}".rstrip("%")
        claims.append(Claim(id_, text, plain / min(counts[0] for counts in chosen), f">= {target:.0f}"))
        text += ", P that are states waited for"
        claims.append(Claim(f"{id_}-waiting", text, plain / min(counts[3] for counts in chosen), f">= {target:.0f}"))
    return claims


def _timed(lab: Lab, report: Report) -> list[Claim]:
    """Compare the quality of what `recloom bench edge` times on a million generated events with the exact model's."""
    data, runs = PowerLawEvents(), {}
    for title, share in (("exact", 0.0), ("1% decoupled", 0.01)):
        contender = Contender(
            options={**TIMED, "share": share},
            optimizer={"dense": "Adam", "dense_lr": 0.003, "sparse": "adagrad", "sparse_lr": 0.05},
            window=TIMED_WINDOW,
            most={"limit_val_batches": 5, "limit_test_batches": 25},
        )
        measure = functools.partial(train, contender, data, TIMED_EPOCHS[lab.budget])
        runs[title] = lab.each_seed(f"timed-{title}".replace(" ", "-").replace("%", ""), measure)
    report.section("Quality of what is timed: a million generated events")
    note = "RNN, 256 candidates, windows of 2,000, as in `recloom bench edge`; the first 25,000 test events."
    report.table(("model", *METRICS, "seconds"), _rows(runs), note)
    ratio = _mean(runs["1% decoupled"], "mrr") / _mean(runs["exact"], "mrr")
    text = "1% decoupled, as timed: MRR over the exact model's (a million generated events)"
    return [Claim("timed-mrr-1", text, ratio, ">= 0.98")]


def _contenders(data: StreamDataModule, real: bool, budget: Budget) -> dict[str, Contender]:
    """Return the models by title; TGN only on real streams, and where DGL is installed."""
    edge = {"dense": "Adam", "sparse": "adagrad"} | (
        {"dense_lr": 0.001, "sparse_lr": 0.02} if real else {"dense_lr": 0.003, "sparse_lr": 0.05}
    )

    def edge_with(**options: Any) -> Contender:
        return Contender(options=options, optimizer=edge)

    found = {"exact": edge_with(share=0.0)}
    found |= {f"{share:.0%} decoupled": edge_with(share=share) for share in SHARES[1:]}
    found["10% decoupled, no matching"] = edge_with(share=0.1, matching=0.0)
    if not real and budget != "small":
        found["50% decoupled"] = edge_with(share=0.5)
        found["50% decoupled, no matching"] = edge_with(share=0.5, matching=0.0)
        found["10% decoupled, learned"] = edge_with(share=0.1, free="learned")
        found["10% decoupled, learned, no matching"] = edge_with(share=0.1, free="learned", matching=0.0)
    long: dict[str, int] = {"small": 3, "medium": 12, "full": 50}
    if data.stream.bipartite:
        few = data.stream.num_destinations <= 2048
        options = {"dim": 64, "static_dim": 0 if few else 64, "schedule": "window"}
        adam = {"dense": "Adam", "dense_lr": 0.001, "sparse": "adagrad", "sparse_lr": 0.05}
        found["JODIE"] = Contender("JODIE", options, adam, window=500, epochs=long, patience=3)
    if real and importlib.util.find_spec("dgl"):
        slow, epochs = {"dense": "Adam", "dense_lr": 0.0003}, {**long, "small": 1}
        losses: dict[str, dict[str, Any]] = {"TGN, softmax": {"loss": "softmax", "candidates": 300}, "TGN": {}}
        for title, chosen in losses.items():
            found[title] = Contender("TGN", chosen, slow, window=200, epochs=epochs, patience=4)
    return found


def _quality(lab: Lab, report: Report, name: str, data: StreamDataModule) -> list[Claim]:
    """Train every contender with every seed; compare them on the test events."""
    runs: Runs = {}
    for title, contender in _contenders(data, name == "real", lab.budget).items():
        key = f"{name}-{title}".replace(" ", "-").replace(",", "").replace("%", "")
        epochs = contender.epochs.get(lab.budget, EPOCHS[lab.budget][name])
        measure = functools.partial(train, contender, data, epochs)
        runs[title] = lab.each_seed(key, measure)
    report.section(f"Quality: {name} stream")
    report.table(("model", *METRICS, "seconds"), _rows(runs), "Test events; means over seeds, ± their deviation.")
    exact = _mean(runs["exact"], "mrr")
    claims = [
        Claim(f"{name}-mrr-{share:.0%}".rstrip("%"), f"{share:.0%} decoupled: MRR over the exact model's ({name})",
              _mean(runs[f"{share:.0%} decoupled"], "mrr") / exact, ">= 0.98")
        for share in SHARES[1:]
    ]  # fmt: skip
    for title in [title for title in runs if f"{title}, no matching" in runs]:
        gain = _mean(runs[title], "mrr") - _mean(runs[f"{title}, no matching"], "mrr")
        key = title.replace("% decoupled", "").replace(", ", "-")
        text = f"{title}: the matching loss is worth something (MRR with it - without, {name})"
        claims.append(Claim(f"{name}-matching-{key}", text, gain, "> 0"))
    one = _mean(runs["5% decoupled"], "mrr") - _mean(runs["exact"], "recent_mrr")
    claims.append(Claim(f"{name}-recent", f"MRR over that of the most recent destination ({name})", one, "> 0"))
    for other in ("JODIE", "TGN", "TGN, softmax"):
        for metric in ("mrr", "ap") if other in runs else ():
            margin = _mean(runs["5% decoupled"], metric) - _mean(runs[other], metric)
            text = f"5% decoupled: {metric.upper()} minus {other}'s ({name})"
            claims.append(Claim(f"{name}-{other.lower().replace(', ', '-')}-{metric}", text, margin, ">= 0"))
    return claims


def _rows(runs: Runs) -> list[tuple[str, ...]]:
    rows = [
        (title, *(_shown(r, metric) for metric in METRICS), f"{_mean(r, 'seconds'):.0f}") for title, r in runs.items()
    ]
    for rule in ("recent", "popularity"):
        names = [f"new_{rule}_{m[4:]}" if m.startswith("new_") else f"{rule}_{m}" for m in METRICS]
        rows.append((f"most {rule}" if rule == "recent" else rule, *(_shown(runs["exact"], m) for m in names), ""))
    return rows


def _mean(runs: list[dict[str, float]], key: str) -> float:
    return statistics.fmean(run[key] for run in runs)


def _shown(runs: list[dict[str, float]], key: str) -> str:
    values = [run[key] for run in runs if key in run]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"
