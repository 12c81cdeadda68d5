"""The feature schema: which columns a data set has, of which kind and size. It travels from data to model as a dict."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recloom.errors import DataError


@dataclass(frozen=True)
class DenseFeature:
    """A number a sample.

    Args:
        name: Column name.
        transform: What `prepare` did to the raw value ("none", "log"), for the record and for serving.
        vector: Name of the vector (an embedding made elsewhere, say) of which this is a coordinate; "": of none.
    """

    name: str
    transform: str = "none"
    vector: str = ""


@dataclass(frozen=True)
class SparseFeature:
    """A category, or a bag of them, a sample.

    Args:
        name: Column name.
        num_embeddings: Ids lie in 0 .. num_embeddings-1.
        max_length: 1 for exactly one id a sample; otherwise a bag of any length up to this (0: no limit).
        table: Name of the embedding table; features with the same table share it. Empty: the feature's own.
        vocabulary: File with the raw values by id, relative to the schema, if the ids come from a vocabulary.
    """

    name: str
    num_embeddings: int
    max_length: int = 1
    table: str = ""
    vocabulary: str = ""

    @property
    def table_name(self) -> str:
        """Name of the table that the feature looks up."""
        return self.table or self.name


@dataclass(frozen=True)
class SequenceFeature:
    """A behaviour history a sample.

    Args:
        name: Key in `Batch.sequences`.
        keys: The aligned ids of a step; give a key the `table` of a sparse feature to share its embeddings.
        max_length: Longest history.
        timestamps: Whether the steps carry times.
    """

    name: str
    keys: tuple[SparseFeature, ...]
    max_length: int
    timestamps: bool = False


@dataclass(frozen=True)
class FeatureSchema:
    """All columns of a data set.

    Args:
        dense: Dense features, in the order of `Batch.dense_features`' columns.
        sparse: Sparse features, in the order of the KeyedJaggedTensor's keys.
        sequences: Behaviour histories.
        labels: Label columns; one task each.
        weight: Sample weight column, or "".
        timestamp: Time column (integer seconds), or "".
        group: Column whose ids group samples (user, session) for grouped metrics, or "".
        item_features: Names of the dense and sparse features that describe the candidate; the others, and histories,
            describe who asks. For retrieval; () if the data do not say.
        item_id: The sparse feature that is the candidate's id, or "".
        info: Facts for people: the format, the source's name, row counts. Never read by code that trains.
    """

    dense: tuple[DenseFeature, ...] = ()
    sparse: tuple[SparseFeature, ...] = ()
    sequences: tuple[SequenceFeature, ...] = ()
    labels: tuple[str, ...] = ("label",)
    weight: str = ""
    timestamp: str = ""
    group: str = ""
    item_features: tuple[str, ...] = ()
    item_id: str = ""
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def sparse_names(self) -> list[str]:
        """Names of the sparse features."""
        return [feature.name for feature in self.sparse]

    @property
    def vectors(self) -> dict[str, list[int]]:
        """Columns of the dense features that are one vector's coordinates, by the vector's name."""
        found: dict[str, list[int]] = {}
        for column, feature in enumerate(self.dense):
            if feature.vector:
                found.setdefault(feature.vector, []).append(column)
        return found

    @property
    def one_hot(self) -> bool:
        """Whether every sparse feature has exactly one id a sample."""
        return all(feature.max_length == 1 for feature in self.sparse)

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as primitives, for links, checkpoints and JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any] | FeatureSchema | None) -> FeatureSchema:
        """Return the schema that `to_dict` wrote. None gives an empty one."""
        if isinstance(values, FeatureSchema):
            return values
        known = {f.name for f in dataclasses.fields(cls)}
        kept = {key: value for key, value in (values or {}).items() if key in known}

        def sparse(items: Any) -> tuple[SparseFeature, ...]:
            return tuple(SparseFeature(**item) for item in items)

        return cls(
            **{
                **kept,
                "dense": tuple(DenseFeature(**item) for item in kept.get("dense", ())),
                "sparse": sparse(kept.get("sparse", ())),
                "sequences": tuple(
                    SequenceFeature(**{**item, "keys": sparse(item["keys"])}) for item in kept.get("sequences", ())
                ),
                "labels": tuple(kept.get("labels", ("label",))),
                "item_features": tuple(kept.get("item_features", ())),
            }
        )

    def save(self, path: Path) -> None:
        """Write the schema as JSON, aside first and then renamed."""
        aside = path.with_name(path.name + ".part")
        aside.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> FeatureSchema:
        """Read a schema; DataError names the file and what is wrong with it."""
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except FileNotFoundError:
            raise DataError(
                f"{path}: there is no schema here",
                "Prepare the data first: recloom prepare FORMAT --input ... --output ...",
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: not a feature schema: {error}", "Run `recloom prepare` again.") from error
