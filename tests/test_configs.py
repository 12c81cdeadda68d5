"""Every config runs: one training and one validation batch, or, when it needs prepared data or ranks, it parses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from recloom.cli.main import main

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))
SMALL = ["--trainer.fast_dev_run=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def small_search(config: dict) -> list[str]:
    """Return the options that make any search on generated data one of two candidates."""
    rows = ["--data.num_train=2048", "--data.num_val=512", "--data.num_test=512", "--data.batch_size=128"]
    found = [*rows, "--data.num_workers=0", "--trials=2", "--batch=2", "--retrain=0", "--progress=false"]
    if config.get("evaluator", {}).get("class_path") == "SupernetEvaluator":
        steps = ["--evaluator.steps=2", "--evaluator.finetune_steps=1"]
        return [*found, *steps, "--evaluator.rows=1024", "--evaluator.eval_rows=512"]
    inner = ".scratch" if "scratch" in config.get("evaluator", {}).get("init_args", {}) else ""
    return [*found, f"--evaluator{inner}.max_steps=2"]


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_config(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("#"), "a config starts with what it is and the command that runs it"
    command = "search" if "space" in config else "fit"
    assert f"recloom {command} --config configs/{name(path)}" in path.read_text()
    data = config["data"]["class_path"]
    if command == "search":
        assert main(["search", "--config", str(path), *small_search(config)]) == 0
        return
    arguments = list(SMALL)
    if data in ("SyntheticClicks", "SyntheticBehaviour", "SyntheticConversions", "RetrievalClicks"):
        arguments += ["--data.num_train=4096", "--data.num_val=1024", "--data.num_workers=0", "--data.batch_size=128"]
    if config.get("trainer", {}).get("devices", 1) not in (1, "auto"):
        arguments += ["--trainer.devices=1", "--trainer.strategy=auto"]
    if data == "PowerLawEvents":
        arguments += ["--data.events=4096", "--data.sources=500", "--data.destinations=100", "--data.window=256"]
    if data in ("ParquetClicks", "EventStreams", "StreamClicks"):
        arguments += ["--data.path=missing"]
        assert main(["fit", "--config", str(path), *arguments]) == 2
        return
    assert main(["fit", "--config", str(path), *arguments]) == 0
