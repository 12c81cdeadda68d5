"""What an encoder costs by the length of the histories: time, arithmetic and memory of a training step."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from recloom.gaps import DAY
from recloom.plugins import catalog
from recloom.sequence import AuxiliaryLoss, SequenceEncoder, take_auxiliary_losses

LENGTHS = (10, 30, 100, 300, 1000)
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mean pooling": ("MeanPooling", {}),
    "TSL": ("TSL", {}),
    "DIN": ("DIN", {}),
    "DIEN": ("DIEN", {}),
    "GRU": ("GRU", {}),
    "BST": ("Transformer", {"style": "bst"}),
    "SASRec": ("Transformer", {"style": "sasrec"}),
}
"""What is compared: a label, the encoder's name in the catalog, its options."""


@dataclass(frozen=True)
class Cost:
    """The cost of one encoder at one length, forward and backward, a sample.

    Args:
        encoder: Its label.
        length: Steps of every history, L.
        microseconds: Median time.
        flops: Floating-point operations of its matrix products and attention.
        peak_bytes: The most memory that its tensors took at once, inputs and workspaces of kernels left out.
    """

    encoder: str
    length: int
    microseconds: float
    flops: float
    peak_bytes: float


def cost_table(
    encoders: Mapping[str, tuple[str, Mapping[str, Any]]] = ENCODERS,
    lengths: Sequence[int] = LENGTHS,
    batch_size: int = 64,
    width: int = 32,
    rounds: int = 5,
    seconds: float = 12.0,
) -> list[Cost]:
    """Measure a training step of each encoder at each length, on full histories.

    The encoders take turns, round after round, so that what else the machine does meets all of them.

    Args:
        encoders: Label: (name in the catalog, options).
        lengths: Lengths of the histories.
        batch_size: Samples of a step.
        width: Width of a step's vector, W.
        rounds: Rounds to take the median of, at most; there are at least 3.
        seconds: No round begins, after the third, when a length has taken that long.
    """
    rows = []
    for length in lengths:
        inputs = _inputs(batch_size, length, width)
        made = {label: _make(name, width, length, options) for label, (name, options) in encoders.items()}
        counted = {label: _count(encoder, inputs) for label, encoder in made.items()}  # and warms up
        times: dict[str, list[float]] = {label: [] for label in made}
        begin = time.perf_counter()
        for turn in range(max(rounds, 3)):
            if turn >= 3 and time.perf_counter() - begin > seconds:
                break
            for label, encoder in made.items():
                start = time.perf_counter()
                _step(encoder, inputs)
                times[label].append(time.perf_counter() - start)
        for label, (flops, peak) in counted.items():
            median = statistics.median(times[label]) * 1e6
            rows.append(Cost(label, length, median / batch_size, flops / batch_size, peak / batch_size))
    return rows


def growth(rows: Sequence[Cost], encoder: str) -> float:
    """Return the power of the length by which an encoder's time grows over its two greatest lengths: 1 is linear."""
    first, last = sorted((row for row in rows if row.encoder == encoder), key=lambda row: row.length)[-2:]
    ratio = torch.tensor([last.microseconds / first.microseconds, last.length / first.length]).log()
    return float(ratio[0] / ratio[1])


def _make(name: str, width: int, length: int, options: Mapping[str, Any]) -> SequenceEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder: SequenceEncoder = catalog().sequence_encoders.load(name)(width, length, **options)
    return encoder


def _inputs(rows: int, length: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return steps, query, mask and gaps of full histories."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(rows, length, width, generator=generator).requires_grad_()
    query = torch.randn(rows, width, generator=generator).requires_grad_()
    gaps = (torch.rand(rows, length, generator=generator) * 30 * DAY).sort(dim=1, descending=True).values
    return steps, query, torch.ones(rows, length, dtype=torch.bool), gaps


def _step(encoder: SequenceEncoder, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Run forward and backward, and forget the gradients."""
    loss = encoder(*inputs).float().square().sum()
    losses = take_auxiliary_losses([module for module in encoder.modules() if isinstance(module, AuxiliaryLoss)])
    sum(losses, loss).backward()
    encoder.zero_grad()
    for tensor in inputs[:2]:
        tensor.grad = None


def _count(encoder: SequenceEncoder, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[float, int]:
    """Return (floating-point operations, peak bytes) of a step."""
    aten = torch.ops.aten
    attention = {  # of CPUs, which torch does not count
        aten._scaled_dot_product_flash_attention_for_cpu: _forward_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as flops:
        _step(encoder, inputs)
    with LiveBytes() as memory:
        _step(encoder, inputs)
    return float(flops.get_total_flops()), memory.peak


def _forward_flops(query: torch.Size, key: torch.Size, *rest: Any, **more: Any) -> int:
    """Return 2 products of B x heads x L x L x d: scores, and what they weigh; of all places, causal or not."""
    return 4 * query.numel() * key[-2]


def _backward_flops(grad: torch.Size, query: torch.Size, key: torch.Size, *rest: Any, **more: Any) -> int:
    """Return 5 products: the scores again, and the gradients of queries, keys, values and scores."""
    return 10 * query.numel() * key[-2]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made inside of it, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and add the storages that are new in its outputs."""
        before = {leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if storage is not None and storage not in before and storage not in self._known:
                self._known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes()).atexit = False
        self.peak = max(self.peak, self.live)
        return out

    def _free(self, size: int) -> None:
        self.live -= size
