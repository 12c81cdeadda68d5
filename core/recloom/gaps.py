"""Features of the time between a step of a history and now, one module for every sequence encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recloom.errors import RecloomError

DAY = 86_400
WEEK = 7 * DAY


class GapFeatures(nn.Module):
    """Scaled logarithm of a gap, and sine and cosine of it at learnable periods.

    A frequency is f = f0 exp(s / (f0 longest)): positive whatever s is, and at the start, with s = 0, one unit of s
    adds one cycle over `longest` to every frequency. Learning f itself, or its logarithm, would move the phase of a
    short period at a long gap by hundreds of cycles a unit. The initial periods are geometric from `shortest` to
    `longest`; those nearest to the day and the week are exactly a day and a week, where the range has them.

    Args:
        num_frequencies: Number of periods.
        shortest: Shortest initial period, in seconds.
        longest: Longest initial period, in seconds, and the gap whose logarithm becomes 1.
    """

    initial: Tensor

    def __init__(self, num_frequencies: int = 16, shortest: float = 3600.0, longest: float = 30.0 * DAY) -> None:
        super().__init__()
        if num_frequencies < 1 or not 1.0 <= shortest < longest:
            raise RecloomError(
                f"gap features cannot have {num_frequencies} periods from {shortest:g} to {longest:g} seconds",
                "Give at least one period, and 1 <= shortest < longest.",
            )
        self.longest = longest
        # whole seconds, as integers: the periods stay exact when the module is cast to bf16
        self.register_buffer("initial", _periods(num_frequencies, shortest, longest), persistent=False)
        self.shift = nn.Parameter(torch.zeros(num_frequencies))
        self.output_dim = 1 + 2 * num_frequencies

    @property
    def periods(self) -> Tensor:
        """The periods in seconds, num_frequencies of them."""
        initial = self.initial.float()
        return initial * torch.exp(-self.shift.float() * initial / self.longest)

    def forward(self, gaps: Tensor | None) -> Tensor:
        """Return B x L x output_dim; a gap of 0 (a step now, or a padded place) gives 0, zeros and ones.

        Args:
            gaps: B x L seconds; what is negative (a clock that is ahead) counts as 0.

        Raises:
            RecloomError: There are none: the data have no times.
        """
        if gaps is None:
            raise RecloomError(
                "the encoder has time='gap', and the histories have no times",
                "Use data with timestamps of steps and rows, or another `time` for the encoder.",
            )
        gaps = gaps.float().clamp(min=0)
        scaled = torch.log1p(gaps) / math.log1p(self.longest)  # B x L
        cycles = gaps[..., None] / self.periods  # B x L x num_frequencies
        phase = 2 * math.pi * (cycles - cycles.detach().floor())  # sine of a huge number is slow and coarse
        features = torch.cat([scaled[..., None], torch.sin(phase), torch.cos(phase)], dim=-1)
        return features.to(self.shift.dtype)


def _periods(count: int, shortest: float, longest: float) -> Tensor:
    """Return `count` geometric periods in whole seconds, with the day and the week among them."""
    ratio = (longest / shortest) ** (1 / max(count - 1, 1))
    periods = [shortest * ratio**i for i in range(count)]
    free = set(range(count))
    for known in (DAY, WEEK):
        if shortest <= known <= longest and free:
            nearest = min(free, key=lambda i: abs(math.log(periods[i] / known)))
            periods[nearest] = known
            free.remove(nearest)
    return torch.tensor([round(period) for period in periods], dtype=torch.int64)
