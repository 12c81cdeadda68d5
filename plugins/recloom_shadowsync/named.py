"""The strategies that have names: `--trainer.strategy shadow_ma`."""

from __future__ import annotations

from recloom_shadowsync.algorithms import BMUF, EASGD, DiLoCo
from recloom_shadowsync.strategy import ShadowSyncStrategy


class ShadowMA(ShadowSyncStrategy):
    """ShadowMA: model averaging in the background."""


class ShadowBMUF(ShadowSyncStrategy):
    """ShadowBMUF: blockwise model-update filtering in the background."""

    default_algorithm = BMUF


class ShadowEASGD(ShadowSyncStrategy):
    """ShadowEASGD: elastic averaging with sync servers, in the background."""

    default_algorithm = EASGD


class FixedRateMA(ShadowSyncStrategy):
    """Model averaging every 5 steps while training waits: ShadowMA's counterpart."""

    default_every = 5


class FixedRateBMUF(ShadowSyncStrategy):
    """Blockwise model-update filtering every 5 steps while training waits: ShadowBMUF's counterpart."""

    default_algorithm = BMUF
    default_every = 5


class FixedRateEASGD(ShadowSyncStrategy):
    """Elastic averaging with sync servers every 5 steps while training waits: ShadowEASGD's counterpart."""

    default_algorithm = EASGD
    default_every = 5


class LocalSGD(ShadowSyncStrategy):
    """Local SGD: replicas are replaced by their mean every 8 steps."""

    default_every = 8


class DiLoCoStrategy(ShadowSyncStrategy):
    """DiLoCo: an outer optimizer steps along the mean progress of 100 local steps, and replicas begin anew from it."""

    default_algorithm = DiLoCo
    default_every = 100
