"""A search space without data: a quality in closed form, dead parts, a field whose options depend on one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from recloom.features import FeatureSchema
from recloom.search.evaluator import SearchContext
from recloom.search.method import SearchMethod
from recloom.search.objective import Objective
from recloom.search.program import Program
from recloom.search.space import Choice, Genotype, SearchSpace

WIDTHS = (8, 16, 32, 64, 128)
KINDS = ("linear", "product", "gate", "sum")


class ToySpace(SearchSpace):
    """Blocks of a kind, a width and switches to what came before; a block that no later one reads is dead.

    Block 0 reads the input. The last block is always read. Every block reads at least one of the earlier ones.

    Args:
        blocks: Number of blocks.
    """

    def __init__(self, blocks: int = 5) -> None:
        self.blocks = blocks
        self._choices = [choice for block in range(blocks) for choice in self._block(block)]

    @property
    def choices(self) -> Sequence[Choice]:
        """For each block: kind, width, and a switch for each earlier block."""
        return self._choices

    def canonical(self, genotype: Genotype) -> Genotype:
        """Return the genotype with the choices of blocks that are not read at 0, a single switch apart."""
        found: list[int] = []
        live = self.live(genotype)
        for block in range(self.blocks):
            part = genotype[self._start(block) : self._start(block + 1)]
            dead = (0, 0, *(int(switch == 0) for switch in range(block)))
            found.extend(part if block in live else dead)
        return tuple(found)

    def program(self, genotype: Genotype, schema: FeatureSchema | None = None) -> Program:
        """Return a product for each live block."""
        program = Program()
        widths = {-1: 16}
        for block in sorted(self.live(genotype)):
            kind, width, *_ = genotype[self._start(block) :]
            widths[block] = WIDTHS[width] * (1 + (KINDS[kind] == "gate"))
            rows = sum(widths[source] for source in self.sources(genotype, block))
            program.add(f"block{block}", "matmul", rows, widths[block], group=f"block{block}")
        return program

    def model_config(self, genotype: Genotype) -> dict[str, Any]:
        """Return a name and the choices: no model is behind it."""
        return {"class_path": "Toy", "init_args": self.to_json(genotype)}

    def valid(self, genotype: Genotype) -> bool:
        """Return whether every block reads something."""
        return super().valid(genotype) and all(self.sources(genotype, block) for block in range(self.blocks))

    def sample_field(self, field: str, genotype: Genotype | None, rng: np.random.Generator) -> tuple[int, ...]:
        """Return random options; at least one of the switches of a block is on."""
        places = self.places[field]
        if not field.endswith("inputs"):
            return super().sample_field(field, genotype, rng)
        code = int(rng.integers(1, 2 ** len(places)))
        return tuple(code >> bit & 1 for bit in range(len(places)))

    def sources(self, genotype: Genotype, block: int) -> list[int]:
        """Return what a block reads; -1 is the input."""
        switches = genotype[self._start(block) + 2 : self._start(block + 1)]
        return [-1] if block == 0 else [source for source, on in enumerate(switches) if on]

    def live(self, genotype: Genotype) -> set[int]:
        """Return the blocks that the last one needs."""
        found, todo = {self.blocks - 1}, [self.blocks - 1]
        while todo:
            for source in self.sources(genotype, todo.pop()):
                if source >= 0 and source not in found:
                    found.add(source)
                    todo.append(source)
        return found

    def quality(self, genotype: Genotype) -> float:
        """Return a loss between 0 and about 1: deep is good, so are certain kinds in certain places and mid widths."""
        live = self.live(genotype)
        loss = 0.0
        for block in range(self.blocks):
            if block not in live:
                loss += 1.5
                continue
            kind, width, *_ = genotype[self._start(block) :]
            best = (block * 2 + 1) % len(KINDS)
            loss += 0.7 * (kind != best) + 0.2 * abs(width - (2 + block % 3)) + 0.3 * (kind == best - 1)
            loss += 0.1 * (len(self.sources(genotype, block)) - 1)
        return 1 - math.exp(-loss / (2 * self.blocks))

    def metrics(self, genotype: Genotype) -> dict[str, float]:
        """Return what an evaluator would measure."""
        return {"loss": self.quality(genotype)}

    def price(self, genotype: Genotype) -> dict[str, float]:
        """Return what a cost model would say."""
        return {"macs": float(self.program(genotype).macs)}

    def _start(self, block: int) -> int:
        return 2 * block + block * (block - 1) // 2

    def _block(self, block: int) -> list[Choice]:
        group = f"block{block}"
        switches = [
            Choice(f"{group}.input{source}", (False, True), field=f"{group}.inputs", group=group)
            for source in range(block)
        ]
        kind, width = Choice(f"{group}.kind", KINDS, group=group), Choice(f"{group}.width", WIDTHS, True, group=group)
        return [kind, width, *switches]


def set_up(method: SearchMethod, space: SearchSpace, objective: Objective, seed: int = 0) -> SearchMethod:
    """Return the method, set up for a search that has no data."""
    nothing = cast(Any, None)
    method.setup(SearchContext(space, nothing, nothing, objective, (), Path(), seed, lambda line: None))
    return method
