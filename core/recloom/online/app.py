"""The HTTP endpoint: a FastAPI application around a model. Needs the extra `serve`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Receive, Scope, Send

from recloom import __version__
from recloom.errors import DataError
from recloom.features import FeatureSchema
from recloom.online.batcher import Batcher, Closing, Full
from recloom.online.engines import Engine
from recloom.online.requests import example, parse

log = logging.getLogger(__name__)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_ROWS = (1, 4, 16, 64, 256, 1024)


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Args:
        max_batch: Most rows of a batch.
        max_wait: Seconds that a batch waits for more rows while the engine is idle.
        max_queue: Most rows that may wait; beyond, requests are answered with 429.
        max_rows: Most rows of a request; beyond, 422.
        max_body: Most bytes of a request's body; beyond, 413.
    """

    max_batch: int = 256
    max_wait: float = 0.001
    max_queue: int = 2048
    max_rows: int = 1024
    max_body: int = 16 << 20


class TooLarge(Exception):
    """The request's body has more bytes than the limit."""


class Metrics:
    """What `/metrics` shows, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("recloom_requests", "Requests by status code", ["code"], registry=registry)
        self.seconds = Histogram(
            "recloom_request_seconds", "From a request's arrival to its answer", buckets=_SECONDS, registry=registry
        )
        self.batch_rows = Histogram("recloom_batch_rows", "Rows of a batch", buckets=_ROWS, registry=registry)
        self.batch_seconds = Histogram(
            "recloom_batch_seconds", "Time of the model for a batch", buckets=_SECONDS, registry=registry
        )
        self.waiting = Gauge("recloom_waiting_rows", "Rows that wait", registry=registry)

    def batch(self, rows: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)


class Shedding:
    """Turns requests to /predict away while no row may wait, before anything is spent on them.

    It stands before FastAPI: under more load than the server takes, most of its time goes into saying no, and what it
    saves there goes into the requests that it serves.

    Args:
        app: What answers all other requests.
        batcher: Its queue is asked.
        metrics: Where answers are counted.
    """

    def __init__(self, app: ASGIApp, batcher: Batcher, metrics: Metrics) -> None:
        self.app, self.batcher, self.metrics = app, batcher, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self.batcher.full and scope["type"] == "http" and scope["path"] == "/predict":
            self.metrics.requests.labels(429).inc()
            await _full()(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def create_app(engine: Engine, schema: FeatureSchema, limits: Limits, name: str) -> FastAPI:
    """Return the application: POST /predict; GET /health, /ready, /metrics, /model.

    Args:
        engine: The model.
        schema: Its features.
        limits: What it takes on.
        name: What `/model` calls it.
    """
    metrics = Metrics()
    batcher = Batcher(engine, limits.max_batch, limits.max_wait, limits.max_queue, metrics.batch)
    metrics.waiting.set_function(lambda: batcher.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.close()

    app = FastAPI(title="recloom", version=__version__, lifespan=lifespan)
    app.add_middleware(Shedding, batcher=batcher, metrics=metrics)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        start = time.perf_counter()
        response = await _answer(request, batcher, schema, limits)
        metrics.requests.labels(response.status_code).inc()
        metrics.seconds.observe(time.perf_counter() - start)
        return response

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> Response:
        code = 503 if batcher.closing or batcher.full else 200
        return JSONResponse({"ready": code == 200, "waiting_rows": batcher.waiting}, code)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/model")
    async def model() -> dict[str, object]:
        limited = {"max_rows": limits.max_rows, "max_body": limits.max_body}
        return {"name": name, "schema": schema.to_dict(), "limits": limited, "example": example(schema, 2)}

    return app


async def _answer(request: Request, batcher: Batcher, schema: FeatureSchema, limits: Limits) -> Response:
    try:
        body = await _body(request, limits.max_body)
        out = await batcher.submit(parse(json.loads(body), schema, limits.max_rows))
    except TooLarge:
        return _problem(413, f"the body has more than {limits.max_body:,} bytes", "Send fewer rows a request.")
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return _problem(400, f"the body is no JSON: {error}", "See /model for an example.")
    except DataError as error:
        return _problem(422, error.message, error.hint)
    except Full:
        return _full()
    except Closing:
        return _problem(503, "the server is shutting down", "Ask another one.", {"Retry-After": "1"})
    except Exception:  # a model's failure: the client learns that, the log has the rest
        log.exception("A request failed")
        return _problem(500, "the model failed on this request", "The server's log has the reason.")
    return JSONResponse({"probability": out.tolist(), "labels": list(schema.labels)})


async def _body(request: Request, limit: int) -> bytes:
    """Return the body, read no further than the limit."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise TooLarge
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLarge
        parts.append(part)
    return b"".join(parts)


def _full() -> Response:
    return _problem(429, "too many requests wait", "Come again later.", {"Retry-After": "1"})


def _problem(code: int, message: str, hint: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message, "hint": hint}, code, headers)
