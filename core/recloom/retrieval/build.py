"""From a trained model to an index in a folder: exported programs, a manifest, the first snapshot."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recloom import intact, programs
from recloom.document import write_text
from recloom.errors import RecloomError
from recloom.export import export_model
from recloom.model import RankingModule
from recloom.plugins import catalog
from recloom.retrieval import retriever, snapshot
from recloom.retrieval.cascade import combine
from recloom.retrieval.index import Parts, RetrievalIndex, Scorer
from recloom.retrieval.module import RetrievalModule, side_schema
from recloom.retrieval.retriever import MANIFEST, TABLES, Program, Retriever
from recloom.retrieval.rows import Rows

SHAPES = ((1, 1), (1, 40), (3, 7), (5, 1))
TOLERANCE = 1e-4
EXAMPLES = 5


class SideBySide(RankingModule):
    """Two encoders of one side, their codes side by side: what a cascade needs. Made by `of`."""

    first: RankingModule
    second: RankingModule

    @classmethod
    def of(cls, first: RankingModule, second: RankingModule) -> SideBySide:
        """Return both as one; they take the same features."""
        made = cls(side_schema(first.schema, len(first.schema.labels) + len(second.schema.labels)))
        made.first, made.second = first, second
        made.uses_histories = first.uses_histories or second.uses_histories
        return made

    def forward(
        self,
        dense: Tensor,
        values: Tensor,
        offsets: Tensor | None = None,
        weights: Tensor | None = None,
        histories: Any = None,
    ) -> Tensor:
        """Return B x (both widths)."""
        inputs = (dense, values, offsets, weights)
        codes = [e(*inputs, histories) if e.uses_histories else e(*inputs) for e in (self.first, self.second)]
        return torch.cat(codes, dim=1)


def build(
    folder: Path,
    module: RetrievalModule,
    items: Rows,
    kind: str,
    options: dict[str, Any],
    first: RetrievalModule | None = None,
    users: Rows | None = None,
    source: dict[str, str] | None = None,
) -> Retriever:
    """Write an index's folder, all of it aside first and then renamed; return it as it was written.

    Args:
        folder: The folder, which must not exist.
        module: The trained model.
        items: The items.
        kind: Name of the index.
        options: Its options.
        first: The two tower model of a cascade.
        users: Users, of whom a few are written as examples.
        source: Where the model is from, for the manifest.

    Raises:
        RecloomError: The folder exists, an option is unknown, or a part of the model cannot be exported.
    """
    if folder.exists():
        raise RecloomError(f"{folder} exists already", "Choose another --out, or change it: recloom index upsert.")
    index: Any = retriever.check_options(kind, options)
    parts = module.eval().parts()
    encoders: list[RankingModule] = [module.user_encoder, module.item_encoder]
    if first is not None:
        narrow = first.eval().parts()
        encoders = [SideBySide.of(first.user_encoder, encoders[0]), SideBySide.of(first.item_encoder, encoders[1])]
        parts = dataclasses.replace(combine(narrow, parts), scorers={"score": parts.scorers["score"]})
    index(parts, **options)  # what it refuses, it refuses before minutes of exports
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with intact.room(aside):
            made, item, manifest = _fill(aside, encoders, parts, items, kind, options, first, source)
            items.slice(0, EXAMPLES).save(aside / "example_items.parquet")
            if users is not None:
                users.slice(0, EXAMPLES).save(aside / "example_users.parquet")
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Retriever(folder, manifest, Program.load(folder / "user.pt2", lazy=True), item, made)


def _fill(
    aside: Path,
    encoders: list[RankingModule],
    parts: Parts,
    items: Rows,
    kind: str,
    options: dict[str, Any],
    first: RetrievalModule | None,
    source: dict[str, str] | None,
) -> tuple[RetrievalIndex, Program, dict[str, Any]]:
    """Write programs, tables, manifest and the first snapshot; return the index, the item encoder and the manifest."""
    for name, encoder in zip(("user", "item"), encoders, strict=True):
        export_model(encoder, aside / f"{name}.pt2", logits=True, source=source, tolerance=TOLERANCE)
    wide = 0 if first is None else len(first.user_encoder.schema.labels)
    scorers: dict[str, Scorer] = {}
    for name, scorer in parts.scorers.items():
        assert isinstance(scorer, nn.Module)
        item_dim = parts.item_dim - int(parts.facts.get("first_dim", 0))
        scorers[name] = export_scorer(scorer.eval(), aside / f"{name}.pt2", parts.user_dim - wide, item_dim)
    tables: dict[str, Any] = dict(parts.tables)
    np.savez(aside / TABLES, **tables)
    manifest = _manifest(parts, kind, options, wide, source)
    write_text(aside / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    intact.seal(aside)
    made, item = retriever.make_index(aside, manifest, scorers), Program.load(aside / "item.pt2")
    made.build(items.ids.numpy(), item.codes(items))
    snapshot.write(aside, made.save)
    return made, item, manifest


def _manifest(
    parts: Parts, kind: str, options: dict[str, Any], first_user_dim: int, source: dict[str, str] | None
) -> dict[str, Any]:
    catalog().indexes.get(kind)
    return {
        "format": 1,
        "index": kind,
        "options": options,
        "user_dim": parts.user_dim,
        "item_dim": parts.item_dim,
        "inner_product": parts.inner_product,
        "scorers": sorted(parts.scorers),
        "facts": dict(parts.facts),
        "first_user_dim": first_user_dim,
        "source": source or {},
        "torch": torch.__version__,
    }


def export_scorer(scorer: nn.Module, path: Path, user_dim: int, item_dim: int) -> Scorer:
    """Write a scorer (U x du users, U x L x di items, to U x L) as a torch.export program; return it read back.

    What is read back is compared with the scorer.

    Raises:
        RecloomError: It cannot be exported, or the file's scores differ.
    """
    users, items = torch.export.Dim("users"), torch.export.Dim("items")
    example = (torch.randn(3, user_dim), torch.randn(3, 7, item_dim))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(scorer, example, dynamic_shapes=({0: users}, {0: users, 1: items}))
        programs.save(program, path)
    except RecloomError:
        raise
    except Exception as error:  # torch raises many kinds, for whatever in a forward cannot be traced
        cause = str(error).strip().split("\n")[0]
        raise RecloomError(f"{path.stem} cannot be exported: {cause}", "RECLOOM_TRACEBACK=1 shows where.") from error
    run = retriever.load_program(path)
    for count, length in SHAPES:
        asked, found = torch.randn(count, user_dim), torch.randn(count, length, item_dim)
        with torch.no_grad():
            wanted, got = scorer(asked, found), run(asked, found)
        if not torch.allclose(wanted, got, atol=TOLERANCE, rtol=TOLERANCE):
            raise RecloomError(f"{path}: the exported scorer differs from the model's", "Please report it.")
    return run
