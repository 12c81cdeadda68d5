"""PIM: every operator of every space becomes what docs/papers/pim.md says, and computes on crossbars what is priced."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import recloom_pim.supernet
from recloom.data.synthetic import SyntheticClicks
from recloom.features import FeatureSchema
from recloom.loading import instantiate_model
from recloom.model import RankingModule
from recloom.plugins import catalog
from recloom.search.evaluator import SearchContext
from recloom.search.lowering import lower
from recloom.search.objective import Objective
from recloom.search.program import Program
from recloom_pim.cost import PIMCost
from recloom_pim.crossbars import Crossbars
from recloom_pim.layers import Board, place
from recloom_pim.quantise import Device
from recloom_pim.space import PIMSpace

PAGE = Path(__file__).parents[2] / "docs/papers/pim.md"
DATA = SyntheticClicks(64, 64, 64, 16, num_dense=5, cardinalities=[9] * 20, multi_hot={}, num_workers=0)
SCHEMA = FeatureSchema.from_dict(DATA.schema)
BATCH = DATA.source("val").load(0, 0).rows(0, 16)
COLUMNS = ("matrices", "dynamic", "elementwise", "memory")
NASREC = ("fc", "dot", "gating", "sum", "efc", "transformer", "interact", "fm", "head")
BLOCKS = sorted(entry.name for entry in catalog().blocks if entry.plugin == "rankitect")


def documented() -> dict[str, set[str]]:
    """What the page's table says of each operator: its non-empty columns."""
    lines = PAGE.read_text().split("## What becomes of an operator")[1].split("\n## ")[0].splitlines()
    found = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 2 + len(COLUMNS) and cells[1].startswith("`"):
            for name in cells[1].split(", "):
                found[f"{cells[0]} {name.strip('`')}"] = {c for c, cell in zip(COLUMNS, cells[2:], strict=True) if cell}
    return found


DOCUMENTED = documented()


def becomes(program: Program, prefix: str) -> set[str]:
    """What the works of an operator become, of those that take energy."""
    names = {"matmul": "matrices", "dynamic": "dynamic", "elementwise": "elementwise", "gather": "memory"}
    kinds = {"matmul": "crossbar", "dynamic": "digital", "elementwise": "digital", "gather": "memory"}
    rows = {row[0]: row for table in PIMCost().works(program) for row in table.rows}
    found = set()
    for work in program.works:
        if work.name == prefix or work.name.startswith(f"{prefix}."):
            assert rows[work.name][1] == kinds[work.kind]
            assert float(rows[work.name][-1]) > 0
            found.add(names[work.kind])
    return found


class Watched(Board):
    """Notes the products that it is asked for."""

    seen: Counter

    def linear(self, layer, x, weight, bias, name=""):
        vectors = x.numel() // x.shape[-1] // len(BATCH)
        self.seen[(layer.pim_group, x.shape[-1], weight.shape[0], vectors)] += 1
        return super().linear(layer, x, weight, bias, name)


def watched(module: torch.nn.Module, crossbars: Crossbars | None = None) -> Watched:
    board = Watched(crossbars or Crossbars(weight_bits=2, activation_bits=2, adc_bits=12), Device(variation=0.0))
    board.seen = Counter()
    place(module.eval(), board)
    return board


def model_of(name: str, **init_args) -> RankingModule:
    catalog().models.load(name)
    torch.manual_seed(0)
    return instantiate_model({"class_path": name, "init_args": init_args}, SCHEMA).eval()


def multiplications(model: RankingModule) -> int:
    """Multiply-accumulates of a sample, counted while it runs."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(BATCH)
    return counter.get_total_flops() // 2 // len(BATCH)


def check(model: RankingModule, program: Program, unseen: int = 0) -> None:
    """Priced products are those of a forward pass, and all that have weights are computed on crossbars."""
    assert program.macs == multiplications(model) + unseen
    board = watched(model)
    with torch.no_grad():
        model.logits(BATCH)
    priced = Counter((w.rows, w.columns, w.vectors) for w in program.works if w.kind == "matmul")
    computed = Counter()
    for (_, *sizes), count in board.seen.items():
        computed[tuple(sizes)] += count
    assert computed == priced
    for dynamic in ("digital", "crossbar"):
        prices = PIMCost(dynamic=dynamic).prices(program, [Crossbars(), Crossbars(rows=64, adc_bits=5)])
        assert all(np.isfinite(value).all() and (value > 0).all() for value in (prices.total, prices.latency))
        written = any(work.kind == "dynamic" for work in program.works) and dynamic == "crossbar"
        assert (prices.energy["write"] > 0).all() == written


# NASRec


def architecture(dense_op: str, sparse_op: str) -> dict:
    shared = {"dense_from": [0], "sparse_from": [0], "dense_dim": 32, "sparse_dim": 6, "fm": True, "interact": True}
    block = {"dense_op": dense_op, "sparse_op": sparse_op, "left": 0, "right": 0, **shared}
    more = {"dense_from": [0, 1], "sparse_from": [0, 1], "left": 1, "dense_dim": 48}
    return {"block1": block, "block2": {**block, **more}}


@pytest.mark.parametrize("sparse_op", ["efc", "transformer"])
@pytest.mark.parametrize("dense_op", ["fc", "dot", "gating", "sum"])
@pytest.mark.parametrize("norm", [False, True])
def test_nasrecs_operators(dense_op, sparse_op, norm):
    chosen = architecture(dense_op, sparse_op)
    space = catalog().search_spaces.load("NASRecSpace")("full", 2, 16, (32, 48), (6,), layer_norm=norm)
    names = {f"{b}.{k}": v for b, choices in chosen.items() for k, v in choices.items() if not k.endswith("_from")}
    for block, key in product(chosen, ("dense_from", "sparse_from")):
        names |= {f"{block}.{key}.{i}": i in chosen[block][key] for i in range(int(block[-1]))}
    program = space.program(space.from_json(names), SCHEMA)
    for name in (dense_op, sparse_op, "interact", "fm"):
        more = {"elementwise"} if norm else set()
        assert becomes(program, f"block2.{name}") == DOCUMENTED[f"NASRec {name}"] | more, name
    assert becomes(program, "head") == DOCUMENTED["NASRec head"]
    check(model_of("NASRecNet", architecture=chosen, layer_norm=norm), program)


# Rankitect


def graph_of(name: str) -> dict:
    block = catalog().blocks.load(name)
    stems = {"dense": "dense", "sparse": "sparse", "any": "sparse", "alike": "sparse", "same": "sparse"}
    node = {"block": name, "inputs": [stems[port] for port in block.inputs]}
    return {"nodes": {"x": {**node, "width": 48} if block.sized else node}, "head": ["x"]}


@pytest.mark.parametrize("name", BLOCKS)
def test_rankitects_blocks(name):
    model = model_of("GraphModel", architecture=graph_of(name), max_features=400)
    program = model.program()
    assert becomes(program, f"x.{name}") == DOCUMENTED[f"Rankitect {name}"]
    check(model, program)


@pytest.mark.parametrize(
    ("adapter", "block", "inputs"),
    [
        ("flatten", "linear", ["sparse"]),
        ("project", "add", ["dense", "sparse"]),
        ("projecttokens", "concat", ["sparse", "sparse"]),
        ("cut", "mean_pool", ["dense"]),
    ],
)
def test_what_rankitect_puts_between_blocks(adapter, block, inputs):
    node = {"block": block, "inputs": inputs, **({"width": 32} if block == "linear" else {})}
    model = model_of("GraphModel", architecture={"nodes": {"x": node}, "head": ["x"]}, max_tokens=25)
    program = model.program()
    assert any(slot.endswith(f"/{adapter}") for slot in model.network.steps)
    found = set().union(*(becomes(program, w.name) for w in program.works if w.name.endswith(f".{adapter}")), set())
    assert found == DOCUMENTED[f"Rankitect {adapter}"]
    check(model, program)


# Other models


@pytest.mark.parametrize("interaction", ["DotInteraction", "CrossNet"])
def test_the_layers_of_dlrm(interaction):
    catalog().interactions.load(interaction)
    path = f"recloom_{'dlrm.interactions' if interaction == 'DotInteraction' else 'dcn.cross'}.{interaction}"
    model = model_of("DLRM", embedding_dim=8, dense_arch=[16], over_arch=[16], interaction=path)
    program = lower(model)
    for name in ("sparse_arch", "dense_arch", "over_arch"):
        assert becomes(program, name) == DOCUMENTED[f"DLRM {name}"], name
    assert becomes(program, "inter_arch") == DOCUMENTED[f"DLRM {interaction}"]
    check(model, program, 8 * 21 * 21 if interaction == "DotInteraction" else 0)  # the pairs, by a kernel of their own


def test_the_page_has_every_operator_and_no_other():
    adapters = ("flatten", "project", "projecttokens", "cut")
    expected = [f"NASRec {n}" for n in NASREC] + [f"Rankitect {n}" for n in (*BLOCKS, *adapters)]
    expected += [f"DLRM {n}" for n in ("sparse_arch", "dense_arch", "over_arch", "DotInteraction", "CrossNet")]
    assert sorted(DOCUMENTED) == sorted(expected)
    operators = catalog().search_spaces.load("NASRecSpace")("full")
    assert {*operators.dense_ops, *operators.sparse_ops} <= set(NASREC)


# Spaces


def spaces() -> dict[str, object]:
    load = catalog().search_spaces.load
    return {
        "nasrec": load("NASRecSpace")("full", 3, 16, (16, 32), (4, 8)),
        "blocks": load("BlockSpace")(8),
        "engineers": load("EngineersSpace")(2),
    }


@pytest.mark.parametrize("name", ["nasrec", "blocks", "engineers"])
def test_models_of_every_space_are_computed_with_the_bits_that_they_are_priced_with(name, tmp_path, monkeypatch):
    monkeypatch.setattr(recloom_pim.supernet, "Board", Watched)
    space = PIMSpace(spaces()[name], weight_bits=(2, 4, 8), device=Device(variation=0.0))
    context = SearchContext(space, DATA, SCHEMA, Objective(), [PIMCost()], tmp_path, 0, print)
    supernet = space.supernet(SCHEMA).eval()
    rng = np.random.default_rng(0)
    for _ in range(8):
        genotype = space.sample(rng)
        canonical = space.canonical(genotype)
        assert context.price(genotype) == pytest.approx(context.price(canonical))
        program, crossbars = space.program(canonical, SCHEMA), space.crossbars(canonical)
        matrices = [work for work in program.works if work.kind == "matmul"]
        model = space.space.build(space.model(canonical), SCHEMA)
        board, supernet.pim.seen = watched(model, crossbars), Counter()
        with torch.no_grad():
            model.logits(BATCH)
            features = supernet.features(supernet.embed(BATCH), [canonical])[0]
        priced = Counter((*crossbars.of(w.group), w.rows, w.columns, w.vectors) for w in matrices)
        computed = Counter()
        for (group, *sizes), count in board.seen.items():
            computed[(*crossbars.of(group), *sizes)] += count
        assert computed == priced
        assert features.isfinite().all()
        assert supernet.pim.crossbars == crossbars
        assert {key[0] for key in supernet.pim.seen} >= {work.group for work in matrices} - {"head"}
