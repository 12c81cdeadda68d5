"""`recloom index build|search|upsert|delete|stats`: items in an index, from a run's model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recloom import runs
from recloom.errors import DataError, RecloomError

if TYPE_CHECKING:
    from recloom.retrieval.index import Filter, Found
    from recloom.retrieval.retriever import Retriever
    from recloom.retrieval.rows import Rows

EPILOG = """Items and users are Parquet files with a column `id` (int64) and the features of their side, as in
example_items.parquet and example_users.parquet in the index's folder. The folder serves without the code that trained
the model: recloom.retrieval.retriever.Retriever.load."""


def main(argv: list[str]) -> int:
    """Run one of the subcommands."""
    parser = argparse.ArgumentParser(
        prog="recloom index", description="Indexes of items: build, search, change.", epilog=EPILOG
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _build_options(commands.add_parser("build", help="make an index of a run's model", epilog=EPILOG))
    _search_options(commands.add_parser("search", help="find the best items for users", epilog=EPILOG))
    upsert = commands.add_parser("upsert", help="add items, or replace those that are there", epilog=EPILOG)
    upsert.add_argument("--items", type=Path, required=True, metavar="FILE", help="Parquet file of items")
    delete = commands.add_parser("delete", help="remove items", epilog=EPILOG)
    delete.add_argument("--ids", type=_ids, default=[], metavar="A,B,...", help="ids to remove")
    delete.add_argument("--ids_file", type=Path, metavar="FILE", help="Parquet file with a column `id`")
    for command in (upsert, delete, commands.add_parser("stats", help="what an index holds", epilog=EPILOG)):
        command.add_argument("--path", type=Path, required=True, metavar="DIR", help="the index's folder")
    options = parser.parse_args(argv)
    run = {"build": _build, "search": _search, "upsert": _upsert, "delete": _delete, "stats": _stats}
    return run[options.command](options)


def _build_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="folder of the run of the model")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the index's folder (default: index in the run's)")
    parser.add_argument("--index", metavar="NAME", help="recloom components indexes (default: the model's own)")
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="an option of the index"
    )
    parser.add_argument("--first", type=Path, metavar="DIR", help="run of a two tower model, for Cascade")
    parser.add_argument("--ckpt_path", default="last", metavar="last|best|FILE", help="default: last")
    parser.add_argument("--items", type=Path, metavar="FILE", help="Parquet file of items (default: the data's)")
    parser.add_argument("--item_id", default="", metavar="NAME", help="the feature of a log that is the item's id")


def _search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", type=Path, required=True, metavar="DIR", help="the index's folder")
    parser.add_argument("--users", type=Path, metavar="FILE", help="Parquet file of users (default: the examples)")
    parser.add_argument("--k", type=int, default=10, help="items a user (default: 10)")
    parser.add_argument("--exclude", type=_ids, default=[], metavar="A,B,...", help="ids that nobody gets")
    parser.add_argument("--only", type=Path, metavar="FILE", help="Parquet file with a column `id`: only these items")
    parser.add_argument("--seen", type=Path, metavar="FILE", help="Parquet file: `id` of a user, `item` not to return")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write user, rank, item, score as Parquet")


def _build(options: argparse.Namespace) -> int:
    from recloom import quiet
    from recloom.loading import build_data, load_trained
    from recloom.retrieval.build import build
    from recloom.retrieval.catalogue import items_of, users_of
    from recloom.retrieval.module import RetrievalModule
    from recloom.retrieval.rows import Rows

    quiet.hush()
    modules: list[RetrievalModule] = []
    for run in filter(None, (options.run, options.first)):
        module = load_trained(run / "config.yaml", runs.checkpoint_of(run, options.ckpt_path))
        if not isinstance(module, RetrievalModule):
            raise RecloomError(f"{run}: {type(module).__name__} is no retrieval model", "Train a TwoTower or an HSNN.")
        modules.append(module)
    model = modules[0]
    kind = options.index or ("FlatIP" if model.inner_product else "HSNN" if model.tables() else "Exhaustive")
    data = build_data(options.run / "config.yaml")
    if options.items:
        items = Rows.load(options.items, model.sides.schemas[1])
    else:
        items = items_of(data, model, options.item_id)
    folder = options.out or options.run / "index"
    source = {"run": str(options.run), "checkpoint": str(runs.checkpoint_of(options.run, options.ckpt_path))}
    settings = dict(options.set)
    first = modules[1] if options.first else None
    retriever = build(folder, model, items, kind, settings, first, users_of(data, model, 5), source)
    print(f"{folder}: {kind}, {len(retriever.index):,} items")
    return 0


def _search(options: argparse.Namespace) -> int:
    retriever = _loaded(options.path)
    users = retriever.read_users(options.users or options.path / "example_users.parquet")
    found = retriever.search(users, options.k, _filter(options, users))
    if options.out:
        _write(options.out, users, found)
        print(f"{options.out}: {len(users):,} users, {int((found.ids >= 0).sum()):,} items")
        return 0
    for user, ids, scores, scored in zip(users.ids.tolist(), found.ids, found.scores, found.scored, strict=True):
        items = "  ".join(f"{i} ({s:.3f})" for i, s in zip(ids.tolist(), scores.tolist(), strict=True) if i >= 0)
        print(f"user {user}: {items}  [{scored:,} scored]")
    return 0


def _upsert(options: argparse.Namespace) -> int:
    retriever = _loaded(options.path)
    items = retriever.read_items(options.items)
    before = len(retriever.index)
    retriever.upsert(items)
    added = len(retriever.index) - before
    print(f"{added:,} added, {len(items) - added:,} replaced; {len(retriever.index):,} items: {retriever.save()}")
    return 0


def _delete(options: argparse.Namespace) -> int:
    import numpy as np

    retriever = _loaded(options.path)
    ids = np.array([*options.ids, *(_id_column(options.ids_file) if options.ids_file else ())], np.int64)
    if not len(ids):
        raise RecloomError("no ids are given", "Give --ids or --ids_file.")
    gone = retriever.delete(ids)
    print(f"{gone:,} removed; {len(retriever.index):,} items: {retriever.save()}")
    return 0


def _stats(options: argparse.Namespace) -> int:
    retriever = _loaded(options.path)
    facts = {"index": retriever.manifest["index"], "options": retriever.manifest["options"]}
    print(json.dumps({**facts, **retriever.index.stats(), "source": retriever.manifest["source"]}, indent=1))
    return 0


def _loaded(path: Path) -> Retriever:
    from recloom.retrieval.retriever import Retriever

    return Retriever.load(path, lazy=True)


def _filter(options: argparse.Namespace, users: Rows) -> Filter | None:
    import numpy as np

    from recloom.retrieval.index import Filter

    banned = np.array(options.exclude, np.int64) if options.exclude else None
    allowed = np.array(_id_column(options.only), np.int64) if options.only else None
    seen = None
    if options.seen:
        pairs = np.stack([_id_column(options.seen), _id_column(options.seen, "item")], axis=1)
        seen = [pairs[pairs[:, 0] == user, 1] for user in users.ids.tolist()]
    return None if banned is None and allowed is None and seen is None else Filter(allowed, banned, seen)


def _id_column(path: Path, name: str = "id") -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=[name])[name].to_numpy()
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: no Parquet file with a column {name!r}: {str(error).splitlines()[0]}") from error


def _write(path: Path, users: Rows, found: Found) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    there = found.ids >= 0
    row, rank = np.nonzero(there)
    columns = {
        "user": users.ids.numpy()[row],
        "rank": rank,
        "item": found.ids[there],
        "score": found.scores[there],
    }
    aside = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), aside)
    aside.replace(path)


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of ids: write 1,2,3") from None


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=VALUE")
    return name, yaml.safe_load(value)
