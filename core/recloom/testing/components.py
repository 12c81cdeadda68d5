"""Checks of what components do, through their public contracts. Each yields a sentence for what is amiss."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from recloom import checkpoint, quiet
from recloom.batch import Batch
from recloom.catalog import Entry
from recloom.embedding import EmbeddingBagCollection, EmbeddingBagConfig
from recloom.errors import DataError, RecloomError
from recloom.export import export_model
from recloom.features import FeatureSchema
from recloom.model import Interaction, RankingModule
from recloom.sequence import AuxiliaryLoss, SequenceEncoder, take_auxiliary_losses
from recloom.testing.helpers import tiny_batch, tiny_schema

TOLERANCE = 1e-5


def component_problems(entry: Entry, component: Any, options: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with what the component does; `options` are further constructor arguments."""
    checks: dict[str, Callable[[Any, dict[str, Any]], Iterator[str]]] = {
        "interaction": interaction_problems,
        "sequence encoder": sequence_encoder_problems,
        "embedding": embedding_problems,
        "model": model_problems,
        "datamodule": datamodule_problems,
    }
    check = checks.get(entry.kind)
    if check is None:
        return
    label = f"{entry.kind} {entry.name!r}"
    try:
        for problem in check(component, options):
            yield f"{label}: {problem}"
    # a component is somebody else's code: whatever it raises is the finding
    except Exception as error:
        yield f"{label}: {_where(error)}: {type(error).__name__}: {error}"


def interaction_problems(kind: Callable[..., Interaction], options: dict[str, Any]) -> Iterator[str]:
    """Check width, gradients, and that samples do not see one another, for 5 vectors of width 8."""
    interaction = kind(5, 8, **options)
    vectors = torch.randn(6, 5, 8, requires_grad=True)
    out = interaction(vectors)
    if out.shape != (6, interaction.output_dim):
        yield f"6 samples give an output of shape {tuple(out.shape)}, and output_dim is {interaction.output_dim}"
        return
    (out * torch.randn_like(out)).sum().backward()
    if vectors.grad is None or not bool((vectors.grad.abs().sum(dim=(0, 2)) > 0).all()):
        yield "some of the vectors get no gradient"
    idle = [name for name, p in interaction.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        yield f"parameters get no gradient: {', '.join(idle)}"
    interaction.eval()
    with torch.no_grad():
        alone = torch.cat([interaction(vectors[i : i + 1]) for i in range(6)])
        if not torch.allclose(interaction(vectors), alone, atol=TOLERANCE):
            yield "a sample's output depends on the other samples of its batch"


def sequence_encoder_problems(kind: Callable[..., SequenceEncoder], options: dict[str, Any]) -> Iterator[str]:
    """Check width, gradients, masks and export, for histories of 0 to 6 steps of width 8."""
    encoder = kind(8, 6, **options)
    mask = torch.arange(6) >= 6 - torch.tensor([6, 0, 1, 3, 6])[:, None]
    gaps = torch.arange(6, 0, -1) * 3600.0 * mask
    steps = (torch.randn(5, 6, 8) * mask[..., None]).requires_grad_()
    query = torch.randn(5, 8, requires_grad=True)
    out = encoder(steps, query, mask, gaps)
    if out.shape != (5, encoder.output_dim):
        yield f"5 histories give an output of shape {tuple(out.shape)}, and output_dim is {encoder.output_dim}"
        return
    if not bool(torch.isfinite(out).all()):
        yield "the output is not finite (one of the histories is empty)"
    (out * torch.randn_like(out)).sum().backward(retain_graph=True)  # auxiliary losses share parts of the graph
    assert steps.grad is not None
    if not bool((steps.grad.abs().sum(-1) > 0)[mask].all()):
        yield "some of the steps get no gradient"
    losses = take_auxiliary_losses([child for child in encoder.modules() if isinstance(child, AuxiliaryLoss)])
    if losses:
        sum(losses[1:], losses[0]).backward()
    idle = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        yield f"parameters get no gradient: {', '.join(idle)}"
    encoder.eval()
    with torch.no_grad():
        expected = encoder(steps, query, mask, gaps)
        noise = torch.where(mask[..., None], steps, torch.randn_like(steps))
        if not torch.allclose(encoder(noise, query, mask, gaps), expected, atol=TOLERANCE):
            yield "what is at padded places reaches the output"
        alone = torch.cat(
            [encoder(steps[i : i + 1], query[i : i + 1], mask[i : i + 1], gaps[i : i + 1]) for i in range(5)]
        )
        if not torch.allclose(alone, expected, atol=TOLERANCE):
            yield "a sample's output depends on the other samples of its batch"
        short = encoder(steps[1:4, 3:], query[1:4], mask[1:4, 3:], gaps[1:4, 3:])
        if not torch.allclose(short, expected[1:4], atol=TOLERANCE):
            yield "more padding in front of a history changes the output"
        rows = {0: torch.export.Dim("rows")}
        try:
            with warnings.catch_warnings(action="ignore"):
                torch.export.export(encoder, (steps.detach(), query.detach(), mask, gaps), dynamic_shapes=(rows,) * 4)
        except Exception as error:  # of many kinds, see recloom.export
            yield f"it cannot be exported: {str(error).strip().splitlines()[0]}"


def embedding_problems(kind: Callable[..., EmbeddingBagCollection], options: dict[str, Any]) -> Iterator[str]:
    """Check the contract of EmbeddingBagCollection: the sums of its own rows, for bags, one-hot data, shared tables."""
    tables = [
        EmbeddingBagConfig("shared", 8, 20, ("a", "b")),
        EmbeddingBagConfig("own", 8, 12, ("c",), "mean"),
    ]
    collection = kind(tables, **options)
    if collection.feature_names != ["a", "b", "c"]:
        yield f"feature_names is {collection.feature_names}, and its tables' are ['a', 'b', 'c']"
        return
    width = collection.output_dim
    lengths = torch.tensor([2, 0, 1, 3, 1, 1, 0, 4, 2])  # 3 features x 3 samples
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(0, 12, (int(offsets[-1]),), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = collection(ids, offsets)
        if found.shape != (3, 3, width):
            yield f"3 samples of 3 features give {tuple(found.shape)}, and (3, 3, {width}) is expected"
            return
        if not torch.allclose(found, _pooled(collection, ids, offsets, width), atol=TOLERANCE):
            yield "bags are not the sums (and means, where asked) of the rows that `lookup` returns"
        one_hot = torch.arange(9)
        if not torch.allclose(collection(one_hot), collection(one_hot, torch.arange(10)), atol=TOLERANCE):
            yield "one-hot data (no offsets) give another result than the same data with offsets"
        if collection.lookup("a", torch.zeros(2, 5, dtype=torch.int64)).shape != (2, 5, width):
            yield f"lookup of 2 x 5 ids is not 2 x 5 x {width}"
        if not torch.equal(collection.lookup("a", one_hot), collection.lookup("b", one_hot)):
            yield "features 'a' and 'b' share a table, and their rows differ"
    for feature, bad in (("a", [20, 0, 0]), ("c", [0, 0, 12])):
        try:
            collection(torch.tensor(bad))
        except DataError as error:
            if feature not in str(error) or str(max(bad)) not in str(error):
                yield f"the error about id {max(bad)} of feature {feature!r} names not both: {error}"
        else:
            yield f"id {max(bad)} of feature {feature!r} is outside its table, and no DataError is raised"


def model_problems(kind: Callable[..., Any], options: dict[str, Any]) -> Iterator[str]:
    """Check that a RankingModule trains on one-hot data and on bags, that its checkpoint reads back, and export."""
    if not (isinstance(kind, type) and issubclass(kind, RankingModule)):
        return
    schemas = [tiny_schema(one_hot=True), tiny_schema(), tiny_schema(one_hot=True, histories=True)]
    for schema in schemas[2 if kind.uses_histories else 0 :]:
        what = "data with histories" if schema.sequences else "one-hot data" if schema.one_hot else "data with bags"
        module = kind(schema=schema.to_dict(), **options)
        with torch.no_grad():
            logits = module.eval().logits(tiny_batch(schema))
        if logits.shape != (16,):
            yield f"16 samples of {what} give logits of shape {tuple(logits.shape)}, not (16,)"
            return
        with tempfile.TemporaryDirectory() as folder:
            yield from _training_problems(module.train(), schema, what, Path(folder))
            if type(module).logits is RankingModule.logits:
                try:
                    export_model(module, Path(folder) / "model.pt2")
                except RecloomError as error:
                    yield f"with {what}: {error.message}"


def datamodule_problems(kind: Callable[..., Any], options: dict[str, Any]) -> Iterator[str]:
    """Check that `schema` is there once it is built, as primitives: the command line links it into the model."""
    try:
        module = kind(**options)
    except TypeError:
        return  # it needs arguments (a path) that no check can guess
    schema = module.schema
    if FeatureSchema.from_dict(schema).to_dict() != schema:
        yield "`schema` is not FeatureSchema.to_dict() of a schema"


def _training_problems(module: RankingModule, schema: FeatureSchema, what: str, folder: Path) -> Iterator[str]:
    """Train 4 steps, evaluate, save, read back."""
    loader: DataLoader[Batch] = DataLoader([tiny_batch(schema, seed=i) for i in range(4)], batch_size=None)  # type: ignore[arg-type]
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    quiet.hush()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader, loader)
    after = dict(module.named_parameters())
    still = [name for name, value in before.items() if after[name].requires_grad and torch.equal(after[name], value)]
    if still:
        yield f"training on {what} leaves parameters as they were: {', '.join(still)}"
    if not bool(torch.isfinite(trainer.callback_metrics["val_logloss"])):
        yield f"4 steps on {what} give a validation loss that is not finite"
    trainer.save_checkpoint(folder / "model.ckpt")
    stored = checkpoint.read(folder / "model.ckpt")
    if not _primitive(stored.get("hyper_parameters", {})):
        yield "hyper-parameters in its checkpoint are not all primitives"
    checkpoint.load_weights(module, folder / "model.ckpt")


def _pooled(collection: EmbeddingBagCollection, ids: Tensor, offsets: Tensor, width: int) -> Tensor:
    """Return the B x F x D result made of single rows."""
    bounds = offsets.tolist()
    bags = []
    for bag, (start, end) in enumerate(itertools.pairwise(bounds)):
        feature = collection.feature_names[bag // 3]
        rows = collection.lookup(feature, ids[start:end])
        pooled = rows.sum(0) if feature != "c" or start == end else rows.mean(0)
        bags.append(pooled.view(width))
    return torch.stack(bags).view(3, 3, width).transpose(0, 1)


def _primitive(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _primitive(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_primitive(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _where(error: Exception) -> str:
    """Return the file and line where the error was raised."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
