"""Rankitect: graphs of blocks are models whatever is chosen; what they cost; the supernet that holds them all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from recloom.data.synthetic import SyntheticClicks
from recloom.errors import RecloomError
from recloom.features import FeatureSchema
from recloom.plugins import catalog
from recloom.search.block import Block, Shape, Weight, Weights
from recloom.search.lowering import lower
from recloom.testing import run_cli
from recloom_rankitect import BLOCKS
from recloom_rankitect.engineers import EngineersSpace
from recloom_rankitect.graph import Graph, from_document, to_document
from recloom_rankitect.model import GraphModel
from recloom_rankitect.network import GraphNetwork
from recloom_rankitect.plan import Plan, Stem, plan
from recloom_rankitect.space import BlockSpace
from recloom_rankitect.stack import StackModel

SIZES = {"num_train": 4000, "num_val": 1000, "num_test": 1000, "batch_size": 128, "num_workers": 0}
WORLD = {**SIZES, "num_dense": 5, "cardinalities": [30, 20, 10, 40], "multi_hot": {}}
STEM = Stem(5, 4, 16)
DATA = SyntheticClicks(**WORLD)
SCHEMA = FeatureSchema.from_dict(DATA.schema)


class Scaled(Block):
    """A stranger's block: w x, for any input."""

    inputs: ClassVar = ("any",)

    def weights(self) -> dict[str, Weight]:
        return {"w": Weight((self.shapes[0].width,), "ones")}

    def forward(self, weights: Weights, *inputs: Tensor) -> Tensor:
        return inputs[0] * weights["w"]


def networks(space: BlockSpace, genotype: tuple[int, ...]) -> tuple[GraphNetwork, GraphNetwork]:
    """The whole graph, dead nodes too; and that of the canonical genotype, with the same weights."""
    graph, canonical = space.graph(genotype), space.canonical(genotype)
    whole = GraphNetwork(plan(graph, STEM, space.limits))
    pruned = GraphNetwork(space.plan(canonical, STEM))
    live = [node.name for node, alive in zip(graph.nodes, graph.live(), strict=True) if alive]
    state, theirs = pruned.state_dict(), whole.state_dict()
    for name in state:
        if not name.startswith("head"):
            node, slash, rest = name.removeprefix("steps.").partition("/")
            state[name] = theirs[f"steps.{live[int(node[1:]) - 1]}{slash}{rest}"]
    state["head.bias"] = theirs["head.bias"]
    order = np.argsort([-place for place in dict.fromkeys(graph.head)])
    columns = torch.split(theirs["head.weight"], sizes(plan(graph, STEM, space.limits)), 1)
    if len(set(graph.head)) < len(graph.head):  # the same result twice: its weights add up
        columns = (columns[0] + columns[1],)
    state["head.weight"] = torch.cat([columns[place] for place in order], 1)
    pruned.load_state_dict(state)
    return whole, pruned


def sizes(found: Plan) -> list[int]:
    shapes = [*STEM.shapes, *(step.block.shape for step in found.steps)]
    return [shapes[place].size for place in found.head]


def test_random_graphs_run_and_survive_canonicalisation() -> None:
    space, rng = BlockSpace(nodes=30), np.random.default_rng(0)
    dense, tokens = torch.randn(4, 5).double(), 0.3 * torch.randn(4, 4, 16).double()
    seen: set[str] = set()
    largest = 0
    for number in range(250):
        torch.manual_seed(number)
        genotype = space.sample(rng)
        canonical = space.canonical(genotype)
        assert space.canonical(canonical) == canonical
        whole, pruned = (network.double() for network in networks(space, genotype))
        with torch.no_grad():
            a, b = whole.eval()(dense, tokens), pruned.eval()(dense, tokens)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # norms of nearly equal values blow rounding up
        loss = pruned.train()(dense, tokens).square().mean()
        loss.backward()
        assert all(p.grad is not None for p in pruned.parameters())
        nodes = space.graph(canonical).pruned().nodes
        seen.update(node.block for node in nodes)
        largest = max(largest, len(nodes))
    assert seen == set(BLOCKS)
    assert largest >= 20


@pytest.mark.parametrize("space", [BlockSpace(), EngineersSpace()], ids=lambda s: type(s).__name__)
def test_programs_are_what_the_exported_models_do(space) -> None:
    rng = np.random.default_rng(3)
    for _ in range(3):
        genotype = space.sample(rng)
        program, model = space.program(genotype, SCHEMA), space.build(genotype, SCHEMA)
        assert program.macs == lower(model).macs
        assert program.parameters == sum(p.numel() for p in model.network.parameters())
        assert program.macs == space.program(space.canonical(genotype), SCHEMA).macs


@pytest.mark.parametrize("space", [BlockSpace(10), EngineersSpace(3)], ids=lambda s: type(s).__name__)
def test_a_path_of_the_supernet_is_its_model(space) -> None:
    rng = np.random.default_rng(1)
    supernet = space.supernet(SCHEMA).eval()
    nn.init.normal_(supernet.heads)
    batch = DATA.source("val").load(0, 0).rows(0, 16)
    inputs = supernet.embed(batch)
    for _ in range(40):
        supernet.path = path = space.canonical(space.sample(rng))
        model = GraphNetwork(space.plan(path, supernet.stem)).eval()
        for slot, step in model.steps.items():
            for name, tensor in step.state_dict().items():
                source = supernet.slots[slot].state_dict()[name]
                tensor.copy_(source[tuple(slice(0, size) for size in tensor.shape)])
        with torch.no_grad():
            model.head.weight.copy_(supernet.head(path)[0])
            model.head.bias.copy_(supernet.bias)
            expected = model(*inputs).squeeze(1)
            torch.testing.assert_close(supernet.logits(batch), expected, rtol=1e-4, atol=1e-4)
            supernet.gates = torch.ones(len(path))
            torch.testing.assert_close(supernet.logits(batch), expected, rtol=1e-4, atol=1e-4)
            supernet.gates = None


def test_mutations_insert_and_remove_nodes_and_stay_valid() -> None:
    space, rng = BlockSpace(8), np.random.default_rng(0)
    grown = []
    genotype = space.sample(rng)
    for _ in range(400):
        before, genotype = genotype, space.mutate(genotype, rng)
        assert space.valid(genotype)
        assert space.from_json(space.to_json(genotype)) == genotype
        grown.append(sum(space.graph(genotype).live()) - sum(space.graph(before).live()))
        network = GraphNetwork(space.plan(genotype, STEM))
        assert network(torch.randn(2, 5), torch.randn(2, 4, 16)).shape == (2, 1)
    assert min(grown) < 0 < max(grown)
    assert grown.count(1) > 20


def test_which_choices_matter() -> None:
    rng = np.random.default_rng(5)
    for space in (BlockSpace(5), EngineersSpace(2)):
        for _ in range(5):
            genotype = space.canonical(space.sample(rng))
            assert space.matters(genotype) == super(type(space), space).matters(genotype)


def test_a_stranger_adds_a_block() -> None:
    if "scaled" not in catalog().blocks:
        catalog().blocks.add("scaled", f"{__name__}:Scaled")
    space, rng = BlockSpace(4, blocks=["linear", "scaled", "dot"]), np.random.default_rng(0)
    genotype = next(g for g in (space.sample(rng) for _ in range(100)) if "scaled" in str(space.model_config(g)))
    batch = DATA.source("val").load(0, 0).rows(0, 16)
    model = space.build(genotype, SCHEMA)
    assert model.logits(batch).shape == (16,)
    assert space.program(genotype, SCHEMA).parameters == sum(p.numel() for p in model.network.parameters())
    supernet = space.supernet(SCHEMA)
    supernet.path = space.canonical(genotype)
    supernet.loss(supernet.logits(batch), batch).backward()


def test_results_above_the_limits_are_projected_down() -> None:
    document = {"nodes": {}, "head": ["c6"]}
    last = "sparse"
    for number in range(7):
        document["nodes"][f"c{number}"] = {"block": "concat", "inputs": [last, last]}
        last = f"c{number}"
    found = plan(from_document(document), STEM, BlockSpace().limits)
    assert found.steps[-1].block.shape == Shape(16, 32)


def test_documents_come_back_and_mistakes_are_explained() -> None:
    space = BlockSpace(12)
    graph = space.graph(space.canonical(space.sample(np.random.default_rng(2)))).pruned()
    bare = Graph(tuple(replace(node, gates=()) for node in graph.nodes), graph.head)
    assert from_document(yaml.safe_load(yaml.safe_dump(to_document(graph)))) == bare
    good = {"nodes": {"a": {"block": "linear", "inputs": ["dense"], "width": 8}}, "head": ["a"]}
    for change, words in (
        ({"nodes": {"a": {"block": "liner", "inputs": ["dense"]}}}, "linear"),
        ({"nodes": {"a": {"block": "linear", "inputs": ["dense"]}}}, "needs one, 1 or more"),
        ({"nodes": {"a": {"block": "add", "inputs": ["dense"]}}}, "takes 2"),
        ({"nodes": {"a": {"block": "relu", "inputs": ["b"]}}}, "sparse"),
        ({"head": []}, "reads some of"),
    ):
        with pytest.raises(RecloomError) as error:
            GraphModel(DATA.schema, {**good, **change})
        assert words in error.value.message + (error.value.hint or "")
    with pytest.raises(RecloomError, match="kind of layer 1"):
        StackModel(DATA.schema, [{"kind": "wukon"}])


def test_a_composed_model_trains_with_histories_and_is_exported(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = EngineersSpace(2)
    model = space.model_config(space.sample(np.random.default_rng(0)))
    trainer = {"max_steps": 20, "accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    data = {"class_path": "SyntheticClicks", "init_args": WORLD}
    Path("found.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": trainer}))
    assert run_cli(["fit", "--config", "found.yaml", "--run_dir", "run"]).code == 0
    checkpoint = next(Path("run").rglob("*.ckpt"))
    exported = run_cli(["export", "--config", "run/config.yaml", "--ckpt_path", str(checkpoint)])
    assert exported.code == 0, exported.err
    options = ["--data.num_train=2000", "--data.num_val=500", "--data.num_workers=0", "--trainer.fast_dev_run=1"]
    slot = ["--model=GraphModel", "--model.sequence_encoder=MeanPooling", "--data=SyntheticBehaviour"]
    fit = run_cli(["fit", *slot, *options, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"])
    assert fit.code == 0, fit.err
