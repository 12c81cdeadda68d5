"""What traces a model at the moment: torch.export, or nothing that a component must know of."""

from __future__ import annotations

import torch


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_exporting() -> bool:
    """Whether the caller is traced by torch.export, and not only compiled by torch.compile.

    Components ask this and not `torch.compiler.is_exporting`, which torch.compile of torch 2.9 takes for true: a
    compiled model would train in the form that is meant for export, its tables with dense gradients.
    """
    return torch.compiler.is_exporting()
