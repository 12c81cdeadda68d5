"""Distribution kernels: engines against float64, estimators against values by hand and closed forms, bad input."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from recloom.catalog import Catalog
from recloom.errors import DataError, RecloomError
from recloom.plugins import catalog
from recloom.testing import check_plugin
from recloom_distkernels.divergence import Divergence, NeighbourDivergence, SetDivergence
from recloom_distkernels.gram import DuplicateWarning, SetGram, stack
from recloom_distkernels.jensen_shannon import JensenShannon
from recloom_distkernels.kernels import GaussianKernel, Kernel, PolynomialKernel
from recloom_distkernels.knn_faiss import FaissKnn
from recloom_distkernels.knn_native import NativeKnn
from recloom_distkernels.knn_torch import TorchKnn
from recloom_distkernels.knn_tree import TreeKnn
from recloom_distkernels.mmd import MMD, MeanMap
from recloom_distkernels.neighbours import KL, Renyi, Tsallis
from recloom_distkernels.pairwise import estimate_seconds, pairwise_divergences
from recloom_distkernels.psd import FlipPSD, PSDRepair
from recloom_distkernels.registry import names, parse
from recloom_distkernels.samplesets import SampleSets
from recloom_distkernels.sliced import SlicedWasserstein

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.*")

ENGINES = {"torch": TorchKnn, "faiss": FaissKnn, "tree": TreeKnn}
if NativeKnn.available():
    ENGINES["native"] = NativeKnn


def one(result):
    (found,) = result.there.values()
    return found


def brute(x, y, bounds, k, first=None):
    """T x k x N squared distances in float64, by differences, set by set."""
    out = np.full((len(bounds) - 1, k, len(x)), np.inf)
    x, y = x.double().numpy(), y.double().numpy()
    for t, (lo, hi) in enumerate(itertools.pairwise(bounds.tolist())):
        squared = ((x[:, None] - y[None, lo:hi]) ** 2).sum(-1)
        if first is not None:
            rows = np.arange(len(x))
            own = rows + first - lo
            inside = (own >= 0) & (own < hi - lo)
            squared[rows[inside], own[inside]] = np.inf
        ordered = np.sort(squared, axis=1)[:, :k]
        out[t, : ordered.shape[1]] = ordered.T
    return out


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_engines_are_exact(name, dtype):
    if name == "faiss" and dtype == torch.float64:
        with pytest.raises(RecloomError, match="float32"):
            FaissKnn().search(torch.zeros(3, 1, dtype=dtype), torch.zeros(3, 1, dtype=dtype), torch.tensor([0, 3]), 1)
        return
    engine, generator = ENGINES[name](), torch.Generator().manual_seed(0)
    sizes = (70, 3, 131, 1, 20)
    bounds = torch.tensor([0, *itertools.accumulate(sizes)])
    for dim, k, kind in itertools.product((1, 2, 9), (1, 3, 7), ("plain", "offset", "near duplicates")):
        points = torch.randn(int(bounds[-1]), dim, generator=generator, dtype=dtype)
        if kind == "offset":
            points += 1000
        elif kind == "near duplicates":
            points = points * 1e-4 + torch.randint(0, 3, (len(points), 1), generator=generator) * 5.0
        tolerance = 1e-6 if dtype == torch.float32 else 1e-13
        for first, x, y, b in (
            (None, points[:90], points, bounds),
            (0, points, points, bounds),
            (-5, points[3:200], points[8:], torch.tensor([0, 65, 217])),
            (150, points[150:200], points[:60], torch.tensor([0, 60])),
            (-150, points[:60], points[150:200], torch.tensor([0, 50])),
        ):
            found = engine.search(x, y, b, k, first).double().numpy()
            np.testing.assert_allclose(np.sqrt(found), np.sqrt(brute(x, y, b, k, first)), rtol=tolerance)
        own = engine.own(points, bounds, k).double().numpy()
        for lo, hi in itertools.pairwise(bounds.tolist()):
            mine = brute(points[lo:hi], points[lo:hi], torch.tensor([0, hi - lo]), k, 0)[0]
            np.testing.assert_allclose(np.sqrt(own[:, lo:hi]), np.sqrt(mine), rtol=tolerance)


@pytest.mark.skipif("native" not in ENGINES, reason="there is no C compiler here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_directions_at_once(dtype, monkeypatch):
    engine, generator = NativeKnn(), torch.Generator().manual_seed(0)
    x_bounds, y_bounds = (
        torch.tensor([0, *itertools.accumulate(s)]) for s in ((5, 70, 131, 1, 64, 16), (3, 40, 1, 66))
    )
    for dim, k in itertools.product((1, 9), (1, 3, 5, 6)):
        x = torch.randn(int(x_bounds[-1]), dim, generator=generator, dtype=dtype)
        y = torch.randn(int(y_bounds[-1]), dim, generator=generator, dtype=dtype)
        there, back = engine.both(x, x_bounds, y, y_bounds, k)
        torch.testing.assert_close(there, engine.search(x, y, y_bounds, k), rtol=1e-6, atol=0)
        torch.testing.assert_close(back, engine.search(y, x, x_bounds, k), rtol=1e-6, atol=0)
    sets = SampleSets(x, x_bounds).select([1, 2, 4, 5])
    apart = pairwise_divergences(sets, None, ["kl", "l2", "hellinger"], [3, 4])
    monkeypatch.setattr(NativeKnn, "halves", lambda *_: True)
    for memory in (1, 1 << 20):
        shares = []
        once = pairwise_divergences(
            sets, None, ["kl", "l2", "hellinger"], [3, 4], memory=memory, progress=shares.append
        )
        assert shares[-1] == 1
        for key in apart.there:
            torch.testing.assert_close(once.there[key], apart.there[key], rtol=1e-5, atol=1e-6)


def test_hand_computed():
    kl = pairwise_divergences(SampleSets.from_list([[0, 1, 3], [0.2, 1.2, 3.2, 7.2]]), None, [KL(clamp=False)], [2])
    nu, rho = np.log([1.2, 0.8, 1.8]), np.log([3, 2, 3])
    assert float(one(kl)[0, 1]) == pytest.approx((nu - rho).mean() + math.log(4 / 2), abs=1e-14)
    assert one(kl)[[0, 1], [1, 0]].tolist() == pytest.approx([-0.087988515, -0.527486642], abs=1e-8)
    js = JensenShannon(clamp=False)
    found = one(pairwise_divergences(SampleSets.from_list([[0, 1, 3, 6], [0.2, 1.2, 3.2, 6.2, 10.2]]), None, [js], [2]))
    assert float(found[0, 1]) == pytest.approx(0.012098067, abs=1e-9)
    assert float(found[1, 0]) == float(found[0, 1])


def test_reference_values_and_identities():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(50, 3)), generator.normal(size=(70, 3)) + 0.3
    names = ["kl", "renyi:0.8", "hellinger", "bc", "tsallis:0.8", "linear", "l2", "js"]
    both = pairwise_divergences(SampleSets.from_list([x, y]), None, names, [3, 5])
    apart = pairwise_divergences(SampleSets.from_list([x]), SampleSets.from_list([y]), names, [3, 5])
    value = {key: float(found[0, 1]) for key, found in both.there.items()}
    assert value["kl", 3] == pytest.approx(0.298148695, abs=1e-7)
    assert value["renyi:0.8", 3] == pytest.approx(0.295857218, abs=1e-7)
    assert value["hellinger", 3] == pytest.approx(0.366804034, abs=1e-7)
    for key, expected in value.items():  # one search for all k, whichever way the sets come
        assert float(apart.there[key]) == pytest.approx(expected, rel=1e-12)
        assert float(apart.back[key]) == pytest.approx(float(both.there[key][1, 0]), rel=1e-12)
    integral = math.exp(value["renyi:0.8", 3] * -0.2)
    assert value["tsallis:0.8", 3] == pytest.approx((integral - 1) / -0.2)
    assert value["hellinger", 3] == pytest.approx(math.sqrt(1 - value["bc", 3]))
    near = one(pairwise_divergences(SampleSets.from_list([x, y]), None, [Renyi(0.999)], [3]))
    assert float(near[0, 1]) == pytest.approx(value["kl", 3], rel=0.02)
    # D_{a,b} = ∫ p^a q^b p of ITE with a = 1, b = 0 is ∫ p², on the diagonal of `linear`: from rho and n - 1
    rho = np.sqrt(brute(torch.tensor(x), torch.tensor(x), torch.tensor([0, 50]), 3, 0)[0, 2])
    assert float(both.there["linear", 3][0, 0]) == pytest.approx(2 / (4 / 3 * np.pi) / 49 * np.mean(rho**-3.0))
    for name, of_itself in (("kl", 0), ("renyi:0.8", 0), ("hellinger", 0), ("bc", 1), ("l2", 0), ("js", 0)):
        assert both.there[name, 3].diagonal().tolist() == [of_itself] * 2
    for name in ("l2", "js"):
        assert torch.equal(both.there[name, 3], both.there[name, 3].t())
    with pytest.raises(RecloomError, match="limit"):
        Tsallis(1.0)


CLOSED_FORMS = {  # 1-d: N(.3, 1) against N(-.5, 1.7²); 2-d: N(0, I) against N((1, 0), diag(2.25, .64))
    1: {"kl": 0.314365, "renyi:0.8": 0.282096, "hellinger": 0.320585, "l2": 0.274656, "linear": 0.186298},
    2: {"kl": 0.408016, "renyi:0.8": 0.354388, "hellinger": 0.348255, "l2": 0.166365, "linear": 0.059107},
}


def gaussians(dim, n, run):
    generator = np.random.default_rng([7, run, n])
    x, y = generator.normal(size=(2, n, dim))
    x, y = (x + 0.3, y * 1.7 - 0.5) if dim == 1 else (x, y * [1.5, 0.8] + [1, 0])
    return SampleSets.from_list([x.astype(np.float32), y.astype(np.float32)])


@pytest.mark.parametrize("dim", CLOSED_FORMS)
def test_closed_forms_of_gaussians(dim):
    """Means of 8 runs of 10,000 points: within .015 (KL) and .01 of the truth, as stated beforehand."""
    names = list(CLOSED_FORMS[dim])
    engine = ENGINES.get("native", TreeKnn)()
    runs = [pairwise_divergences(gaussians(dim, 10_000, run), None, names, [3], engine) for run in range(8)]
    for name, value in CLOSED_FORMS[dim].items():
        mean = np.mean([float(run.there[name, 3][0, 1]) for run in runs])
        assert mean == pytest.approx(value, abs=0.015 if name == "kl" else 0.01), name


def test_jensen_shannon_of_gaussians():
    runs = [one(pairwise_divergences(gaussians(1, 2000, run), None, ["js"], [3])) for run in range(4)]
    assert np.mean([float(run[0, 1]) for run in runs]) == pytest.approx(0.091124, abs=0.018)


class Watched(TorchKnn):
    """Counts the pairs of points that are searched, and the most distances that are held."""

    def __init__(self):
        super().__init__()
        self.pairs = self.most = 0

    def search(self, queries, targets, bounds, k, first=None):
        found = super().search(queries, targets, bounds, k, first)
        self.pairs += len(queries) * len(targets)
        self.most = max(self.most, found.numel() * found.element_size())
        return found


def test_one_search_in_bounded_memory():
    generator = np.random.default_rng(0)
    x = SampleSets.from_list([generator.normal(size=(50, 2)) for _ in range(40)])
    few, many = Watched(), Watched()
    pairwise_divergences(x, None, ["kl"], [3], few)
    everything = ["kl", "renyi:0.8", "tsallis:0.8", "hellinger", "bc", "linear", "l2"]
    pairwise_divergences(x, None, everything, [2, 3, 5], many, memory=100_000)
    own = 40 * 50**2
    assert few.pairs == many.pairs == 2000**2 + own
    assert many.most <= 100_000 < few.most


def test_mmd_and_sliced_wasserstein():
    generator = np.random.default_rng(1)
    biased, unbiased = 0.0, 0.0
    for _ in range(6):
        x, y = generator.normal(size=(500, 2)), generator.normal(size=(500, 2)) * [1.5, 0.8] + [1, 0]
        sets = SampleSets.from_list([x, y])
        biased += float(MMD(1.0).squared(sets, sets)[0, 1]) / 6
        unbiased += float(MMD(1.0, unbiased=True).squared(sets, sets)[0, 1]) / 6
    assert unbiased == pytest.approx(0.084913, abs=0.018)
    assert 0 < biased - unbiased < 0.01
    x, y = SampleSets.from_list([x[:7], x[:3]]), SampleSets.from_list([y[:5]])
    squared = ((x[1][:, None] - y[0]) ** 2).sum(-1)
    by_hand = torch.exp(-squared / (2 * 0.7**2)).mean()
    assert float(MeanMap(0.7).matrix(x, y)[1, 0]) == pytest.approx(float(by_hand))
    torch.testing.assert_close(MMD(0.7).squared(x, y), MMD(0.7).squared(stack(x, y), stack(x, y))[:2, 2:])
    line = SampleSets.from_list([[0.0, 1, 2, 3], [10.0, 11, 12, 13], [0.0, 0, 1, 1, 2, 2, 3, 3]])
    found = SlicedWasserstein(8).matrix(line, line)
    assert found[0].tolist() == pytest.approx([0, 10, 0])
    assert float(found.diagonal().abs().max()) == 0


def test_scale_offset_and_duplicates():
    generator = np.random.default_rng(2)
    x = [generator.normal(size=(60, 4)) for _ in range(3)]
    names = ["kl", "renyi:0.5", "js"]
    plain = pairwise_divergences(SampleSets.from_list(x), None, names, [3])
    for scale, offset in ((1e-4, 0.0), (1e5, 0.0), (1.0, 1000.0)):
        moved = pairwise_divergences(SampleSets.from_list([a * scale + offset for a in x]), None, names, [3])
        for key, values in plain.there.items():
            torch.testing.assert_close(moved.there[key], values, rtol=1e-8, atol=1e-8)
    assert plain.clamped == 0
    rounded = SampleSets.from_list([np.round(a[:, :1], 1) for a in x])
    found = pairwise_divergences(rounded, None, ["kl", "l2", "renyi:0.8"], [2, 3])
    assert found.clamped > 0.05
    assert all(bool(torch.isfinite(values).all()) for values in found.there.values())
    with pytest.warns(DuplicateWarning, match="coincide"):
        SetGram("kl", k=3).fit(SampleSets.from_list([np.concatenate([a[:20], np.repeat(a[:2], 4, axis=0)]) for a in x]))
    with pytest.raises(DataError, match="coincide"):
        pairwise_divergences(SampleSets.from_list([np.zeros((5, 2)), np.zeros((6, 2))]))
    assert MMD().matrix(rounded, rounded).isfinite().all()


def test_memory_and_blocks_do_not_change_the_values():
    generator = np.random.default_rng(3)
    x = SampleSets.from_list([generator.normal(size=(n, 3)) for n in (9, 20, 12, 15, 8)])
    y = SampleSets.from_list([generator.normal(size=(n, 3)) for n in (10, 16)])
    names = ["kl", "l2", "js"]
    shares = []
    for other in (None, y):
        whole = pairwise_divergences(x, other, names, [4])
        small = pairwise_divergences(x, other, names, [4], memory=1, progress=shares.append)
        for key in whole.there:
            torch.testing.assert_close(small.there[key], whole.there[key], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(small.back[key], whole.back[key], rtol=1e-12, atol=1e-12)
    assert max(shares) == pytest.approx(1)
    assert shares[0] < 0.2
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threaded = pairwise_divergences(x, None, names, [4], memory=1)
        with pytest.raises(RecloomError, match="float32"):
            pairwise_divergences(x, None, names, [4], FaissKnn(), memory=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    whole = pairwise_divergences(x, None, names, [4])
    for key, values in whole.there.items():
        torch.testing.assert_close(threaded.there[key], values, rtol=1e-12, atol=1e-12)
    assert estimate_seconds(x, y, ["kl"], trial=0.001) > 0


def test_sets():
    sets = SampleSets.from_list([np.zeros((2, 3), np.float32), np.ones((4, 3), np.float32)], ["a", "b"])
    assert (sets.values.dtype, sets.dim, sets.points, len(sets)) == (torch.float32, 3, 6, 2)
    assert sets.select([1, 0, 1]).sizes.tolist() == [4, 2, 4]
    assert sets.select(np.array([False, True])).names == ["b"]
    assert [tuple(one.shape) for one in sets] == [(2, 3), (4, 3)]
    assert sets.slice(1, 2)[0].data_ptr() == sets[1].data_ptr()
    assert sets.fingerprint() != sets.to(torch.float64).fingerprint()
    table = torch.arange(8.0).view(4, 2)
    users = SampleSets.from_ids(table, torch.tensor([3, 0, 1]), torch.tensor([0, 2, 3]))
    assert users[0].tolist() == [[6, 7], [0, 1]]
    with pytest.raises(IndexError):
        sets[2]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], "no sets"),
        ([[[1.0, 2.0]], [[1.0]]], "2 dimensions, set 0 of|1 dimensions"),
        ([[[1.0]], np.empty((0, 1))], "set 1 is empty"),
        ([[[1.0]], [[2.0], [np.nan]]], "set 1, point 1"),
        ([[[1.0, np.inf]]], "set 0, point 0"),
        ([np.zeros((2, 0))], "no coordinates"),
    ],
)
def test_bad_sets(sets, message):
    with pytest.raises(DataError, match=message):
        SampleSets.from_list(sets)


def test_bad_runs():
    small = SampleSets.from_list([np.random.rand(4, 2), np.random.rand(3, 2)], ["u", "v"])
    with pytest.raises(DataError, match="set 'v' has 3 points, and neighbour 3 needs 4"):
        pairwise_divergences(small)
    with pytest.raises(DataError, match="2 and of 3 dimensions"):
        pairwise_divergences(small, SampleSets.from_list([np.random.rand(9, 3)]))
    with pytest.raises(RecloomError, match="k = 1"):
        pairwise_divergences(small, None, ["l2"], [1])
    wide = SampleSets.from_list([np.random.rand(4, 1), np.random.rand(60, 1)])
    with pytest.raises(RecloomError, match="sets of"):
        pairwise_divergences(wide, None, ["js"], [1])
    mixed = SampleSets.from_list([np.random.rand(n, 1) for n in (40, 40, 20, 400)])
    with pytest.raises(RecloomError, match="sets of 400 and 20 points") as caught:
        estimate_seconds(mixed, None, ["js"])  # not of the few sets that it tries
    assert "at least 11" in caught.value.hint
    assert bool(one(pairwise_divergences(mixed, None, ["js"], [11])).isfinite().all())
    with pytest.raises(RecloomError, match="takes distances"):
        SetGram("linear", "gaussian")
    with pytest.raises(RecloomError, match="no neighbour 0"):
        SetGram(k=0)
    lonely = SampleSets.from_list([np.random.rand(9, 2)])
    assert one(pairwise_divergences(lonely)).tolist() == [[0.0]]
    assert SetGram().fit(lonely).matrix().tolist() == [[1.0]]


def test_psd_repairs():
    values = np.diag([-2.0, -1, 0, 1, 2])
    rows = np.array([[1.0, 2, 3, 4, 5]])
    for name, matrix, row in (
        ("clip", [0, 0, 0, 1, 2], [0, 0, 0, 4, 5]),
        ("flip", [2, 1, 0, 1, 2], [-1, -2, 0, 4, 5]),
        ("shift", [0, 1, 2, 3, 4], [1, 2, 3, 4, 5]),
        ("square", [4, 1, 0, 1, 4], [-2, -2, 0, 4, 10]),
    ):
        repair = parse(name, PSDRepair).fit(values)
        np.testing.assert_allclose(repair.matrix(), np.diag(matrix), atol=1e-12)
        np.testing.assert_allclose(repair.transform(rows), [row], atol=1e-12)
        assert repair.negative_share == 0.4
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(6, 6))
    clip = parse("clip", PSDRepair).fit(matrix + matrix.T)
    np.testing.assert_allclose(
        clip.transform(matrix + matrix.T), clip.matrix(), atol=1e-10
    )  # rows of the training sets
    assert np.linalg.eigvalsh(clip.matrix()).min() > -1e-10


def test_kernels_symmetrise_after_the_kernel():
    values = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    kernel = GaussianKernel(2.0).fit(values)
    assert kernel.sigma == 2.0  # twice the median of 1 and 3, torch's lower one
    found = kernel.symmetrized(values, values)
    assert float(found[0, 1]) == pytest.approx((math.exp(-1 / 8) + math.exp(-9 / 8)) / 2)
    assert PolynomialKernel(2, 1.0)(values)[1, 0] == 16
    with pytest.raises(RecloomError, match="no bandwidth"):
        GaussianKernel()(values)


def test_rows_of_training_sets_are_those_of_the_matrix():
    generator = np.random.default_rng(5)
    x = SampleSets.from_list([generator.normal(i % 3, 1, size=(20 + i, 2)) for i in range(12)])
    for divergence, kernel in (("mmd", "gaussian"), ("meanmap", "linear"), ("sw", "gaussian")):
        gram = SetGram(divergence, kernel).fit(x)
        np.testing.assert_allclose(gram.rows(x.slice(3, 7)), gram.matrix()[3:7], atol=1e-7)
    gram = SetGram("renyi:0.8").fit(x)
    assert gram.rows(SampleSets.from_list([generator.normal(size=(30, 2))])).shape == (1, 12)
    assert np.linalg.eigvalsh(gram.matrix()).min() > -1e-9


def test_names_and_other_peoples_components():
    assert parse("Renyi:0.9", Divergence).alpha == 0.9
    assert type(parse("polynomial:2", Kernel)) is PolynomialKernel
    with pytest.raises(RecloomError, match="renyi"):
        parse("reny", Divergence)
    with pytest.raises(RecloomError, match="kl:1:2"):
        parse("kl:1:2", Divergence)
    taken = Catalog("mine")
    taken.kernels.add("Renyi", "mine:Renyi")
    with pytest.raises(RecloomError, match="distkernels"):
        catalog().merge(taken)


class Ratio(NeighbourDivergence):
    """Mean of |log nu - log rho|^power: another plugin's divergence."""

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def statistic(self, part):
        return part.mean((part.log_nu - part.log_rho).abs() ** self.power)

    def values(self, there, back):
        return there.with_diagonal(there.cross, 0.0)


class Means(SetDivergence):
    def matrix(self, x, y, progress=None):
        a, b = (torch.stack([points.double().mean(0) for points in sets]) for sets in (x, y))
        return torch.cdist(a, b)


class Laplace(Kernel):
    def __call__(self, values):
        return (-values).exp()


class Absolute(FlipPSD):
    pass


class Slow(TorchKnn):
    pass


def test_other_plugins_components(monkeypatch):
    mine = Catalog("mine")
    for kind in (Ratio, Means, Laplace, Absolute, Slow):
        mine.kernels.add(kind.__name__, f"{__name__}:{kind.__name__}")
    mine.kernels.add("Broken", "nowhere_at_all:Broken")
    every = Catalog("all")
    every.merge(catalog())
    every.merge(mine)
    monkeypatch.setattr("recloom_distkernels.registry.catalog", lambda: every)
    assert {"ratio", "means", "kl"} <= set(names(Divergence))  # and what is broken hinders nobody
    sets = SampleSets.from_list([np.random.default_rng(i).normal(size=(20, 2)) + i for i in range(4)])
    gram = SetGram("ratio:2", "laplace", "absolute", engine="slow").fit(sets)
    assert type(gram.divergence) is Ratio
    assert type(gram.engine) is Slow
    rho, nu = (np.sqrt(brute(sets[0], sets[i], torch.tensor([0, 20]), 3, own)[0, 2]) for i, own in ((0, 0), (1, None)))
    assert float(gram.values_[0, 1]) == pytest.approx(np.mean(np.log(nu / rho) ** 2), rel=1e-6)
    assert gram.rows(sets.slice(1, 2)).shape == (1, 4)
    assert float(SetGram("means").fit(sets).values_[0, 3]) == pytest.approx(3 * math.sqrt(2), abs=0.8)


def test_the_plugin():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_plugin("distkernels")
