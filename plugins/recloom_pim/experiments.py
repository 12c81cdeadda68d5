"""`recloom reproduce pim`: models searched with their crossbars beside models found by accuracy, mapped naively."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from recloom import plots
from recloom.document import Report
from recloom.experiment import Budget, Claim, Experiment, Lab
from recloom_pim import constants

SCOPE: dict[Budget, str] = {
    "small": "100,000 generated clicks a seed, passed three times, models as in medium, supernets of 600 steps, 48 "
    "candidates a search, of which 3, and 4 of the co-search's on two kinds of crossbars, are trained from scratch: it "
    "shows that both searches run and how their designs' costs compare. NE of models trained on so few clicks differs "
    "by more than the 0.1% in question, so that equal NE is luck here.",
    "medium": "200,000 generated clicks a seed, passed three times, models of up to 3 blocks, supernets of 1,000 "
    "steps, 96 candidates a search, of which 5, and 10 of the co-search's smaller ones on two kinds of crossbars, "
    "are trained from scratch: it shows what searching the crossbars too is worth on such data, and how much of it "
    "the crossbars, the bits and the model are. It cannot show what real click logs gain, where larger models are "
    "worth more, nor what the paper's own cost model, which is not public, would say.",
    "full": "4 million generated clicks a seed, NASRec's small space of 7 blocks at its published widths, 1,000 "
    "candidates: most of a day on two cores.",
}
Runs = list[dict[str, Any]]


class PIMExperiment(Experiment):
    """Co-search beside search by accuracy and naive mapping, at the same NE."""

    paper = "Zhang et al. 2024, Towards Automated Model Design on Recommender Systems, arXiv 2411.07569"
    summary = (
        "Two searches on the same rows. One by NE alone in NASRec's small space: its best models are trained from "
        "scratch for the naive mapping (ISAAC's crossbars, 8 bits); the best by validation NE is the reference; "
        "crossbars are then chosen for it alone, too. The other over models, crossbars and bits together: NSGA-II by "
        "NE, energy, latency and area, from variants of the reference, within its area and the paper's shares of its "
        "other costs (a half of its MACs, ...). Some of its candidates are trained from scratch, on their crossbars "
        "and on the most precise ones within these limits, in about the same time; to those that are as good as the "
        "reference by validation NE, crossbars are fitted as to the reference; the design is what saves most, or "
        "what has the least NE if none is as good. All are measured on crossbars with 2% variation and some stuck "
        "cells, over three chips."
    )
    scope = SCOPE

    def run(self, lab: Lab, report: Report) -> list[Claim]:
        """Measure both searches with every seed; return the claims."""
        claims = _self_check(report)
        from recloom_pim import codesign

        setting = SETTINGS[lab.budget]()
        alone: Runs = []
        both: Runs = []
        anew: Runs = []
        folder = lab.out / "searches"
        for seed in lab.seeds:
            first = lab.once(
                f"accuracy-seed{seed}",
                lambda s=seed: codesign.by_accuracy(setting, s, folder / f"accuracy-{s}"),  # type: ignore[misc]
            )
            alone.append(first)
            both.append(
                lab.once(
                    f"together-seed{seed}",
                    lambda s=seed, r=first: codesign.together(setting, s, folder / f"together-{s}", r),  # type: ignore[misc]
                )
            )
            anew.append(
                lab.once(
                    f"anew-seed{seed}",
                    lambda s=seed, r=first, d=both[-1]: codesign.anew(setting, s, folder / f"anew-{s}", r, d),  # type: ignore[misc]
                )
            )
        _tell(report, alone, both, lab)
        return [*claims, *_claims(alone, both), _anew(report, anew, lab)]


def _small() -> Any:
    rows = (100_000, 50_000, 100_000)
    return replace(_medium(), rows=rows, steps=600, trials=48, retrain=3, retrain_together=12, repeats=2)


def _medium() -> Any:
    from recloom_pim.setting import Setting

    return Setting(3, (16, 32, 64, 128, 256), (8, 16, 32), (200_000, 100_000, 150_000), 1000, 96)


def _full() -> Any:
    from recloom_pim.setting import Setting

    widths = (16, 32, 64, 128, 256, 512, 768, 1024)
    return Setting(7, widths, (16, 32, 48, 64), (4_000_000, 200_000, 400_000), 8000, 1000, 500, epochs=1)


SETTINGS = {"small": _small, "medium": _medium, "full": _full}


def _self_check(report: Report) -> list[Claim]:
    """Return how the cost model's ISAAC compares with what was published of it."""
    from recloom_pim.isaac import peak

    k = constants.load()
    found = peak(k)
    published = {
        "throughput": (k.published_throughput, "TOPS"),
        "density": (k.published_density, "GOPS/mm2"),
        "efficiency": (k.published_efficiency, "GOPS/W"),
    }
    report.section("Self-check")
    rows = [(name, f"{found[name]:.1f}", value, unit) for name, (value, unit) in published.items()]
    report.table(("peak at 16 bits", "model", "published", "unit"), rows, "The chip of ISAAC (ISCA 2016).")
    return [
        Claim(
            f"isaac-{name}",
            f"the cost model gives ISAAC's published peak {name}",
            found[name],
            f"{0.9 * value:g} .. {1.1 * value:g}",
            unit,
            paper=value,
        )
        for name, (value, unit) in published.items()
    ]


def _ratios(alone: Runs, both: Runs, name: str, prefix: str = "") -> list[float]:
    return [a["costs"][name] / b["costs"][prefix + name] for a, b in zip(alone, both, strict=True)]


def _claims(alone: Runs, both: Runs) -> list[Claim]:
    def mean(name: str) -> float:
        return statistics.geometric_mean(_ratios(alone, both, name))

    def chosen(name: str) -> float:
        return statistics.geometric_mean(a["costs"][name] / a["same model"]["costs"][name] for a in alone)

    ne = statistics.fmean(b["test_ne"] / a["test_ne"] for a, b in zip(alone, both, strict=True))
    area = max(b["costs"]["area_mm2"] / a["costs"]["area_mm2"] for a, b in zip(alone, both, strict=True))
    return [
        Claim("equal-ne", "the co-searched design is as good (ratio of test NE)", ne, "<= 1.001"),
        Claim("flops", "it needs fewer multiply-accumulates (ratio)", mean("macs"), ">= 2", "x", paper=2.0),
        Claim("energy", "it needs less energy (ratio)", mean("energy_nj"), ">= 1.8", "x", paper=1.8),
        Claim("speed", "it is faster (ratio of latencies)", mean("latency_ns"), ">= 1.5", "x", paper=1.5),
        Claim(
            "equal-ne-hardware",
            "the model found by accuracy is as good on crossbars chosen for it (ratio of test NE)",
            statistics.fmean(a["same model"]["test"] / a["test_ne"] for a in alone),
            "<= 1.001",
        ),
        Claim("energy-hardware", "it needs less energy there (ratio)", chosen("energy_nj"), ">= 1.8", "x", paper=1.8),
        Claim(
            "speed-hardware", "it is faster there (ratio of latencies)", chosen("latency_ns"), ">= 1.5", "x", paper=1.5
        ),
        Claim("area", "it keeps the area budget (largest ratio over seeds)", area, "<= 1"),
    ]


def _anew(report: Report, anew: Runs, lab: Lab) -> Claim:
    """Tell the NE of further trainings; return the claim."""
    report.section("Trained anew")
    means = [{name: statistics.fmean(values) for name, values in run.items()} for run in anew]
    ratios = [mean["design"] / mean["reference"] for mean in means]
    rows = [
        (seed, *(", ".join(f"{ne:.5f}" for ne in run[name]) for name in ("reference", "design")), f"{ratio:.4f}")
        for seed, run, ratio in zip(lab.seeds, anew, ratios, strict=True)
    ]
    told = "Test NE of further trainings, which chose nothing; the reference in its better way. Ratio of the means."
    report.table(("seed", "by accuracy", "co-searched", "ratio"), rows, told)
    return Claim("equal-ne-anew", "so it is when both are trained anew", statistics.fmean(ratios), "<= 1.001")


def _tell(report: Report, alone: Runs, both: Runs, lab: Lab) -> None:
    report.section("Designs")
    rows: list[tuple[Any, ...]] = []
    for seed, a, b in zip(lab.seeds, alone, both, strict=True):
        for name, ne in a["ne"].items():
            rows.append((seed, f"by accuracy, {name}", *_row(a, ne["val"], ne["test"])))
        same = a["same model"]
        rows.append(
            (
                seed,
                "by accuracy, own crossbars",
                *_row({"costs": a["costs"] | same["costs"]}, same["val"], same["test"]),
            )
        )
        for name, ne in b["ne"].items():
            rows.append((seed, f"with its crossbars, {name}", *_row(b, ne["val"], ne["test"])))
    header = ("seed", "design", "val NE", "test NE", "MACs", "energy, nJ", "latency, ns", "area, mm2")
    best = ", ".join(f"{a['ne']['exact']['oracle']:.5f}" for a in alone)
    report.table(header, rows, f"Exact: in full precision, without noise. The best possible test NE by seed: {best}.")
    names = {"macs": "MACs", "energy_nj": "energy", "latency_ns": "latency", "area_mm2": "area"}
    parts: list[tuple[Any, ...]] = []
    for name, title in names.items():
        prefix = "" if name == "macs" else "naive_"
        whole, model = (statistics.geometric_mean(_ratios(alone, both, name, p)) for p in ("", prefix))
        each = ", ".join(f"{r:.2f}" for r in _ratios(alone, both, name))
        parts.append((title, f"{whole:.2f}", each, f"{model:.2f}", f"{whole / model:.2f}"))
    ratios = ("by accuracy / co-searched", "mean", "each seed", "by the model alone", "by crossbars and bits alone")
    report.table(ratios, parts, "By the model alone: both models mapped naively.")
    report.section("Trained from scratch")
    rows = []
    for seed, a, b in zip(lab.seeds, alone, both, strict=True):
        rows += [(seed, "by accuracy", *_trained(t)) for t in a["tried"]]
        rows += [(seed, "with its crossbars", *_trained(t)) for t in b["tried"]]
    frugal = ", ".join(f"{a['frugal_macs']:,.0f} of {a['costs']['macs']:,.0f}" for a in alone)
    report.table(
        ("seed", "search", "val NE", "MACs", "energy, nJ", "latency, ns", "area, mm2"),
        rows,
        "For their crossbars; by accuracy: the naive mapping. A search by accuracy alone has no reason to find a small "
        "model. The least MACs of its candidates within 0.1% of its best NE (by the supernet), and the reference's: "
        f"{frugal}.",
    )
    report.section("Energy by component")
    shares = [("by accuracy, naive", alone, "energy"), ("co-searched, naive", both, "naive_energy")]
    shares.append(("co-searched", both, "energy"))
    components = list(alone[0]["energy"])
    rows = [
        (name, *(f"{statistics.fmean(r[key][c] for r in runs):.2f}" for c in components)) for name, runs, key in shares
    ]
    report.table(("design", *components), rows, "nJ a sample, means over seeds.")
    report.section("Candidates")
    series = {
        f"seed {s}": ([p[2] for p in b["trials"]], [p[0] for p in b["trials"]])
        for s, b in zip(lab.seeds, both, strict=True)
    }
    report.plot("candidates", plots.scatter({"": series}, ["energy, nJ"], "NE, by the supernet"), "Of the co-searches.")
    for seed, b in zip(lab.seeds, both, strict=True):
        report.facts(
            {f"seed {seed}: {name}": option for name, option in b["architecture"].items()}, ("choice", "option")
        )


def _row(run: dict[str, Any], val: float, test: float) -> tuple[Any, ...]:
    return (f"{val:.5f}", f"{test:.5f}", *_told(run["costs"]))


def _trained(tried: dict[str, Any]) -> tuple[Any, ...]:
    return (f"{tried['val_ne']:.5f}", *_told(tried))


def _told(costs: dict[str, Any]) -> tuple[Any, ...]:
    energy, area = f"{costs['energy_nj']:.1f}", f"{costs['area_mm2']:.3f}"
    return (round(costs["macs"]), energy, round(costs["latency_ns"]), area)
