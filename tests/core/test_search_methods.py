"""Methods: better than random at equal trials, and what each of them promises."""

from __future__ import annotations

import numpy as np
import pytest

from recloom.plugins import catalog
from recloom.search.method import History, Observation, SearchMethod
from recloom.search.methods.evolution import NSGA2, RegularizedEvolution
from recloom.search.methods.optuna import GP, TPE
from recloom.search.methods.random import LocalSearch, RandomSearch
from recloom.search.objective import Objective
from recloom.search.pareto import hypervolume
from recloom.testing.searching import ToySpace, set_up

SPACE = ToySpace(6)
LOSS, BOTH = Objective(("loss",)), Objective(("loss", "macs"))


def search(method: SearchMethod, trials: int, seed: int, objective: Objective = LOSS, ahead: int = 0, space=SPACE):
    """Ask and tell in memory, as a study with one worker does; the last `ahead` candidates are still running."""
    set_up(method, space, objective, seed)
    done: list[Observation] = []
    tried: dict[tuple[int, ...], int] = {}
    for number in range(trials):
        cut = max(number - ahead, 0)
        history = History(done[:cut], [o.genotype for o in done[cut:]], number)
        for attempt in range(1 + min(method.redraws, 20)):
            genotype = space.repair(method.ask(history, np.random.default_rng([seed, number, attempt])))
            if space.canonical(genotype) not in tried:
                break
        tried.setdefault(space.canonical(genotype), number)
        metrics = {**space.metrics(genotype), **space.price(genotype)}
        done.append(Observation(number, genotype, objective.values(metrics), (), metrics))
    return done


def best(observations) -> float:
    return min(o.values[0] for o in observations)


def volume(observations) -> float:
    values = np.array([o.values for o in observations]) * [1.0, 1e-5]
    return hypervolume(values, [1.0, 2.0])


@pytest.mark.parametrize(
    ("method", "trials", "seeds"),
    [
        (RegularizedEvolution(24, 8, 4), 160, 5),
        (NSGA2(24), 160, 5),
        (LocalSearch(24), 160, 3),
        (TPE(16), 80, 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, SearchMethod) else str(value),
)
def test_beats_random_search_at_equal_trials(method, trials, seeds):
    found = [best(search(method, trials, seed)) for seed in range(seeds)]
    random = [best(search(RandomSearch(), trials, seed)) for seed in range(seeds)]
    assert np.median(found) < np.median(random) - 0.02


@pytest.mark.parametrize(
    ("method", "trials"),
    [(NSGA2(24), 160), (RegularizedEvolution(24, 8, 4), 160), (TPE(16), 60)],
    ids=lambda value: type(value).__name__ if isinstance(value, SearchMethod) else str(value),
)
def test_covers_more_of_two_objectives_than_random_search(method, trials):
    found = [volume(search(method, trials, seed, BOTH)) for seed in range(3)]
    random = [volume(search(RandomSearch(), trials, seed, BOTH)) for seed in range(3)]
    assert np.median(found) > np.median(random)


@pytest.mark.parametrize("kind", [RandomSearch, LocalSearch, RegularizedEvolution, NSGA2, TPE])
def test_a_fresh_method_goes_on_as_the_old_one_would(kind):
    options = {RegularizedEvolution: (6, 3, 4), NSGA2: (6,), TPE: (6,), LocalSearch: (6,)}.get(kind, ())
    whole = search(kind(*options), 20, 3, ahead=2)
    late = set_up(kind(*options), SPACE, LOSS, 3)
    history = History(whole[:17], [o.genotype for o in whole[17:19]], 19)
    again = {late.ask(history, np.random.default_rng([3, 19, attempt])) for attempt in range(21)}
    assert whole[19].genotype in {SPACE.repair(genotype) for genotype in again}


def test_gaussian_processes_beat_random_search_on_a_small_space():
    small = ToySpace(3)
    found = [best(search(GP(10), 20, seed, space=small)) for seed in range(3)]
    random = [best(search(RandomSearch(), 20, seed, space=small)) for seed in range(3)]
    assert np.median(found) < np.median(random) - 0.02


class Watched(ToySpace):
    """Notes what is mutated, and how often."""

    def mutate(self, genotype, rng, count=1):
        self.parent, self.count = genotype, count
        return super().mutate(genotype, rng, count)


def test_evolution_is_aging_and_anneals_its_mutations_as_published():
    space = Watched(6)
    method = set_up(RegularizedEvolution(128, 64, 8, 5, 240, shared_parent=True), space, LOSS)
    rng = np.random.default_rng(0)
    done = [Observation(n, space.sample(rng), (float(n),)) for n in range(128 + 8 * 240)]
    counts, parents = [], []
    for generation in (0, 1, 48, 49, 192, 193, 239):
        for sibling in (0, 7):
            number = 128 + 8 * generation + sibling
            method.ask(History(done[:number], (), number), np.random.default_rng(number))
            parents.append(done.index(next(o for o in done if o.genotype == space.parent)) - 8 * generation)
        counts.append(space.count)
    assert counts == [6, 5, 5, 4, 2, 1, 1]  # (240 - g) // 48 + 1
    # the least value of 64 of the youngest 128: the oldest ones; siblings have one parent, and are none
    assert all(0 <= parent < 30 for parent in parents)
    assert parents[::2] == parents[1::2]


def test_methods_are_registered_under_their_names_and_short_ones():
    for name, kind in (("evolution", RegularizedEvolution), ("tpe", TPE), ("NSGA2", NSGA2), ("random", RandomSearch)):
        assert catalog().search_methods.load(name) is kind


def test_repair_keeps_what_is_valid():
    rng = np.random.default_rng(0)
    for _ in range(50):
        genotype = tuple(int(rng.integers(len(choice.options))) for choice in SPACE.choices)
        repaired = SPACE.repair(genotype)
        assert SPACE.valid(repaired)
        assert repaired == SPACE.repair(genotype)
        assert repaired == genotype or not SPACE.valid(genotype)
        for block in range(SPACE.blocks):
            if SPACE.sources(genotype, block):
                places = slice(SPACE._start(block), SPACE._start(block + 1))
                assert repaired[places] == genotype[places]


def test_toy_space_is_a_proper_space():
    rng = np.random.default_rng(1)
    for _ in range(30):
        genotype = SPACE.sample(rng)
        canonical = SPACE.canonical(genotype)
        assert SPACE.valid(genotype)
        assert SPACE.valid(canonical)
        assert SPACE.canonical(canonical) == canonical
        assert SPACE.quality(canonical) == SPACE.quality(genotype)
        assert SPACE.price(canonical) == SPACE.price(genotype)
        assert SPACE.from_json(SPACE.to_json(genotype)) == genotype
