"""ShadowSync (Zheng et al. 2020, arXiv 2003.03477): synchronisation in the background, for any model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom import hookimpl

if TYPE_CHECKING:
    from recloom.catalog import Catalog


@hookimpl
def register(catalog: Catalog) -> None:
    """Register the strategies and the algorithms."""
    for name, summary in (
        ("MA", "replicas move towards their mean"),
        ("BMUF", "a global model takes steps towards the mean"),
        ("EASGD", "replicas and a server's centre pull at one another"),
        ("DiLoCo", "an outer optimizer on the replicas' progress"),
    ):
        catalog.sync_algorithms.add(name, f"recloom_shadowsync.algorithms:{name}", summary=summary)
    for name, path, summary in (
        ("shadow_ma", "ShadowMA", "model averaging in the background"),
        ("shadow_bmuf", "ShadowBMUF", "BMUF in the background"),
        ("shadow_easgd", "ShadowEASGD", "elastic averaging with sync servers, in the background"),
        ("fr_ma", "FixedRateMA", "model averaging every k steps"),
        ("fr_bmuf", "FixedRateBMUF", "BMUF every k steps"),
        ("fr_easgd", "FixedRateEASGD", "elastic averaging with sync servers every k steps"),
        ("local_sgd", "LocalSGD", "replicas replaced by their mean every k steps"),
        ("diloco", "DiLoCoStrategy", "an outer optimizer on the progress of k local steps"),
    ):
        for alias in (name, path):
            catalog.strategies.add(alias, f"recloom_shadowsync.named:{path}", summary=summary)
    catalog.experiments.add(
        "shadowsync", "recloom_shadowsync.experiments:ShadowSyncExperiment", summary="shadow beside fixed rate and DDP"
    )
    catalog.benchmarks.add("shadowsync", "recloom_shadowsync.bench.speed:main", summary="step times on shaped links")
    catalog.benchmarks.add("shadowsync-soak", "recloom_shadowsync.soak:main", summary="random ends, kills and hangs")
    catalog.commands.add("sync-server", "recloom_shadowsync.server:main", summary="hold the centre of EASGD replicas")
