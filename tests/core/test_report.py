"""Reports: the builder, and the report of a run (any LightningModule's too)."""

from __future__ import annotations

import re
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from recloom import plots
from recloom.plugins import catalog
from recloom.report import Report, parts, write_run_report
from recloom.testing import run_cli


def test_a_run_gets_a_report_with_its_result_beside_the_best_possible(tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = ["--data=SyntheticClicks", "--data.num_train=4096", "--data.num_val=2048", "--data.num_workers=0"]
    data += ["--data.cardinalities=[50,30]", "--data.multi_hot={}"]
    model = ["--model=DLRM", "--model.dense_arch=[8]", "--model.over_arch=[8]", "--model.embedding_dim=8"]
    trainer = ["--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    done = run_cli(["fit", *data, *model, *trainer, "--trainer.accelerator=cpu", f"--run_dir={run}"])
    assert done.code == 0, done.err
    page, markdown = (run / "report.html").read_text(), (run / "report.md").read_text()
    match = re.search(r"Validation NE ([\d.]+); the best possible NE of the same rows is ([\d.]+)", markdown)
    assert match is not None
    assert float(match[1]) > float(match[2]) > 0.5
    assert re.search(r"\| sparse_arch \| FusedEmbeddingBag \| 640 \| 0 \| 2,560 \|", markdown)  # 80 rows x 8
    for part in ("Learning curves", "Calibration", "config.yaml", "num_train: 4096", "CPUs", "dlrm (recloom"):
        assert part in page
        assert part in markdown
    assert page.count("<svg") == 2
    outside = [url for url in re.findall(r"""(?:src|href)=["']([^"'#]+)""", page) if "w3.org" not in url]
    assert outside == [], "the page is to need no other file"
    assert not list(run.rglob("*.part"))


class Plain(pl.LightningModule):
    """Nothing of recloom's: its own metric names, no schema, no calibration."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.tied = self.table
        self.head = nn.Linear(4, 1)

    def training_step(self, batch, _):
        return self.head(self.table(batch)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_any_lightning_module_gets_a_report_even_of_an_empty_folder(tmp_path: Path) -> None:
    module = Plain()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, DataLoader(torch.arange(10).view(5, 2), batch_size=None))
    (tmp_path / "metrics.csv").write_text("step,my_metric,epoch\n0,1.5,0\n1,nan,0\n2,0.5,0\n3,0")
    start = time.perf_counter()
    page = write_run_report(tmp_path, trainer, module).read_text()
    assert time.perf_counter() - start < 20  # about 1 s alone on a CPU
    assert "my_metric" in page
    assert "Calibration" not in page
    assert parts(module) == [("table", "Embedding", 40, 0, 160), ("head", "Linear", 0, 5, 20)]


def test_tables_and_text_are_escaped_and_numbers_readable(tmp_path: Path) -> None:
    report = Report("a <b>", "x & y")
    report.table(("name", "value"), [("p|q", 1234567), ("<i>", 0.123456789)])
    report.plot("bars", plots.bars({"a": 0.8, "b": 0.81}, "NE", level=0.79), "NE < 1")
    page = report.save(tmp_path).read_text()
    assert "<b>" not in page
    assert "<td>&lt;i&gt;</td>" in page
    assert "1,234,567" in page
    assert "0.123457" in page
    assert "| p\\|q | 1,234,567 |" in report.markdown()
    assert "currentColor" in page  # plots follow the page's colours
    assert (tmp_path / "figures" / "bars.svg").read_text().startswith("<svg")


def test_long_curves_are_thinned() -> None:
    steps = list(range(100_000))
    drawing = plots.lines({"NE": {"train": (steps, [1.0 / (1 + s) for s in steps])}}, "step")
    assert len(drawing) < 100_000


def test_plugins_add_rows(tmp_path: Path, monkeypatch) -> None:
    from recloom import hookimpl
    from recloom.plugins import host

    class Counter:
        @hookimpl
        def summarize(self, module):
            return [("layers counted", str(len(list(module.modules()))))]

    assert catalog() is host().catalog
    plugin = Counter()
    host().manager.register(plugin)
    try:
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        page = write_run_report(tmp_path, trainer, Plain()).read_text()
    finally:
        host().manager.unregister(plugin)
    assert "layers counted" in page
