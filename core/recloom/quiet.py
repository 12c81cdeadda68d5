"""Lightning's lines that tell a recloom user nothing: accelerator counts, tips, advertisements."""

from __future__ import annotations

import logging
import warnings

_NOISE = (
    "available: ",
    "Tip: ",
    "litlogger",
    "LitLogger",
    "`Trainer.fit` stopped",
    "Restor",
    "Loaded model weights",
    "`weights_only` was not set",
)


class _Noise(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(part in message for part in _NOISE)


def hush() -> None:
    """Filter the known lines; every other message and warning stays."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Noise) for f in logger.filters):
            logger.addFilter(_Noise())
        for handler in logger.handlers:
            handler.addFilter(_Noise())
    for message in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        "Checkpoint directory .* exists and is not empty.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*but have no `val_dataloader`.*",
        ".*Found .* module.* in eval mode.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
    ):
        warnings.filterwarnings("ignore", message=message)
