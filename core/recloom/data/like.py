"""`prepare --like DIR`: a later log with the ids and transforms of a data set, so that a trained model reads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl

from recloom.data.encode import Encoder
from recloom.data.formats.base import RawFormat
from recloom.data.hashing import hash_strings
from recloom.data.manifest import SCHEMA, Manifest
from recloom.data.prepare_options import PrepareOptions
from recloom.data.vocabulary import Vocabulary
from recloom.errors import DataError
from recloom.features import FeatureSchema, SparseFeature


class Like:
    """What is taken over from a prepared data set.

    Args:
        directory: The data set.
        raw: The format of the later log.

    Attributes:
        encoder: Encodes as the data set was encoded; values that its vocabularies do not have get id 0.
        files: The vocabularies' files by feature, relative to a data set's directory; empty if ids are hashed.

    Raises:
        DataError: There is no whole data set; its features are not those of the log; a vocabulary is damaged.
    """

    def __init__(self, directory: Path, raw: RawFormat) -> None:
        Manifest.load(directory)
        self._directory = directory
        schema = FeatureSchema.load(directory / SCHEMA)
        self._check_names(schema, raw)
        hexadecimal = {column.name: column.kind == "hex" for column in raw.columns_of("sparse", "bag")}
        self.files = {feature.name: feature.vocabulary for feature in schema.sparse if feature.vocabulary}
        sizes = {feature.num_embeddings for feature in schema.sparse if not feature.vocabulary}
        if sizes and (self.files or len(sizes) > 1):
            raise DataError(f"{directory}: its ids are neither all hashed nor all in vocabularies", "Prepare it again.")
        vocabularies = {f.name: self._read(f, hexadecimal[f.name]) for f in schema.sparse if f.vocabulary}
        transform = schema.dense[0].transform if schema.dense else "none"
        self.encoder = Encoder(raw, vocabularies, next(iter(sizes), None), transform)
        ours = self.encoder.schema(self.files, {}).sparse
        if other := [mine.name for mine, theirs in zip(ours, schema.sparse, strict=True) if mine != theirs]:
            hint = "Name the same columns as --sparse and as --bag."
            raise DataError(
                f"{directory}: {', '.join(other)}: bags there and single values in this log, or the other way", hint
            )

    @classmethod
    def asked_for(cls, options: PrepareOptions, raw: RawFormat, output: Path) -> Like:
        """Return that of `options.like`; DataError for other options that would make ids or transforms of their own."""
        assert options.like is not None
        if options.hash_size or options.max_vocabulary or options.min_count > 1 or options.dense_transform:
            raise DataError(
                "--like takes ids and transforms from its data set",
                "Leave out --hash-size, --max-vocabulary, --min-count and --dense-transform.",
            )
        if options.like.resolve() == output.resolve():
            raise DataError(f"{output}: --like is the directory that is written", "Choose another --output.")
        return cls(options.like, raw)

    def copy(self, output: Path) -> None:
        """Copy the vocabularies to the data set that is written in `output`."""
        for file in self.files.values():
            (output / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(self._directory / file, output / file)

    def _check_names(self, schema: FeatureSchema, raw: RawFormat) -> None:
        theirs = [feature.name for feature in schema.dense] + [feature.name for feature in schema.sparse]
        ours = [column.name for column in (*raw.columns_of("dense"), *raw.columns_of("sparse", "bag"))]
        if ours == theirs:
            return
        missing, more = ([n for n in a if n not in b] for a, b in ((theirs, ours), (ours, theirs)))
        what = f"which lacks {', '.join(missing)}" if missing else f"which has also {', '.join(more)}"
        raise DataError(
            f"{self._directory}: its features are not this log's, {what if missing or more else 'in order'}",
            "--like takes the data set that the model was trained on; name the same columns in the same order.",
        )

    def _read(self, feature: SparseFeature, hexadecimal: bool) -> Vocabulary:
        path = self._directory / feature.vocabulary
        try:
            frame = pl.read_parquet(path, columns=["value", "id"])
            ids, values = frame["id"].to_numpy()[1:].astype(np.int32), frame["value"][1:]
            if hexadecimal:
                keys = values.str.to_integer(base=16, dtype=pl.UInt32).to_numpy()
            else:
                keys = hash_strings(values.to_arrow())
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{path}: the vocabulary cannot be read: {error}", "Run `recloom prepare` again.") from None
        if len(ids) + 1 != feature.num_embeddings or not np.array_equal(ids, np.arange(1, len(ids) + 1)):
            raise DataError(
                f"{path}: {len(ids) + 1:,} ids where the schema has {feature.num_embeddings:,}, or not in order",
                "Run `recloom prepare` again.",
            )
        order = np.argsort(keys, kind="stable")
        return Vocabulary(keys[order], ids[order])
