"""The HTTP endpoint: a real server, real clients, wrong requests, too many requests, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("aiohttp")
uvicorn = pytest.importorskip("uvicorn")

from recloom.errors import DataError  # noqa: E402
from recloom.loading import build_model  # noqa: E402
from recloom.online import client  # noqa: E402
from recloom.online.app import Limits, create_app  # noqa: E402
from recloom.online.load import Sizes, poisson  # noqa: E402
from recloom.online.requests import example, parse  # noqa: E402
from recloom.testing import run_cli, tiny_schema  # noqa: E402

CONFIG = """
model: {class_path: DLRM, init_args: {embedding_dim: 4, dense_arch: [8], over_arch: [8]}}
data:
  class_path: SyntheticClicks
  init_args: {num_train: 100, num_val: 200, num_test: 0, cardinalities: [50, 40, 30], multi_hot: {c2: 3}}
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def ask(url: str, body: bytes | None = None) -> tuple[int, dict, dict]:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as got:
            return got.status, json.loads(got.read()), dict(got.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), dict(error.headers)


@contextlib.contextmanager
def running(engine, limits: Limits):
    """A server in this process, around any engine."""
    port = free_port()
    app = create_app(engine, tiny_schema(), limits, "test")
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_keep_alive=75))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


class Slow:
    """An engine that takes a while, and gives each row the sum of its dense features."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.batches: list[int] = []

    def __call__(self, batch) -> torch.Tensor:
        time.sleep(self.seconds)
        self.batches.append(len(batch))
        if bool((batch.dense_features > 1e6).any()):
            raise RuntimeError("too large for this model")
        return batch.dense_features.sum(1)


def body(rows: int, value: float = 0.0) -> bytes:
    request = example(tiny_schema(), rows)
    request["dense"] = [[value, float(row), 0.0] for row in range(rows)]
    return json.dumps(request).encode()


def test_wrong_requests_are_told_what_is_wrong() -> None:
    def without(request: dict, *path: str) -> dict:
        inner = request
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]
        return request

    good = example(tiny_schema(), 3)
    cases: list[tuple[object, str]] = [
        ([], "no JSON object"),
        (without(json.loads(json.dumps(good)), "dense"), "no 'dense'"),
        (without(json.loads(json.dumps(good)), "sparse", "item"), "no 'item'"),
        ({**good, "spares": {}}, "'spares'"),
        ({**good, "dense": [[1, 2, 3]] * 2}, "3 rows"),
        ({**good, "dense": [[1, 2]] * 3}, "3 numbers a row"),
        ({**good, "dense": [[1, 2, "x"]] * 3}, "numbers"),
        ({**good, "dense": [[1, 2, float("nan")]] * 3}, "finite"),
        ({**good, "dense": [[1, 2, 1e300]] * 3}, "finite"),
        ({**good, "dense": []}, "0 rows"),
        ({**good, "dense": [[1, 2, 3]] * 9}, "9 rows"),
        ({**good, "sparse": {**good["sparse"], "item": [1, 2]}}, "sparse.item has 2 rows"),
        ({**good, "sparse": {**good["sparse"], "item": [1, 2.5, 3]}}, "sparse.item"),
        ({**good, "sparse": {**good["sparse"], "item": [[1], [2], [3]]}}, "sparse.item"),
        ({**good, "sparse": {**good["sparse"], "item": 7}}, "sparse.item is no list"),
        ({**good, "sparse": {**good["sparse"], "tags": [1, 2, 3]}}, "sparse.tags, row 0"),
        ({**good, "sparse": {**good["sparse"], "tags": [[True], [], []]}}, "sparse.tags"),
    ]
    with running(Slow(0), Limits(max_rows=8, max_body=100_000)) as url:
        assert ask(f"{url}/predict", json.dumps(good).encode())[0] == 200
        for document, text in cases:
            code, found, _ = ask(f"{url}/predict", json.dumps(document).encode())
            assert code == 422
            assert text in found["error"] + " " + found["hint"], (text, found)
            assert found["hint"]
        assert ask(f"{url}/predict", b"{not json")[0] == 400
        assert ask(f"{url}/predict", b"\xff\xfe")[0] == 400
        assert ask(f"{url}/predict", b"[" * 90_000)[0] == 400
        assert ask(f"{url}/predict", b" " * 100_001)[0] == 413
        code, found, _ = ask(f"{url}/predict", body(1, 1e7))
        assert code == 500
        assert "too large" not in found["error"]  # the inside of a failure is not for clients
        assert ask(f"{url}/predict", body(1))[0] == 200  # and the server goes on


def test_unknown_ids_count_as_zero_and_histories_are_read() -> None:
    schema = tiny_schema(histories=True)
    request = example(schema, 3, seed=1)
    request["sparse"]["user"] = [999, -1, 5]
    request["histories"]["history"]["ids"][0] = [[1, 2]] * 9  # of which the schema keeps the latest 6
    request["histories"]["history"]["gaps"][0] = list(range(90, 0, -10))
    batch = parse(request, schema, 8)
    assert batch.sparse_features["user"][0].tolist() == [0, 0, 5]
    assert int(batch.sequences["history"].lengths[0]) == 6
    gaps = batch.sequences["history"].gaps(batch.timestamps, 6)
    assert gaps[0].tolist() == [60, 50, 40, 30, 20, 10]
    request["histories"]["history"]["gaps"][1] = []
    with pytest.raises(DataError, match=r"histories.history.gaps"):
        parse(request, schema, 8)
    years = 20 * 365 * 86_400
    request["histories"]["history"]["gaps"] = [
        [years, *[-5] * 5],
        *example(schema, 3, 1)["histories"]["history"]["gaps"][1:],
    ]
    request["histories"]["history"]["ids"][0] = [[1, 2]] * 6
    batch = parse(request, schema, 8)
    assert batch.sequences["history"].gaps(batch.timestamps, 6)[0].tolist() == [years, 0, 0, 0, 0, 0]


def test_wrong_histories_are_told_what_is_wrong() -> None:
    schema = tiny_schema(histories=True)
    good = example(schema, 3, seed=1)
    history = good["histories"]["history"]
    far = [[1e19] * len(row) for row in history["gaps"]]
    none = [[float("nan")] * len(row) for row in history["gaps"]]
    cases: list[tuple[object, str]] = [
        ({}, "histories has no 'history'"),
        ([], "histories is no JSON object"),
        (None, "histories is no JSON object"),
        ({**good["histories"], "histroy": {}}, "histories has 'histroy'"),
        ({"history": {**history, "gaps": None}}, "histories.history.gaps is no list"),
        ({"history": {**history, "gaps": [None] * 3}}, "histories.history.gaps, row 0 is no list"),
        ({"history": {**history, "gaps": far}}, "histories.history.gaps has a number that is not finite, or too large"),
        (
            {"history": {**history, "gaps": none}},
            "histories.history.gaps has a number that is not finite, or too large",
        ),
        ({"history": {**history, "ids": None}}, "histories.history.ids is no list"),
    ]
    for histories, text in cases:
        with pytest.raises(DataError) as told:
            parse({**good, "histories": histories}, schema, 8)
        assert text in str(told.value)


def test_requests_that_wait_are_served_together_each_with_its_own_answer() -> None:
    engine = Slow(0.05)
    with running(engine, Limits(max_batch=16, max_wait=0.0)) as url:
        answers = asyncio.run(
            client.send(url, poisson(2000, 40, Sizes.parse("1"), 0), [body(1, float(n)) for n in range(40)])
        )
        assert (answers.codes == 200).all()
        assert max(engine.batches) > 1
        assert max(engine.batches) <= 16
        for value in (1.0, 5.0):
            assert ask(f"{url}/predict", body(3, value))[1]["probability"] == [value, value + 1, value + 2]
        text = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode()
        assert 'recloom_requests_total{code="200"} 42.0' in text
        assert "recloom_batch_rows_count" in text
        assert ask(f"{url}/health")[1] == {"status": "alive"}
        assert ask(f"{url}/ready")[0] == 200


def test_what_is_too_much_is_turned_away_at_once_and_nothing_piles_up() -> None:
    engine = Slow(0.02)  # a batch of 4 rows: 200 rows a second
    with running(engine, Limits(max_batch=4, max_wait=0.0, max_queue=8)) as url:
        answers = asyncio.run(client.send(url, poisson(400, 400, Sizes.parse("1"), 0), [body(1)]))
        codes, counts = np.unique(answers.codes, return_counts=True)
        assert not answers.errors
        assert set(codes) == {200, 429}  # every request has an answer
        assert counts.min() > 5
        assert max(engine.batches) <= 4
        text = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode()
        assert "recloom_waiting_rows 0.0" in text
        code, found, headers = ask(f"{url}/predict", body(9))  # more than may ever wait
        assert (code, headers.get("retry-after") or headers.get("Retry-After")) == (429, "1")
        assert "wait" in found["error"]


def test_the_command_serves_what_the_model_says_and_ends_gracefully(tmp_path: Path) -> None:
    config = tmp_path / "model.yaml"
    config.write_text(CONFIG + "seed_everything: 1\n")
    port = free_port()
    command = [sys.executable, "-m", "recloom.cli.main", "serve", "--config", str(config), "--untrained"]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 90
        while time.monotonic() < until and process.poll() is None:
            try:
                if ask(f"{url}/ready")[0] == 200:
                    break
            except urllib.error.URLError:
                time.sleep(0.1)
        _, told, _ = ask(f"{url}/model")
        schema = build_model(config).schema
        assert told["schema"] == schema.to_dict()
        code, found, _ = ask(f"{url}/predict", json.dumps(told["example"]).encode())
        assert code == 200
        assert len(found["probability"]) == 2
        assert all(0 < p < 1 for p in found["probability"])
        answers = client.load(url, rate=100, seconds=2, sizes=Sizes.parse("2"))
        assert (answers.codes == 200).all()
        done = run_cli(["bench", "load", "--url", url, "--rate", "50", "--seconds", "0.5"])
        assert done.code == 0
        assert "x 200" in done.out
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert "Traceback" not in (process.stdout.read() if process.stdout else "")
    finally:
        process.kill()
        process.wait()
    assert run_cli(["bench", "load", "--url", url]).code == 2


def test_requests_in_flight_are_answered_before_the_end() -> None:
    results: list[int] = []
    with running(Slow(0.5), Limits(max_batch=1, max_wait=0.0)) as url:
        threads = [threading.Thread(target=lambda: results.append(ask(f"{url}/predict", body(1))[0])) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)  # the first is being served, the others wait; now the server is told to end
    for thread in threads:
        thread.join(30)
    assert results == [200, 200, 200]


async def call(app, path: str, body: bytes | None = None) -> tuple[int, dict, dict]:
    """A request given to the application itself, as a server would."""
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": path,
        "headers": [],
        "query_string": b"",
    }
    await app(scope, receive, send)
    headers = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], json.loads(sent[1]["body"]), headers


def test_a_server_that_ends_or_is_full_says_that_it_is_not_ready() -> None:
    app = create_app(Slow(0.2), tiny_schema(), Limits(max_batch=1, max_wait=0.0, max_queue=1), "test")

    async def talk() -> None:
        async with app.router.lifespan_context(app):
            served = [asyncio.create_task(call(app, "/predict", body(1)))]
            await asyncio.sleep(0.1)  # the first is with the model now
            served.append(asyncio.create_task(call(app, "/predict", body(1))))
            await asyncio.sleep(0.02)
            assert (await call(app, "/ready"))[0] == 503
            assert (await call(app, "/predict", body(1)))[0] == 429
            assert [(await task)[0] for task in served] == [200, 200]
            assert (await call(app, "/ready"))[1] == {"ready": True, "waiting_rows": 0}
        code, found, headers = await call(app, "/predict", body(1))
        assert (code, headers["retry-after"]) == (503, "1")
        assert "shutting down" in found["error"]
        assert (await call(app, "/ready"))[0] == 503
        assert (await call(app, "/health"))[0] == 200

    asyncio.run(talk())


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = run_cli(["serve", "--config", "model.yaml", "--untrained"])
    assert done.code == 2
    assert "recloom[serve]" in done.err
