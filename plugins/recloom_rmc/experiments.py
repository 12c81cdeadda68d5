"""`recloom reproduce rmc`: what binds RMC1-3, what batching and co-location give, and an endpoint under overload."""

from __future__ import annotations

from typing import Any

from recloom import plots
from recloom.document import Report
from recloom.experiment import Budget, Claim, Experiment, Lab
from recloom_rmc.presets import preset
from recloom_rmc.services import Setting, highest, side_by_side, write_config

OPERATORS = ("FC", "gather", "interaction", "concatenation")


SETTINGS = {
    "small": Setting(1 / 8, (1, 16, 64, 256), 5, 500, 0.5, 3, 2, 60.0, "cpu"),
    "full": Setting(1.0, (1, 4, 16, 64, 256, 1024), 9, 10_000, 10.0, 5, 8, 60.0, "wall"),
}
SCOPE: dict[Budget, str] = {
    "small": "Tables of an eighth of the rows, one thread, CPU time, two services side by side. It shows what binds "
    "and what batching gives. Two services on two cores are not the paper's eight on a socket, and there are no three "
    "generations of processors to compare here.",
    "full": "Whole tables (3.8 GiB a model and copy), up to eight services side by side, wall time: for a quiet "
    "machine of 8 cores and 40 GiB or more.",
}


class RMCExperiment(Experiment):
    """Operators, floors, locality, latency-bounded throughput, co-location and overload, on RMC1-3."""

    paper = (
        "Gupta et al. 2019, The Architectural Implications of Facebook's DNN-based Personalized Recommendation, "
        "arXiv 1906.03109"
    )
    summary = (
        "Random weights (they do not change speed), fresh uniform ids in each request. Shares are of the time that "
        "torch.profiler sees in FC, gather, interaction and concatenation. Highest rates hold a p99 of 25 ms with "
        "single-row requests that arrive in an open loop."
    )
    scope = SCOPE
    processors = 2

    def run(self, lab: Lab, report: Report) -> list[Claim]:
        """Measure; return the claims."""
        setting = SETTINGS[lab.budget]
        return [
            *_operators(lab, setting, report),
            *_serving(lab, setting, report),
            *_together(lab, setting, report),
            *_overload(lab, setting, report),
        ]


def _operators(lab: Lab, setting: Setting, report: Report) -> list[Claim]:
    from recloom_rmc.bench import machine, sweep

    clock = machine.CLOCKS[setting.clock]

    def measure(name: str) -> dict[str, Any]:
        return sweep.measure(preset(name).scaled(setting.rows), list(setting.batches), setting.rounds, clock)

    found = {name: lab.once(f"operators-{name}", lambda name=name: measure(name)) for name in ("rmc1", "rmc2", "rmc3")}  # type: ignore[misc]
    report.text(machine.counters()[1])
    sweep.tell(report, list(found.values()))
    large = [_share(row, "gather") for n in ("rmc1", "rmc2") for row in found[n]["sweep"] if row["batch"] >= 16]
    fc = [_share(row, "FC") for row in found["rmc3"]["sweep"]]
    replayed = {row["trace"]: row for row in found["rmc1"]["locality"]}
    claims = [
        Claim("gather", "embeddings dominate RMC1 and RMC2 from batch 16 up (least share)", min(large), ">= 0.5"),
        Claim("fc", "FC dominates RMC3 at every batch (least share)", min(fc), ">= 0.5"),
        Claim(
            "floor",
            "the gather of RMC1 and RMC2 takes at most twice the time of random rows (the worse)",
            max(found[name]["gather"]["x_floor"] for name in ("rmc1", "rmc2")),
            "<= 2",
        ),
        *(
            Claim(
                f"peak-{name}",
                f"FC of {name.upper()} at batch 256, of the machine's matrix peak",
                found[name]["fc_of_peak"],
                ">= 0.8",
            )
            for name in found
        ),
        Claim(
            "locality",
            "ids of a Zipf law are faster than uniform ones: RMC1's time a lookup, over",
            replayed["Zipf 1.05"]["warm_ns"] / replayed["uniform"]["warm_ns"],
            "< 0.9",
        ),
        Claim(
            "replay",
            "replaying one batch, as DeepRecSys does, flatters RMC1: its time a lookup over that of fresh ids",
            replayed["uniform"]["replayed_ns"] / replayed["uniform"]["warm_ns"],
            "< 0.9",
        ),
    ]
    ratios = [found[name]["gather"]["x_fbgemm"] for name in ("rmc1", "rmc2")]
    if None not in ratios:
        text = "the gather of RMC1 and RMC2 is at least as fast as FBGEMM's (the worse)"
        claims.append(Claim("fbgemm", text, min(ratios), ">= 1.0"))
    return claims


def _share(row: dict[str, Any], kind: str) -> float:
    """Return the share of an operator in the time of all named ones."""
    return row["shares"][kind] / sum(row["shares"][name] for name in OPERATORS)


def _serving(lab: Lab, setting: Setting, report: Report) -> list[Claim]:
    names = ("unbatched", "eager", "bf16")
    found = {
        model: {
            name: lab.once(f"rate-{model}-{name}", lambda m=model, n=name: highest(m, n, setting))  # type: ignore[misc]
            for name in names
        }
        for model in ("rmc1", "rmc2", "rmc3")
    }
    report.section("Highest rate of single-row requests at p99 25 ms")
    rows = [
        (
            model,
            name,
            round(r["rate"]),
            f"{r['low']:,.0f} .. {r['high']:,.0f}",
            round(r["rate"] / of["unbatched"]["rate"], 2),
        )
        for model, of in found.items()
        for name, r in of.items()
    ]
    report.table(("model", "engine", "requests/s", "95% interval", "x unbatched"), rows)
    report.plot(
        "rates",
        plots.bars(
            {f"{model} {name}": r["rate"] for model, of in found.items() for name, r in of.items()}, "requests/s"
        ),
        "Highest rates that hold a p99 of 25 ms",
    )
    batching = [of["eager"]["low"] / of["unbatched"]["high"] for of in found.values()]
    tuned = [max(r["rate"] for r in of.values()) / of["unbatched"]["rate"] for of in found.values()]
    text = "batching raises the rate that holds p99 25 ms: low end of its interval over high end without (least)"
    return [
        Claim("batching", text, min(batching), "> 1"),
        Claim("tuned", "the best engine, batched, over eager with a request at a time (least)", min(tuned), ">= 2"),
    ]


def _together(lab: Lab, setting: Setting, report: Report) -> list[Claim]:
    path = write_config(preset("rmc1").scaled(1 / 20), lab.out / "rmc1.yaml")
    counts = sorted({1, 2, setting.replicas})
    found = {n: lab.once(f"together-{n}", lambda n=n: side_by_side(path, n, setting)) for n in counts}  # type: ignore[misc]
    report.section("Services side by side")
    rows = [
        (n, round(r["rate"]), f"{r['interval'][0]:,.0f} .. {r['interval'][1]:,.0f}", round(n * r["rate"]))
        for n, r in found.items()
    ]
    text = (
        "RMC1, single-row requests, each service in a process of its own, wall time: the rate at which all hold 25 ms."
    )
    report.table(("services", "requests/s each", "95% interval", "together"), rows, text)
    gain = setting.replicas * found[setting.replicas]["rate"] / max(found[1]["rate"], 1e-9)
    return [Claim("colocation", f"{setting.replicas} services together over one alone, at p99 25 ms", gain, "> 1")]


def _overload(lab: Lab, setting: Setting, report: Report) -> list[Claim]:
    try:
        import aiohttp  # noqa: F401
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        report.text(f"The endpoint was not measured: {error.name} is not installed (`recloom[serve]`).")
        return []
    from recloom_rmc.endpoint import overload

    path = write_config(preset("rmc1").scaled(1 / 20), lab.out / "rmc1.yaml")
    found = lab.once("overload", lambda: overload(path, setting.overload, lab.out))
    report.section("The endpoint under twice the rate it sustains")
    report.facts(found)
    grown = found["memory at the end over memory after a fifth of the run"]
    return [
        Claim("answered", "requests that were answered, with 200 or 429", 1 - found["without an answer"], ">= 1"),
        Claim("memory", "memory at the end over memory after a fifth of the minute", grown, "<= 1.05"),
    ]
