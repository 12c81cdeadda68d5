"""`recloom export`: a run's model as a torch.export or ONNX file, checked against the eager model."""

from __future__ import annotations

import argparse
from pathlib import Path

from recloom import runs
from recloom.errors import RecloomError

EPILOG = """The file's inputs are described in FILE.json beside it. One-hot data: `sparse`, batch x features;
otherwise `values` (all samples of the first feature, then of the second, ...) and `lengths`, features x batch.
A history NAME: `NAME`, batch x steps x ids, the latest step last; `NAME_lengths`; with times `NAME_gaps`, in seconds.
"""


def main(argv: list[str]) -> int:
    """Export the model of a run, or of a config file and a checkpoint."""
    options = _parse(argv)
    config, checkpoint = source(options)
    # imported here: `recloom export --help` needs no torch
    from recloom import quiet
    from recloom.export import SUFFIX, export_model
    from recloom.loading import load_trained
    from recloom.model import RankingModule

    quiet.hush()
    module = load_trained(config, checkpoint)
    if not isinstance(module, RankingModule):
        raise RecloomError(f"{config}: {type(module).__name__} is no RankingModule", "Only those can be exported.")
    default = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    path = Path(options.output) if options.output else default / f"model{SUFFIX[options.format]}"
    if options.format == "torch" and path.suffix != ".pt2":
        raise RecloomError(f"--output {path}: a torch.export file is named *.pt2", f"Try {path.with_suffix('.pt2')}.")
    done = export_model(
        module,
        path,
        options.format,
        None if options.batch_size == "dynamic" else int(options.batch_size),
        options.logits,
        {"config": str(config), "checkpoint": str(checkpoint)},
        options.tolerance,
    )
    print(f"{done.path}: {done.path.stat().st_size / 1e6:.1f} MB, inputs described in {done.path.name}.json")
    print(f"max abs diff to eager {done.max_abs_diff:.2e} over batches of {', '.join(map(str, done.batches))}")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="recloom export",
        description="Write a trained model as a torch.export or ONNX file, checked against the eager model.",
        epilog=EPILOG,
    )
    parser.add_argument("--run", "--run_dir", metavar="DIR", help="a run's folder: its config.yaml and best checkpoint")
    parser.add_argument("--config", metavar="FILE", help="a config file, instead of --run; needs --ckpt_path")
    parser.add_argument("--ckpt_path", metavar="PATH", help="a checkpoint; with --run also `last` or `best` (default)")
    parser.add_argument("--format", choices=("torch", "onnx"), default="torch", help="default: torch")
    parser.add_argument("--output", metavar="FILE", help="default: model.pt2 or model.onnx in the run's folder")
    parser.add_argument(
        "--batch-size", default="dynamic", type=_batch_size, metavar="N", help="the only batch size; default: dynamic"
    )
    parser.add_argument("--logits", action="store_true", help="return logits; default: probabilities")
    parser.add_argument("--tolerance", type=float, metavar="X", help="largest difference to eager")
    return parser.parse_args(argv)


def _batch_size(text: str) -> str:
    if text != "dynamic" and not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a positive number nor `dynamic`")
    return text


def source(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return the config file and the checkpoint that the options name."""
    if (options.run is None) == (options.config is None):
        raise RecloomError("give either --run DIR or --config FILE", "See recloom export --help.")
    if options.config is not None:
        if options.ckpt_path in (None, "last", "best"):
            raise RecloomError("--config needs --ckpt_path FILE", "Or give --run DIR.")
        return Path(options.config), Path(options.ckpt_path)
    run = Path(options.run)
    return run / "config.yaml", runs.checkpoint_of(run, options.ckpt_path)
