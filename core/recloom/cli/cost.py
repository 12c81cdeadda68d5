"""`recloom cost`: what a model does for a sample, as a table."""

from __future__ import annotations

import warnings
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from recloom import mention, problems, quiet
from recloom.document import show
from recloom.errors import RecloomError

DESCRIPTION = (
    "Print what a model does for a sample: products, gathers, multiply-accumulates, parameters; and what that costs on"
    " hardware, by a cost model."
)
_OPTIONS = ("config", "model", "data", "hardware")
_OF_FIT = ("seed_everything", "trainer", "run_dir", "checkpoint", "ckpt_path", "optimizer", "lr_scheduler")


class CostParser(ArgumentParser):
    """Tells one cause, one hint and the nearest names."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise a RecloomError about `message`; a nested parser's message reaches the outermost one."""
        if not self.exit_on_error:
            return super().error(message, ex)
        raise problems.explain(message, _OPTIONS)


def main(argv: list[str]) -> int:
    """Print a model's works, multiply-accumulates and parameters."""
    given = {argument.partition("=")[0].partition(".")[0] for argument in argv}
    if not given & {"--data", "--config", "-c", "--help", "-h"}:
        argv = [*argv, "--data", "SyntheticClicks"]
    mention.load_mentioned(argv)
    quiet.hush()
    from recloom.search.lowering import lower

    module, hardware = _parts(argv)
    program = lower(module)
    table = Table()
    for name in ("work", "kind", "sums of", "results", "vectors", "MACs", "parameters"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("work", "kind") else "right")
    for work in program.works:
        product = work.kind in ("matmul", "dynamic")
        sizes = [show(work.rows) if product else "", show(work.columns), show(work.vectors)]
        table.add_row(work.name, work.kind, *sizes, show(work.macs), show(work.weights))
    table.add_section()
    table.add_row("total", "", "", "", "", show(program.macs), show(program.parameters))
    console = Console()
    console.width = max(console.width, 110)
    console.print(table, markup=False)
    console.print(
        f"{type(module).__name__}, for one sample; tables: {program.table_bytes / 2**20:.2f} MiB."
        " Bags and histories count as full.",
        highlight=False,
    )
    for priced in hardware.works(program) if hardware is not None else ():
        console.width = max(console.width, 160)
        table = Table(*priced.header, caption=priced.caption, caption_justify="left")
        for place, column in enumerate(table.columns):
            column.justify, column.no_wrap = "left" if place < 2 else "right", True
        for row in priced.rows:
            table.add_row(*map(str, row))
        console.print(table, markup=False)
    return 0


def _parts(argv: list[str]) -> tuple[Any, Any]:
    """Return the model that the arguments describe, for the schema of their data, and the cost model or None."""
    import lightning.pytorch as pl

    from recloom.model import RankingModule
    from recloom.search.evaluator import CostModel

    parser = CostParser(prog="recloom cost", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="config", help="YAML file as `recloom fit` takes it.")
    data = "The features; unset, without a config: those of SyntheticClicks."
    parser.add_subclass_arguments(pl.LightningDataModule, "data", required=True, help=data)
    parser.add_subclass_arguments(RankingModule, "model", required=True)
    parser.add_subclass_arguments(CostModel, "hardware", required=False, help="Prices the work: isaac, PIMCost, ...")
    for name in _OF_FIT:
        parser.add_argument(f"--{name}", type=Any, help="Not used: it may stand in a config of `recloom fit`.")
    parser.link_arguments("data.schema", "model.init_args.schema", apply_on="instantiate")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with problems.located(argv):
                config = parser.parse_args(mention.long_names(argv))
            found = parser.instantiate_classes(config)
            return found.model, found.get("hardware")
    except ValueError as error:
        if (cause := problems.user_error(error)) is not None:
            raise cause from error
        raise RecloomError(str(error)) from error
