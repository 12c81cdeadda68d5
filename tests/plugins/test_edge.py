"""The partitioner and the recurrence against brute force; no model sees an event before its time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from recloom import checkpoint
from recloom.data.streams.folder import load_stream
from recloom.data.streams.powerlaw import PowerLawStream
from recloom.data.streams.stream import EventStream
from recloom.data.streams.window import window_of, windows
from recloom.errors import ComponentImportError, RecloomError
from recloom.plugins import catalog
from recloom.rowgrad import row_gradients
from recloom.testing import check_plugin, run_cli
from recloom_edge import kernels, partition, plain
from recloom_edge.candidates import Candidates
from recloom_edge.cells import NormalisedRNN, make_cell
from recloom_edge.evaluate import Evaluation, ranks
from recloom_edge.head import CandidateHead, Rolled
from recloom_edge.jodie import JODIE
from recloom_edge.kernels import Plan
from recloom_edge.matching import Matching
from recloom_edge.memory import Memory, Past
from recloom_edge.model import EDGE
from recloom_edge.neighbours import Near
from recloom_edge.pairs import pair_scores
from recloom_edge.query import Query, time_features
from recloom_edge.recurrence import roll
from recloom_edge.scoring import log_probabilities, version_logits
from recloom_edge.starts import newest
from recloom_edge.versions import newest_rows

SHARED = [parent / "shared/data/jodie_wikipedia" for parent in Path(__file__).parents]
WIKI = next((path for path in SHARED if path.exists()), Path("missing")) / "wikipedia_u_i_ts_label.csv"


def small(events: int = 600, seed: int = 0, **options) -> EventStream:
    return PowerLawStream(events=events, sources=40, destinations=25, seed=seed, **options).build()


def one_kind(events: int = 300) -> EventStream:
    source = torch.randint(0, 30, (events,), dtype=torch.int32)
    destination = (source + torch.randint(1, 30, (events,), dtype=torch.int32)) % 30
    return EventStream(source, destination, torch.arange(events) * 100, 30, 30, bipartite=False, bounds=(200, 250))


def brute_levels(stream: EventStream, cut: set[int], window: int = 0) -> list[int]:
    """The level as a recursion on the definition."""
    newest: dict[int, int] = {}
    found, floor = [], 0
    for event, (u, v) in enumerate(zip(stream.source.tolist(), stream.destination.tolist(), strict=True)):
        if window and event % window == 0:
            floor = max(found, default=0)
            newest = {}
        ends = {u, v + stream.node_offset} - cut
        found.append(1 + max([floor, *(newest.get(node, 0) for node in ends)]))
        newest.update(dict.fromkeys(ends, found[-1]))
    return found


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("stream", [small(), one_kind()], ids=["bipartite", "one kind"])
@pytest.mark.parametrize("window", [0, 70])
def test_levels(native: bool, stream: EventStream, window: int, monkeypatch) -> None:
    if not native:
        monkeypatch.setattr(kernels, "library", lambda name: None)
    for count in (0, 3):
        mask = partition.by_activity(stream, count)
        cut = set(mask.nonzero().squeeze(1).tolist())
        wanted = brute_levels(stream, cut, window)
        assert partition.event_levels(stream, mask, window).tolist() == wanted
        sweep = partition.LevelSweep(stream.num_nodes, stream.node_offset, mask, window)
        for start in range(0, len(stream), 33):
            sweep.add(stream.source[start : start + 33], stream.destination[start : start + 33])
        assert sweep.steps == max(wanted), "pieces add up to the whole"
        longest, carried = kernels.critical_path(stream.source, stream.destination, stream.node_offset, ~mask)
        assert longest == max(brute_levels(stream, cut))
        assert int(carried.sum()) == longest - 1
        assert not bool(carried[mask].any())


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("stream", [small(), one_kind()], ids=["bipartite", "one kind"])
def test_states_of_decoupled_nodes_wait_for_their_last_event(native: bool, stream: EventStream, monkeypatch) -> None:
    if not native:
        monkeypatch.setattr(kernels, "library", lambda name: None)
    mask = partition.by_activity(stream, 3)
    cut = set(mask.nonzero().squeeze(1).tolist())
    newest: dict[int, int] = {}
    held: dict[int, int] = {}
    found = []
    for event, (u, v) in enumerate(zip(stream.source.tolist(), stream.destination.tolist(), strict=True)):
        if event % (len(stream) // 4) == 0:
            held = dict(newest)
        ends = (u, v + stream.node_offset)
        found.append(1 + max((held if node in cut else newest).get(node, 0) for node in ends))
        newest.update(dict.fromkeys(ends, found[-1]))
    steps = partition.waiting_steps(stream, mask, 4)
    assert steps == max(found)
    assert partition.partition(stream, mask).steps <= steps <= partition.partition(stream).steps
    assert partition.waiting_steps(stream, mask, 1) == partition.partition(stream, mask).steps
    _, carried = kernels.critical_path(stream.source, stream.destination, stream.node_offset, ~mask, 4)
    assert not bool(carried[mask].any()), "decoupling a node again shortens nothing"
    assert 0 < int(carried.sum()) < steps
    shorter = [partition.waiting_steps(stream, partition.greedy(stream, count, segments=4), 4) for count in (0, 4, 8)]
    assert shorter[0] > shorter[1] > shorter[2]
    assert partition.waiting_steps(stream, partition.choose(stream, "greedy", 0.0, 30, segments=4), 4) <= 30


def test_partition_counts_what_is_cut_and_keeps_to_budgets() -> None:
    stream = small()
    mask = partition.by_activity(stream, 2)
    links = {n: int(c) - 1 for n, c in enumerate(partition.activity(stream)) if c}
    found = partition.partition(stream, mask)
    assert found.dependencies == sum(links.values())
    assert found.cut == sum(links[int(node)] for node in mask.nonzero())
    assert found.parallelism == pytest.approx(len(stream) / found.steps)
    for method in partition.METHODS:
        chosen = partition.choose(stream, method, 0.0, budget=20)
        assert partition.partition(stream, chosen).steps <= 20
        assert 0 < int(chosen.sum()) < stream.num_nodes
    fewer = partition.choose(stream, "activity", 0.0, budget=20)
    fewer[fewer.nonzero()[partition.activity(stream)[fewer].argmin()]] = False
    assert partition.partition(stream, fewer).steps > 20, "no smaller number of the most active nodes would do"
    few = partition.greedy(stream, 5)
    assert int(few.sum()) == 5
    assert partition.partition(stream, few).steps < partition.partition(stream).steps


@pytest.mark.skipif(not WIKI.exists(), reason="the Wikipedia stream is not here")
def test_steps_of_wikipedia(tmp_path: Path) -> None:
    assert run_cli(["prepare", "jodie", "--input", str(WIKI), "--output", str(tmp_path / "wiki")]).code == 0
    stream = load_stream(tmp_path / "wiki")
    assert len(stream) == 157_474
    plain_steps = partition.partition(stream).steps
    assert plain_steps == 4369
    assert plain_steps >= 4 * partition.partition(stream, partition.choose(stream, "greedy", 0.01)).steps
    assert plain_steps >= 10 * partition.partition(stream, partition.choose(stream, "greedy", 0.05)).steps
    for share, times in ((0.01, 4), (0.05, 10)):  # with P that are states, and wait, as EDGE's are
        chosen = partition.choose(stream, "greedy", share, segments=10)
        assert plain_steps >= times * partition.waiting_steps(stream, chosen, 10)


def test_steps_of_a_power_law() -> None:
    stream = PowerLawStream(repeat=0, follow=0).build()
    steps = [partition.partition(stream, partition.choose(stream, "activity", share)).steps for share in (0, 0.01)]
    assert steps[0] == 95_283, "the fact sheet's stream"
    assert steps[0] >= 400 * steps[1]


def make_plan(stream: EventStream, cut: torch.Tensor | None, given: torch.Tensor | None = None) -> Plan:
    slot = torch.full((stream.num_nodes,), -1, dtype=torch.int32)
    plan = kernels.plan(stream.source, stream.destination, stream.node_offset, cut, slot, given)
    assert bool((slot == -1).all())
    other = Plan(*plain.plan(stream.source, stream.destination, stream.node_offset, cut, given))
    for name in Plan.__dataclass_fields__:
        assert torch.equal(getattr(plan, name), getattr(other, name)), name
    return plan


@pytest.mark.parametrize("name", ["rnn", "gru", "identity", "normalised"])
@pytest.mark.parametrize("decoupled", [0, 4])
@pytest.mark.parametrize("stream", [small(90), one_kind(90)], ids=["bipartite", "one kind"])
def test_recurrence_is_event_by_event(name: str, decoupled: int, stream: EventStream) -> None:
    torch.manual_seed(0)
    cut = partition.by_activity(stream, decoupled) if decoupled else None
    given = torch.tensor([3, 1, 3], dtype=torch.int32)
    plan = make_plan(stream, cut, given)
    cell = NormalisedRNN(16, (5, 4)) if name == "normalised" else make_cell(name, 16, (5, 4))
    start = torch.randn(len(plan.nodes), 16, requires_grad=True)
    messages = (torch.randn(len(stream), 5), torch.randn(len(stream), 4))
    inputs = cell.brought(messages)
    # the definition: read, update both ends, in order
    free = set() if cut is None else set(cut.nonzero().squeeze(1).tolist())
    states = {int(node): start[row] for row, node in enumerate(plan.nodes)}
    begun, made = dict(states), []
    for event, (u, v) in enumerate(zip(stream.source.tolist(), stream.destination.tolist(), strict=True)):
        ends = (u, v + stream.node_offset)
        read = [(begun if node in free else states)[node][None] for node in ends]
        new = [cell.step(s, read[s], read[1 - s], inputs[event, s][None])[0] for s in (0, 1)]
        states.update(zip(ends, new, strict=True))
        made += new
    wanted = torch.stack(made)
    weight = torch.randn_like(wanted)
    parameters = [start, *(p for p in cell.parameters() if name != "identity")]
    gradients = torch.autograd.grad((wanted * weight).sum(), parameters, retain_graph=True)
    for compiled in (True, False):
        found = roll(cell, start, inputs, plan, compiled)
        assert torch.allclose(found[: len(wanted)], wanted, atol=1e-5)
        last = torch.stack([states[int(node)] for node in plan.nodes])
        assert torch.allclose(found[plan.last.long()], last, atol=1e-5), "the newest state of every node"
        again = torch.autograd.grad((found[: len(wanted)] * weight).sum(), parameters, retain_graph=True)
        for mine, theirs in zip(again, gradients, strict=True):
            assert torch.allclose(mine, theirs, atol=1e-4 * max(1.0, float(theirs.abs().max())))


TWO_STREAMS = pytest.mark.parametrize(("stream", "changes"), [(small(60), 1), (one_kind(60), 2)], ids=["two", "one"])


def looked_for(stream: EventStream, changes: int, count: int) -> tuple[Plan, Candidates, torch.Tensor]:
    ids = torch.randperm(stream.num_destinations)[:count]
    candidates = Candidates.of(ids, stream.num_destinations, torch.randn(count))
    ends = [stream.source, stream.destination][2 - changes :]
    changed = candidates.place[torch.stack(ends, dim=1).long()]
    return make_plan(stream, None, (ids + stream.node_offset).int()), candidates, changed


@TWO_STREAMS
def test_candidates_are_scored_by_their_newest_version(stream: EventStream, changes: int) -> None:
    torch.manual_seed(0)
    plan, _, changed = looked_for(stream, changes, 20)
    asked, rows, states = torch.randn(60, 48), torch.randn(20, 16), torch.randn(120 + len(plan.nodes), 32)
    newest, lines = {j: 120 + j for j in range(20)}, []
    for event in range(60):
        versions = torch.cat([rows, states[[newest[j] for j in range(20)]]], dim=1)
        lines.append(versions @ asked[event])
        for side, place in enumerate(changed[event].tolist()):
            if place >= 0:
                newest[place] = 2 * event + 2 - changes + side
    values, places = torch.randn(60, 3), torch.stack([torch.randperm(20)[:3] for _ in range(60)]).int()
    places[::4, 1] = -1
    sums = torch.stack(lines).scatter_add(1, places.clamp(min=0).long(), values * (places >= 0))
    for graph in (True, False):  # torch operations, compiled
        with torch.set_grad_enabled(graph):
            found = version_logits(asked, rows, states, plan, changed)
            assert torch.allclose(found, torch.stack(lines), atol=1e-4)
            assert torch.allclose(log_probabilities(found, values, places), sums.log_softmax(1), atol=1e-4)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("group", [0, 16])
def test_candidates_are_those_of_the_group_and_random_ones(native: bool, group: int, monkeypatch) -> None:
    if not native:
        monkeypatch.setattr("recloom_edge.candidates.library", lambda name: None)
    stream, found = small(60), []
    popularity = torch.rand(25) / 25
    for _ in range(2):
        torch.manual_seed(0)
        found.append(Candidates.drawn(window_of(stream, 0, 60), popularity, 14, group))
    candidates = found[0]
    assert torch.equal(candidates.ids, found[1].ids)
    assert sorted(set(candidates.ids.tolist())) == sorted(candidates.ids.tolist()), "each once"
    assert torch.equal(candidates.ids[candidates.place[candidates.ids].long()], candidates.ids)
    size = group or 60
    torch.manual_seed(0)
    random = torch.randint(25, (-(-60 // size), 14), dtype=torch.int32)
    for g, events in enumerate(stream.destination.split(size)):
        own = dict.fromkeys(events.tolist())
        drawn = max(14 - len(own), 1)
        wanted = list(own | dict.fromkeys(random[g, :drawn].tolist()))
        groups = candidates.groups
        part = slice(*groups.starts[g : g + 2].tolist()) if groups else slice(None)
        ids = candidates.ids[groups.chosen[part].long()] if groups else candidates.ids
        assert ids.tolist() == wanted
        likely = [1 - (1 - float(popularity[j])) ** len(events) * (1 - 1 / 25) ** drawn for j in wanted]
        assert torch.allclose(candidates.correction[part], torch.tensor(likely).log(), atol=1e-4)
        if groups:
            assert groups.place[g][candidates.place[ids].long()].tolist() == list(range(len(ids)))
            assert int((groups.place[g] >= 0).sum()) == len(ids)


@pytest.mark.parametrize("free", [False, True])
def test_windows_begin_with_the_newest_states(free: bool, monkeypatch) -> None:
    torch.manual_seed(0)
    memory, nodes = Memory(9, 5, 16, 1), torch.tensor([7, 0, 3, 8, 5, 1], dtype=torch.int32)
    nn.init.normal_(memory.states)
    memory.time[[0, 5, 8]] = 3
    initial, weight = torch.randn(2, 16, requires_grad=True), torch.randn(6, 16)
    given = (torch.tensor([-1, 1, -1, -1, -1, -1, -1, -1, 0]), torch.randn(2, 16)) if free else None
    found = []
    for native in (True, False):
        if not native:
            monkeypatch.setattr("recloom_edge.starts.library", lambda name: None)
        rows = newest(memory, nodes, initial, given)
        found.append((rows, *torch.autograd.grad((rows * weight).sum(), initial)))
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs)
    last, values = memory.states, given[1] if free else None
    wanted = [
        initial[1],
        last[0],
        initial[0],
        values[0] if free else last[8],
        last[5],
        values[1] if free else initial[0],
    ]
    assert torch.equal(found[0][0], torch.stack(wanted))


@TWO_STREAMS
@pytest.mark.parametrize("group", [0, 16])
@pytest.mark.parametrize("detach", ["none", "states", "parameters"])
def test_the_compiled_loss_is_that_of_torch_operations(
    stream: EventStream, changes: int, group: int, detach: str, monkeypatch
) -> None:
    torch.manual_seed(0)
    window = window_of(stream, 0, 60)
    if group:
        candidates = Candidates.drawn(window, torch.rand(stream.num_destinations) / 25, 14, group)
        plan = make_plan(stream, None, (candidates.ids + stream.node_offset).int())
    else:
        plan, candidates, _ = looked_for(stream, changes, stream.num_destinations)
    head = CandidateHead(stream.num_destinations, changes == 1, 32, 16, 4, 0.0)
    nn.init.normal_(head.static.weight)
    nn.init.normal_(head.project.weight)
    recent = torch.stack([torch.randperm(stream.num_destinations)[:4] for _ in range(60)]).int()
    recent[::3] = -1
    past = Past(torch.zeros(60, 2), recent, torch.zeros(60, 4))
    states = torch.randn(120 + len(plan.nodes), 32, requires_grad=True)
    rolled = Rolled(window, states, plan, past, torch.rand(60, 2, 7), torch.rand(60, 4, 7))
    matching = Matching(plan, torch.rand(120) < 0.5, 0.01, detach)
    found = []
    for native in (True, False):
        row_gradients(head.static.weight).clear()
        with monkeypatch.context() as patch:
            if not native:
                for module in ("scoring", "query", "targets"):
                    patch.setattr(f"recloom_edge.{module}.library", lambda name: None)
            loss = head.loss(rolled, candidates, matching)
            learned = [*head.project.parameters(), *head.query.parameters(), *head.ages.parameters()]
            wanted = [states, *learned, head.static.weight]
            gradients = torch.autograd.grad(3 * loss, wanted, allow_unused=True)
        dense = torch.zeros_like(head.static.weight)
        for gradient in row_gradients(head.static.weight):
            dense.index_add_(0, *gradient.expand())
        found.append([loss.detach(), *gradients[:-1], dense])
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)
        assert bool(theirs.any())


def test_what_is_dropped_gets_no_gradient() -> None:
    torch.manual_seed(0)
    plan, before = make_plan(small(400), None), torch.ones(400, 16)
    states, gap, project = torch.ones(800 + len(plan.nodes), 16), torch.ones(400, 7), torch.zeros(16, 7)
    query = Query(before, project, gap, plan, 0.2)
    out = query.forward(states)
    assert float((out == 0).float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(out.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(query.backward(states, torch.ones_like(out), torch.zeros_like(states))[0], out[:, 16:32])
    assert not torch.equal(out, Query(before, project, gap, plan, 0.2).forward(states))


@pytest.mark.parametrize("native", [True, False])
def test_history(native: bool, monkeypatch) -> None:
    if not native:
        monkeypatch.setattr(kernels, "library", lambda name: None)
    stream = small(300)
    time = torch.full((stream.num_nodes,), -1)
    recent, when = torch.full((40, 3), -1, dtype=torch.int32), torch.full((40, 3), -1)
    lists = [torch.full((size,), -1, dtype=torch.int32) for size in (40, 300, 300)] + [
        torch.zeros(1, dtype=torch.int64)
    ]
    last: dict[int, int] = {}
    lines: dict[int, list[tuple[int, int]]] = {}
    for start in range(0, 300, 77):
        part = window_of(stream, start, min(start + 77, 300))
        gaps, found, ages = kernels.history(part.source, part.destination, part.time, 40, time, recent, when)
        asked = torch.stack([part.destination, (part.destination + 1) % 25], dim=1)
        places, length = kernels.recent_places(part.source, part.destination, asked, *lists)
        for i, (u, v, now) in enumerate(
            zip(part.source.tolist(), part.destination.tolist(), part.time.tolist(), strict=True)
        ):
            assert gaps[i].tolist() == [now - last[node] if node in last else -1 for node in (u, v + 40)]
            line = lines.setdefault(u, [])
            newest = line[:3] + [(-1, 0)] * (3 - len(line[:3]))
            assert found[i].tolist() == [item for item, _ in newest]
            assert ages[i].tolist() == [now - moment if item >= 0 else -1 for item, moment in newest]
            items = [item for item, _ in line]
            assert places[i].tolist() == [items.index(x) if x in items else -1 for x in asked[i].tolist()]
            assert length[i] == len(items)
            lines[u] = [(v, now), *(pair for pair in line if pair[0] != v)]
            last[u] = last[v + 40] = now


def test_times_are_exact_where_float32_is_not() -> None:
    gap = torch.tensor([2_000_000_001 - 2_000_000_000, -1])
    found = time_features(gap, 1)
    assert found[0, 0] == pytest.approx(0.0693147, rel=1e-5)
    assert found[1].tolist() == [0.0] * 7


def build(kind: str, stream: EventStream, free: str = "states") -> nn.Module:
    torch.manual_seed(0)
    schema = stream.schema().to_dict()
    training = stream.slice(*stream.span("train"))
    if kind == "JODIE":
        model = JODIE(schema, dim=16)
    else:
        update, _, near = kind.partition(" over ")
        neighbours = 4 if near else 0
        model = EDGE(
            schema,
            dim=16,
            static_dim=8,
            recent=3,
            share=0.1,
            segments=2,
            update=update,
            free=free,
            neighbours=neighbours,
        )
        if near:
            nn.init.normal_(model.messages.out.weight)
    model.prepare(training)
    with torch.no_grad():  # static embeddings that tell destinations apart, as after training
        (model.static if kind == "JODIE" else model.head.static).weight.normal_()
    return model.eval()


@pytest.mark.parametrize("kind", ["rnn", "gru", "identity", "JODIE", "rnn over neighbours"])
@pytest.mark.parametrize("unipartite", [False, True])
def test_the_future_does_not_reach_the_past(kind: str, unipartite: bool) -> None:
    if kind == "JODIE" and unipartite:
        return
    if kind.endswith("neighbours"):
        pytest.importorskip("dgl")
    stream = one_kind(300) if unipartite else small(300)
    model = build(kind, stream)
    start, stop = stream.span("val")[0], len(stream)
    middle = (start + stop) // 2

    def scores(of: EventStream, size: int) -> torch.Tensor:
        model.replay([of.slice(0, start)])
        return torch.cat([model.score(window) for window in windows(of, size, start, stop)])

    honest = scores(stream, 1000)
    assert torch.allclose(scores(stream, 7), honest, atol=1e-4), "the size of windows does not matter"
    # every event from `middle` on gets another destination, the one at `middle` too: what is said of it must stay
    other = stream.destination.clone()
    other[middle:] = (other[middle:] + torch.randint(1, 20, (stop - middle,), dtype=torch.int32)) % 25
    other[middle:] = (
        torch.where(other[middle:] == stream.source[middle:], 26, other[middle:]) if unipartite else other[middle:]
    )
    changed = EventStream(
        stream.source, other, stream.time, stream.num_sources, stream.num_destinations, stream.bipartite
    )
    found = scores(changed, 1000)
    assert torch.equal(found[: middle - start + 1], honest[: middle - start + 1])
    assert not torch.allclose(found[middle - start + 1 :], honest[middle - start + 1 :]), "and the past is used"


def test_scores_are_the_same_in_windows_of_any_size() -> None:
    stream, found = PowerLawStream(events=400, sources=40, destinations=200).build(), []
    model = build("rnn", stream)
    for size in (15, 70):
        model.replay([stream.slice(0, 200)])
        found.append(torch.cat([model.score(window) for window in windows(stream, size, 200, 340)]))
    assert torch.allclose(*found, atol=1e-5), "nodes without an event stay as they begin"


@pytest.mark.parametrize("mean", ["event", "batch"])
def test_jodie_at_once_is_jodie_event_by_event(mean: str) -> None:
    stream, found = small(300), []
    for schedule in ("window", "event" if mean == "event" else "tbatch"):
        torch.manual_seed(0)
        model = JODIE(stream.schema().to_dict(), dim=16, schedule=schedule, mean=mean)
        model.replay([stream.slice(0, 100)])
        loss = model.train_window(window_of(stream, 100, 300))
        found.append(
            [loss.detach(), *torch.autograd.grad(loss, [*model.cell.parameters(), *model.predict.parameters()])]
        )
    for mine, theirs in zip(*found, strict=True):
        if mean == "event":
            assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-7)
        else:  # a t-batch may see another version of the last item
            assert float((mine - theirs).norm() / theirs.norm()) < 0.05


def test_tgn_decodes_all_pairs_as_its_layers_do(monkeypatch) -> None:
    torch.manual_seed(0)
    left, right, weight = (torch.randn(*size, requires_grad=True) for size in ((7, 10), (37, 10), (10,)))
    wanted = torch.relu(left[:, None] + right) @ weight
    given = torch.randn_like(wanted)
    for native in (True, False):
        if not native:
            monkeypatch.setattr("recloom_edge.pairs.library", lambda name: None)
        found = pair_scores(left, right, weight)
        assert torch.allclose(found, wanted, atol=1e-5)
        pairs = (
            torch.autograd.grad((x * given).sum(), (left, right, weight), retain_graph=True) for x in (found, wanted)
        )
        for mine, theirs in zip(*pairs, strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_tgn_softmax_is_the_cross_entropy_of_its_scores() -> None:
    pytest.importorskip("dgl")
    from recloom_edge.tgn import TGN

    torch.manual_seed(0)
    stream = small(400)
    window, losses = window_of(stream, 200, 260), {}
    for candidates in (25, 20):  # all, sampled
        torch.manual_seed(0)
        model = TGN(stream.schema().to_dict(), dim=8, neighbours=3, dropout=0.0, loss="softmax", candidates=candidates)
        model.prepare(stream)
        model.replay([stream.slice(0, 200)])
        kept = model.snapshot()
        losses[candidates] = model.train_window(window)
        model.restore(kept)
        wanted = nn.functional.cross_entropy(model.score(window), window.destination.long())
    assert losses[25].item() == pytest.approx(wanted.item(), rel=1e-4)
    assert losses[20].item() == pytest.approx(wanted.item(), rel=0.2)
    losses[20].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_tgn_sees_nothing_later() -> None:
    pytest.importorskip("dgl")
    from recloom_edge.tgn import TGN

    torch.manual_seed(0)
    stream = small(400)
    model = TGN(stream.schema().to_dict(), dim=8, neighbours=3).eval()
    start = stream.span("val")[0]

    def scores(of: EventStream) -> torch.Tensor:
        model.replay([of.slice(0, start)])
        return torch.cat([model.score(window) for window in windows(of, 20, start)])

    honest = scores(stream)
    other = stream.destination.clone()
    other[start + 50 :] = (other[start + 50 :] + 7) % 25
    changed = EventStream(stream.source, other, stream.time, 40, 25)
    found = scores(changed)
    assert torch.equal(found[:40], honest[:40])
    assert torch.allclose(found[40:51], honest[40:51], atol=1e-6), "in the batch with the change, up to it"
    assert not torch.allclose(found[51:60], honest[51:60]), "and then the batch's own events are seen"


@pytest.mark.parametrize("stream", [small(150), one_kind(150)], ids=["bipartite", "one kind"])
def test_tgn_ranks_destinations_as_they_are_before_each_event(stream: EventStream) -> None:
    pytest.importorskip("dgl")
    from recloom_edge.tgn import TGN

    torch.manual_seed(0)
    offset, count = stream.node_offset, stream.num_destinations
    model = TGN(stream.schema().to_dict(), dim=8, neighbours=3).eval()
    model.replay([stream.slice(0, 100)])
    window, lines, wanted = window_of(stream, 100, 112), {}, []
    since = dict.fromkeys(range(stream.num_nodes), int(window.time[0]))  # when each one's newest version is made

    def embedded(node: int, now: int) -> torch.Tensor:
        line = (lines.get(node, []) + [(-1, 0)] * 3)[:3]
        near = Near(*torch.tensor(line).t()[:, None], torch.zeros(1, 3, 0))
        return model.embed(torch.tensor([node]), torch.tensor([now]), near)

    head = stream.slice(0, 112)
    ends = zip(head.source.tolist(), (head.destination + offset).tolist(), head.time.tolist(), strict=True)
    for event, (u, v, now) in enumerate(ends):
        if event >= 100:
            user = embedded(u, now)
            items = torch.cat([embedded(j + offset, since[j + offset]) for j in range(count)])
            pairs = torch.cat([user.expand(count, -1), items], dim=1)
            wanted.append(model.second(torch.relu(model.first(pairs))).squeeze(1))
            if event < 111:
                since |= dict.fromkeys((u, v), int(stream.time[event + 1]))
        lines.setdefault(u, []).insert(0, (v, now))
        lines.setdefault(v, []).insert(0, (u, now))
    assert torch.allclose(model.score(window), torch.stack(wanted), atol=1e-5)


def test_tgn_keeps_last_messages_and_recent_neighbours() -> None:
    pytest.importorskip("dgl")
    from recloom_edge.tgn import TGN

    stream = small(300)
    model = TGN(stream.schema().to_dict(), dim=8, neighbours=4)
    model.replay([stream])
    last: dict[int, list[tuple[int, int]]] = {}
    for u, v, now in zip(stream.source.tolist(), (stream.destination + 40).tolist(), stream.time.tolist(), strict=True):
        last.setdefault(u, []).insert(0, (v, now))
        last.setdefault(v, []).insert(0, (u, now))
    for node, line in last.items():
        assert (int(model.near.node[node, 0]), int(model.near.at[node, 0])) == line[0]
        wanted = (line + [(-1, 0)] * 4)[:4]
        assert model.near.node[node].tolist() == [other for other, _ in wanted]
    model.reset()
    told = {}
    for window in windows(stream, 100):
        model.observe(window)
        for u, v in zip(window.source.tolist(), (window.destination + 40).tolist(), strict=True):
            told |= {u: model.states[v].clone(), v: model.states[u].clone()}
    assert all(torch.equal(model.other[node], memory) for node, memory in told.items()), "as it was then"
    assert any(bool(memory.any()) for memory in told.values())
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model.reset()
    for window in windows(stream, 100):
        optimizer.zero_grad()
        model.train_window(window).backward()
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "memory learns too"


@pytest.mark.parametrize("unipartite", [False, True])
def test_edge_reads_the_newest_states_of_recent_neighbours(unipartite: bool, monkeypatch) -> None:
    pytest.importorskip("dgl")
    stream = one_kind(150) if unipartite else small(150)
    model, offset = build("gru over neighbours", stream), stream.node_offset
    model.replay([stream.slice(0, 90)])
    window, read = window_of(stream, 90, 150), []
    rows = newest_rows

    def spied(*given) -> torch.Tensor:
        read.append((*given, rows(*given)))
        return read[-1][-1]

    monkeypatch.setattr("recloom_edge.attention.newest_rows", spied)
    before = model.memory.states.clone()
    rolled = model.roll(window, cut=False, given=torch.arange(stream.num_destinations))
    ((_, _, _, events, nodes, found),) = read
    lines: dict[int, list[int]] = {}
    newest: dict[int, torch.Tensor] = {}
    wanted = []
    for event, (u, v) in enumerate(zip(stream.source.tolist(), (stream.destination + offset).tolist(), strict=True)):
        if event >= 90:
            wanted += [(event - 90, node, newest.get(node, before[node])) for node in lines.get(u, [])[:4]]
            newest |= {u: rolled.states[2 * (event - 90)], v: rolled.states[2 * (event - 90) + 1]}
        lines.setdefault(u, []).insert(0, v)
        lines.setdefault(v, []).insert(0, u)
    assert list(zip(events.tolist(), nodes.tolist(), strict=True)) == [(event, node) for event, node, _ in wanted]
    met = torch.tensor([bool(state.any()) for _, _, state in wanted])
    states = torch.stack([state for _, _, state in wanted])
    assert torch.equal(rolled.states[found][met], states[met])
    assert bool(rolled.told.any())
    model.train().train_window(window).backward()
    assert all(bool(p.grad.any()) for p in model.messages.parameters() if p.requires_grad)


def test_logs_with_all_that_logs_have_are_prepared_and_learned(tmp_path: Path) -> None:
    rows = [(i % 7, i * i % 5 + 2**31, 1000 + 60 * i) for i in range(120)]
    rows[40] = rows[41] = rows[42]  # repeated
    rows[10], rows[11] = rows[11], rows[10]  # out of order
    rows[90], rows[119] = (10**12, 3, 6400), (10**12, 4, 8140)  # nodes that training has not, one seen in test alone
    log, out = tmp_path / "log.csv", tmp_path / "out"
    log.write_text("user,item,timestamp,label\n" + "".join(f"{u},{v},{t},0\n" for u, v, t in rows))
    result = run_cli(["prepare", "jodie", "--input", str(log), "--output", str(out)])
    assert result.code == 0, result.err
    common = [
        "--data=EventStreams",
        f"--data.path={out}",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        "--trainer.logger=false",
    ]
    common += ["--trainer.enable_progress_bar=false", f"--run_dir={tmp_path / 'run'}"]
    common += ["--checkpoint.monitor=val_mrr", "--checkpoint.mode=max"]
    result = run_cli(["fit", "--model=EDGE", "--model.dim=16", *common])
    assert result.code == 0, result.err
    result = run_cli(["prepare", "graph", "--unipartite", "--input", str(log), "--output", str(out), "--overwrite",
                      "--source", "user", "--destination", "item", "--time", "timestamp"])  # fmt: skip
    assert result.code == 0, result.err
    result = run_cli(["fit", "--model=JODIE", *common, f"--run_dir={tmp_path / 'other'}"])
    assert result.code == 2
    assert "one kind of node" in result.out + result.err


def test_what_to_install_is_said_where_dgl_is_missing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "dgl", None)
    for module in ("tgn", "attention"):
        monkeypatch.delitem(sys.modules, f"recloom_edge.{module}", raising=False)
    with pytest.raises(ComponentImportError, match=r"recloom\[edge\]"):
        catalog().models.load("TGN")
    result = run_cli(["fit", "--model=TGN", "--data=PowerLawEvents", f"--run_dir={tmp_path}"])
    assert result.code == 2
    assert "pip install 'recloom[edge]'" in result.out + result.err
    assert catalog().models.load("EDGE") is EDGE
    with pytest.raises(RecloomError, match=r"(?s)neighbours.*recloom\[edge\]"):
        EDGE(small(50).schema().to_dict(), neighbours=3)


def test_a_resumed_fit_equals_one_that_never_stopped(tmp_path: Path) -> None:
    common = ["--model=EDGE", "--model.dim=16", "--model.share=0.1", "--data=PowerLawEvents", "--data.events=3000"]
    common += ["--data.sources=60", "--data.destinations=30", "--data.window=200", "--trainer.accelerator=cpu"]
    common += ["--trainer.enable_progress_bar=false", "--trainer.num_sanity_val_steps=0", "--trainer.logger=false"]
    common += ["--checkpoint.monitor=val_mrr", "--checkpoint.mode=max", "--trainer.limit_val_batches=1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_cli(["fit", *common, f"--run_dir={whole}", "--trainer.max_steps=15"]).code == 0
    assert run_cli(["fit", *common, f"--run_dir={parts}", "--trainer.max_steps=7"]).code == 0
    last = parts / "checkpoints" / "last.ckpt"
    resumed = [f"--ckpt_path={last}", f"--run_dir={parts}-2", "--trainer.max_steps=15"]
    result = run_cli(["fit", *common, *resumed])
    assert result.code == 0, result.err
    folder = next(path for path in (tmp_path / "parts-2", parts) if (path / "checkpoints").exists())
    one, two = (checkpoint.read(path / "checkpoints" / "last.ckpt") for path in (whole, folder))
    assert one["global_step"] == two["global_step"] == 15
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name


def test_the_evaluator_gives_nothing_away() -> None:
    stream = small(2000)
    training = stream.slice(*stream.span("train"))
    evaluation = Evaluation(stream, training, "test")
    for window in windows(stream, 64, *stream.span("test")):
        evaluation.add(window, torch.zeros(len(window), stream.num_destinations))
    found = evaluation.compute()
    assert found["mrr"] == pytest.approx(1 / 13), "25 that are alike: all have rank 13"
    assert found["recall"] == 0
    for kind in ("", "historical_", "inductive_"):
        assert found[f"{kind}ap"] == pytest.approx(0.5)
        assert found[f"{kind}auc"] == pytest.approx(0.5)
    evaluation = Evaluation(stream, training, "test")
    negatives = evaluation._negatives(stream.source.long().numpy(), stream.destination.long().numpy())
    for kind, values in negatives.items():
        assert not bool((values == stream.destination).any()), f"{kind} negatives are never the destination"
        assert bool(((values >= 0) & (values < 25)).all())
    pairs = set(zip(training.source.tolist(), training.destination.tolist(), strict=True))
    met = [(u, v) in pairs for u, v in zip(stream.source.tolist(), negatives["historical"].tolist(), strict=True)]
    assert sum(met) / len(met) > 0.9
    # an oracle is found out to be one
    evaluation = Evaluation(stream, training, "test")
    for window in windows(stream, 64, *stream.span("test")):
        evaluation.add(window, nn.functional.one_hot(window.destination.long(), 25).float())
    found = evaluation.compute()
    assert (found["mrr"], found["recall"], found["ap"], found["auc"]) == (1, 1, 1, 1)


def test_ranks_and_trivial_baselines_by_hand() -> None:
    scores = torch.tensor([[3.0, 1.0, 1.0, 0.0], [float("nan"), 1.0, 0.0, 0.0]])
    assert ranks(scores, torch.tensor([2, 0])).tolist() == [2.5, 4.0]
    source = torch.tensor([0, 0, 1, 0, 0], dtype=torch.int32)
    destination = torch.tensor([1, 2, 2, 1, 3], dtype=torch.int32)
    stream = EventStream(source, destination, torch.arange(5), 2, 4, bounds=(3, 3))
    evaluation = Evaluation(stream, stream.slice(0, 3), "test")
    evaluation.add(window_of(stream, 3, 5), torch.zeros(2, 4))
    part = evaluation.parts[0]
    assert part["recent_rank"].tolist() == [2, 3.5], "1 was met before 2; 3 was never met, nor was 0"
    assert part["popularity_rank"].tolist() == [2, 3.5], "counts at the window's start: 0, 1, 2, 0"
    assert part["new"].tolist() == [False, True]


@pytest.mark.parametrize("kind", ["learned", "states"])
def test_matching_loss_is_its_formula(kind: str) -> None:
    stream = small(400)
    model = build("rnn", stream, kind).train()
    model.head.dropout = 0.0
    window = window_of(stream, 150, 250)
    losses = {}
    for weight in (0.0, 3.0):
        model.replay([stream.slice(0, 150)])
        model.weights["matching"] = weight
        losses[weight] = model.train_window(window)
    model.replay([stream.slice(0, 150)])
    free, k = model.decoupled, model.decoupled.segment(150)
    before = model._newest(free.cut.nonzero().squeeze(1).int()).detach()
    with torch.no_grad():
        states = model.roll(window, cut=True).states
    if kind == "states":
        assert torch.equal(free.embeddings[k], before), "P are the states as training reaches the segment"
    assert k == 1
    total = 0.0
    for event, (u, v) in enumerate(zip(window.source.tolist(), window.destination.tolist(), strict=True)):
        for side, node in enumerate((u, v + 40)):
            if free.cut[node]:
                total += float(
                    (states[2 * event + side] - free.embeddings[k, free.index[node]]).detach().square().sum()
                )
    assert total > 0
    assert (losses[3.0] - losses[0.0]).item() == pytest.approx(3 * total / 200, rel=1e-3)


def test_plugin() -> None:
    check_plugin(
        "edge", {"EDGE": {"schema": small(50).schema().to_dict()}, "JODIE": {"schema": small(50).schema().to_dict()}}
    )
