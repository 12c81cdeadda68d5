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


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_config(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("#"), "a config starts with what it is and the command that runs it"
    assert f"recloom fit --config configs/{name(path)}" in path.read_text()
    data = config["data"]["class_path"]
    arguments = list(SMALL)
    if data in ("SyntheticClicks", "SyntheticBehaviour"):
        arguments += ["--data.num_train=4096", "--data.num_val=1024", "--data.num_workers=0", "--data.batch_size=128"]
    if config.get("trainer", {}).get("devices", 1) not in (1, "auto"):
        arguments += ["--trainer.devices=1", "--trainer.strategy=auto"]
    if data == "ParquetClicks":
        arguments += ["--data.path=missing"]
        assert main(["fit", "--config", str(path), *arguments]) == 2
        return
    assert main(["fit", "--config", str(path), *arguments]) == 0
