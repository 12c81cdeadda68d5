"""`recloom serve`: a trained model behind HTTP, with dynamic batching and limits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from recloom.errors import RecloomError

if TYPE_CHECKING:
    from recloom.model import RankingModule

EPILOG = """POST /predict takes rows as JSON and returns their probabilities; GET /model shows the features and an
example, /health and /ready are for probes, /metrics is for Prometheus. A request that the model cannot take is answered
with 400, 413 or 422 and the field, one that finds the queue full with 429. On SIGTERM or Ctrl-C, the requests that wait
are answered before the server ends.
"""


def main(argv: list[str]) -> int:
    """Serve until told to stop; return 0."""
    options = _parse(argv)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise RecloomError(f"recloom serve needs {error.name}", "Try: pip install 'recloom[serve]'") from error
    import torch

    from recloom import quiet
    from recloom.online import engines
    from recloom.online.app import Limits, create_app

    quiet.hush()
    torch.set_num_threads(options.threads)
    module = _module(options)
    engine = engines.build(module, options.engine)
    limits = Limits(
        options.max_batch, options.max_wait / 1000, options.max_queue, options.max_rows, options.max_body << 20
    )
    app = create_app(engine, module.schema, limits, f"{type(module).__name__} from {options.run or options.config}")
    print(f"{type(module).__name__}, engine {options.engine}: http://{options.host}:{options.port}", flush=True)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=options.host,
            port=options.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=30,
            timeout_keep_alive=75,  # longer than clients': who closes an idle connection may lose a request
            backlog=options.max_queue,
        )
    )
    server.run()
    return 0


def _module(options: argparse.Namespace) -> RankingModule:
    from recloom.cli.export import source
    from recloom.loading import build_model, load_trained
    from recloom.model import RankingModule
    from recloom.retrieval.module import RetrievalModule

    if options.untrained:
        if options.config is None:
            raise RecloomError("--untrained needs --config FILE", "It serves the config's model with random weights.")
        module = build_model(Path(options.config)).eval()
        module.configure_model()
    else:
        module = load_trained(*source(options))
    if not isinstance(module, RankingModule):
        raise RecloomError(f"{type(module).__name__} is no RankingModule", "Only those can serve.")
    if isinstance(module, RetrievalModule):
        raise RecloomError(
            f"{type(module).__name__} finds items, and does not rank rows", "Build an index of it: recloom index build."
        )
    if type(module).logits is not RankingModule.logits:
        raise RecloomError(
            f"{type(module).__name__} needs more of a batch than dense values, categorical ids and histories",
            "Only models whose `forward` takes those can serve.",
        )
    return module


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="recloom serve",
        description="Serve a trained model over HTTP.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", "--run_dir", metavar="DIR", help="a run's folder: its config.yaml and best checkpoint")
    parser.add_argument("--config", metavar="FILE", help="a config file, instead of --run; needs --ckpt_path")
    parser.add_argument("--ckpt_path", metavar="PATH", help="a checkpoint; with --run also `last` or `best` (default)")
    parser.add_argument("--untrained", action="store_true", help="random weights, to measure speed; with --config")
    engines = ("eager", "bf16", "int8", "export", "onnx", "aot")
    parser.add_argument("--engine", default="eager", choices=engines, help="what computes; default: eager")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=1, help="threads of the model")
    parser.add_argument("--max-batch", type=_positive, default=256, metavar="ROWS", help="of a batch")
    parser.add_argument("--max-wait", type=float, default=1.0, metavar="MS", help="wait of a batch for more rows")
    parser.add_argument("--max-queue", type=_positive, default=2048, metavar="ROWS", help="that wait; beyond: 429")
    parser.add_argument("--max-rows", type=_positive, default=1024, metavar="ROWS", help="of a request; beyond: 422")
    parser.add_argument("--max-body", type=_positive, default=16, metavar="MIB", help="of a request; beyond: 413")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)
