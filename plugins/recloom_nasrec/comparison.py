"""What `recloom reproduce nasrec` measures for a seed: a search, random search, and the ablations of the supernet."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from recloom.optim import OptimizerConfig
from recloom.plugins import catalog
from recloom.search import charts
from recloom.search.compare import ne_difference
from recloom.search.evaluators.scratch import FromScratch
from recloom.search.evaluators.supernet import SupernetEvaluator
from recloom.search.finish import Trained
from recloom.search.methods.evolution import RegularizedEvolution
from recloom.search.methods.random import RandomSearch
from recloom.search.objective import Objective
from recloom.search.run import Search, SearchRun
from recloom_nasrec.sampling import STRATEGIES, Strategy
from recloom_nasrec.space import NASRecSpace
from recloom_nasrec.supernet import NASRecSupernet

ADAM = OptimizerConfig("Adam", 0.005, {}, "rowwise_adagrad", 0.2, clip_norm=5.0, warmup_steps=100)


BASELINES = ("DLRM", "DCN V2")
SMALL: dict[str, tuple[tuple[int, tuple[int, ...], dict[str, Any]], ...]] = {
    "DLRM": ((16, (48, 32), {}), (16, (64,), {}), (8, (64, 32), {})),
    "DCN V2": (
        (16, (16,), {"layers": 2, "rank": 4}),
        (8, (32,), {"layers": 2, "rank": 8}),
        (4, (48, 16), {"layers": 2}),
    ),
}
"""Shapes of the baselines of 4,000 to 6,000 multiply-accumulates: width of the embeddings, over arch, cross layers."""


@dataclass(frozen=True)
class Setting:
    """Sizes of one budget.

    Args:
        size: The space: "small" or "full".
        blocks: Its blocks.
        dense_dims: Its widths of features.
        sparse_dims: Its numbers of tokens.
        rows: Training, validation and test rows.
        world: Options of SyntheticClicks.
        epochs: Passes over the training rows of a model that is trained from scratch.
        steps: Steps of a supernet, of 512 rows.
        warmup_steps: Steps over which training of the full path fades out.
        trials: Candidates that the search ranks by its supernet.
        finetune_steps: Steps of fine-tuning a candidate's last layer.
        retrain: The best of them, which are trained from scratch.
        candidates: Random candidates trained from scratch: for random search, and for rank correlations.
        arches: Hidden widths of the baselines' usual size: of the dense arch, and of the over arch.
        limit: Most multiply-accumulates a sample of candidates, found or random, and baselines; None: no limit.
    """

    size: Literal["small", "full"]
    blocks: int
    dense_dims: tuple[int, ...]
    sparse_dims: tuple[int, ...]
    rows: tuple[int, int, int]
    world: dict[str, Any] = field(default_factory=dict)
    epochs: int = 3
    steps: int = 3000
    warmup_steps: int = 0
    trials: int = 200
    finetune_steps: int = 100
    retrain: int = 5
    candidates: int = 16
    arches: tuple[tuple[int, ...], tuple[int, ...]] = ((128,), (256, 128))
    limit: float | None = None

    def space(self, strategy: Strategy) -> NASRecSpace:
        """Return the space, with a supernet that is trained by `strategy`."""

        def supernet(space: Any, schema: dict[str, Any]) -> NASRecSupernet:
            optimizer = _falling(replace(ADAM, dense_lr=0.003), self.steps)
            options: dict[str, Any] = {"layer_norm": False, "warmup_steps": self.warmup_steps, "strategy": strategy}
            return NASRecSupernet(space, schema, optimizer=optimizer, **options)

        widths: dict[str, Any] = {"dense_dims": self.dense_dims, "sparse_dims": self.sparse_dims}
        return NASRecSpace(self.size, self.blocks, **widths, optimizer=self.optimizer, supernet=supernet)

    @property
    def optimizer(self) -> OptimizerConfig:
        """Return the optimizer of models that are trained from scratch, baselines included."""
        return _falling(ADAM, self.epochs * self.rows[0] // 256)

    def evaluator(self) -> SupernetEvaluator:
        """Return how candidates are ranked."""
        rows: dict[str, Any] = {"rows": self.rows[0], "eval_rows": min(self.rows[1], 20_000)}
        return SupernetEvaluator(self.steps, 512, finetune_steps=self.finetune_steps, **rows)

    def search(self, seed: int, **options: Any) -> Search:
        """Return a search on the seed's data."""
        clicks: Any = catalog().datamodules.load("SyntheticClicks")
        data = clicks(*self.rows, batch_size=256, num_workers=0, seed=seed, **self.world)
        scratch = FromScratch(rows=self.rows[0], epochs=self.epochs)
        objective = Objective(limits={} if self.limit is None else {"macs": self.limit})
        return Search(self.space(STRATEGIES[0]), data, objective=objective, seed=seed, scratch=scratch, **options)

    def baselines(self) -> dict[str, dict[str, Any]]:
        """Return the baselines' sections: at their usual size and, under a limit, in shapes that may keep it."""
        sections = {
            f"{name}, usual size": self._baseline(name, 16, (*self.arches[0], 16), self.arches[1]) for name in BASELINES
        }
        for name, shapes in SMALL.items() if self.limit else ():
            sections |= {f"{name}, {'x'.join(map(str, (d, *over)))}": self._baseline(name, d, (16,), over, **more)
                         for d, over, more in shapes}  # fmt: skip
        return sections

    def _baseline(
        self, name: str, width: int, dense: tuple[int, ...], over: tuple[int, ...], **cross: Any
    ) -> dict[str, Any]:
        """Return a DLRM, or one with DCN V2's cross layers, on embeddings of `width`."""
        args: dict[str, Any] = {"embedding_dim": width, "dense_arch": [*dense], "over_arch": [*over]}
        args["optimizer"] = asdict(self.optimizer)
        if name == "DCN V2":
            args["interaction"] = {"class_path": "CrossNet", "init_args": cross}
        return {"class_path": "DLRM", "init_args": args}


def _falling(optimizer: OptimizerConfig, steps: int) -> OptimizerConfig:
    """Return it with a learning rate that falls to zero over the last two thirds of the steps."""
    hold = steps // 3
    return replace(optimizer, warmup_steps=min(100, steps // 10), decay_start=hold, decay_steps=steps - hold)


def compare(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Return what was found with a seed, in JSON values.

    "models": validation, test and oracle NE, MACs and training seconds of the found model, the baselines and random
    search's best. "ahead": how much higher the others' test NE is, with the ends of a paired bootstrap interval.
    "scratch": the NE of random candidates; "ranked": what each supernet gives them, by strategy. "spent": the
    seconds and training samples of the parts of both searches.
    """
    found = setting.search(
        seed,
        method=RegularizedEvolution(min(64, setting.trials), min(32, setting.trials), 8, 2),
        evaluator=setting.evaluator(),
        trials=setting.trials,
        retrain=setting.retrain,
        baselines=setting.baselines(),
    ).run(folder / "evolution", progress=False)
    random = setting.search(
        seed,
        method=RandomSearch(),
        evaluator=FromScratch(rows=setting.rows[0], epochs=setting.epochs),
        trials=setting.candidates,
        retrain=1,
    ).run(folder / "random", progress=False)
    best = found.finished.retrained[0]
    others = _best(found.finished.baselines, setting.limit) | {"random search": random.finished.retrained[0]}
    labels = charts.labels(found, "test")
    ahead = {n: ne_difference(t.test_logits, best.test_logits, labels, seed) for n, t in others.items()}
    return {
        "models": {name: _facts(trained) for name, trained in {"found": best, **others}.items()},
        "ahead": {name: [d.mean, d.low, d.high] for name, d in ahead.items()},
        "scratch": [o.metrics["ne"] for o in random.study.observations()],
        "ranked": {strategy: _ranked(setting, strategy, random, folder) for strategy in STRATEGIES},
        "spent": {
            name: {phase: (entry["seconds"], int(entry["samples"])) for phase, entry in run.journal.times().items()}
            for name, run in (("evolution", found), ("random", random))
        },
    }


def _best(baselines: list[Trained], limit: float | None) -> dict[str, Trained]:
    """Return each baseline: the best on the validation rows of those that keep the limit, and the usual size beside."""
    found = {}
    for name in BASELINES:
        own = [trained for trained in baselines if trained.name.startswith(f"{name}, ")]
        kept = [trained for trained in own if limit is None or trained.costs["macs"] <= limit]
        found[name] = min(kept, key=lambda trained: trained.mean("ne"))
        if found[name] is not own[0]:
            found[own[0].name] = own[0]
    return found


def _facts(trained: Trained) -> dict[str, float]:
    return {
        "val": trained.mean("ne"),
        "test": trained.mean("ne", "test"),
        "oracle": trained.mean("oracle_ne", "test"),
        "macs": trained.costs.get("macs", 0.0),
    }


def _ranked(setting: Setting, strategy: Strategy, random: SearchRun, folder: Path) -> list[float]:
    """Return the NE that a supernet trained by `strategy` gives the random candidates."""
    place = folder / ("evolution" if strategy == STRATEGIES[0] else strategy.replace(" ", "-"))  # trained there already
    place.mkdir(parents=True, exist_ok=True)
    evaluator = setting.evaluator()
    evaluator.setup(replace(random.context, space=setting.space(strategy), folder=place))
    return [m["ne"] for m in evaluator.evaluate([o.genotype for o in random.study.observations()])]
