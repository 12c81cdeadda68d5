"""What core itself registers, through the same catalog as plugins do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recloom.catalog import Catalog


def register(catalog: Catalog) -> None:
    """Add core's components: import paths only, nothing is imported."""
    for name, path, summary in (
        ("plugins", "lists:plugins", "list installed plugins, and why a broken one is not in use"),
        ("components", "lists:components", "list registered components by kind"),
        ("prepare", "prepare:main", "turn a raw log of any size into Parquet shards with a schema"),
        ("fit", "trainer:fit", "train a model from a config"),
        ("validate", "trainer:validate", "evaluate a checkpoint on the validation rows"),
        ("test", "trainer:test", "evaluate a checkpoint on the test rows"),
        ("predict", "trainer:predict", "write a checkpoint's predictions to Parquet"),
        ("search", "search:main", "search a space of models for the best ones"),
        ("index", "index:main", "build and search indexes of items, change what is in them"),
        ("cost", "cost:main", "what a model does for a sample: MACs, parameters"),
        ("export", "export:main", "write a checkpoint as torch.export or ONNX, checked against eager"),
        ("serve", "serve:main", "answer requests over HTTP with a trained model"),
        ("bench", "commands:bench", "run a plugin's speed measurements"),
        ("reproduce", "commands:reproduce", "run a paper's experiment and judge its claims"),
        ("docs", "docs:main", "build the documentation and open it, without a network"),
        ("new-plugin", "scaffold:main", "write a plugin of your own to start from"),
    ):
        catalog.commands.add(name, f"recloom.cli.{path}", summary=summary)
    catalog.benchmarks.add("serve", "recloom.online.bench:main", summary="a model's latency under load, highest rates")
    catalog.benchmarks.add(
        "load", "recloom.online.client:main", summary="requests to a `recloom serve`, and what came back"
    )
    data = catalog.datamodules
    data.add("SyntheticClicks", "recloom.data.synthetic:SyntheticClicks", summary="clicks of known probability")
    data.add("SyntheticBehaviour", "recloom.data.behaviour:SyntheticBehaviour", summary="histories, times that matter")
    data.add("EventStreams", "recloom.data.streams.module:EventStreams", summary="event streams, in windows")
    data.add("PowerLawEvents", "recloom.data.streams.module:PowerLawEvents", summary="a generated event stream")
    data.add("StreamClicks", "recloom.data.streams.clicks:StreamClicks", summary="ranking rows of an event stream")
    data.add("RetrievalClicks", "recloom.data.retrieval:RetrievalClicks", summary="users, items, known utility")
    data.add("ParquetClicks", "recloom.data.parquet:ParquetClicks", summary="shards written by recloom prepare")
    for name, path, summary in (
        ("criteo", "criteo:Criteo", "Criteo Kaggle: 13 counts, 26 categories, TAB"),
        ("criteo_terabyte", "criteo:CriteoTerabyte", "Criteo 1TB click logs, day files"),
        ("avazu", "avazu:Avazu", "Avazu click-through rate prediction"),
        ("kdd12", "kdd12:KDD12", "KDD Cup 2012 track 2"),
        ("table", "table:Table", "any CSV or Parquet table, columns named by options"),
        ("taobao", "taobao:Taobao", "Taobao UserBehavior: events to histories"),
        ("movielens", "movielens:MovieLens", "MovieLens ratings: events to histories"),
        ("events", "events:Events", "any event log (user, item, time): events to histories"),
        ("jodie", "jodie:Jodie", "JODIE's csv (Wikipedia, Reddit, ...): an event stream"),
        ("graph", "graph:Graph", "any log of source, destination, time: an event stream"),
        ("movielens_graph", "graph:MovieLensGraph", "MovieLens ratings: an event stream"),
    ):
        catalog.formats.add(name, f"recloom.data.formats.{path}", summary=summary)
    embeddings = catalog.embeddings
    embeddings.add("FusedEmbeddingBag", "recloom.embedding:FusedEmbeddingBag", summary="all tables in one weight")
    embeddings.add(
        "FbgemmEmbeddingBag",
        "recloom.embedding_fbgemm:FbgemmEmbeddingBag",
        summary="FBGEMM's table-batched",
        extra="fbgemm",
    )
    embeddings.add("NodeEmbeddingBag", "recloom.nodes:NodeEmbeddingBag", summary="with node vectors from elsewhere")
    for name, path, summary in (
        ("RandomSearch", "random:RandomSearch", "every candidate at random"),
        ("LocalSearch", "random:LocalSearch", "neighbours of the best"),
        ("RegularizedEvolution", "evolution:RegularizedEvolution", "mutations of the best of the youngest"),
        ("NSGA2", "evolution:NSGA2", "evolution towards a Pareto front"),
        ("TPE", "optuna:TPE", "Optuna's tree-structured Parzen estimator"),
        ("GP", "optuna:GP", "Optuna's Gaussian processes"),
        ("Predictor", "predictor:Predictor", "an ensemble of networks that ranks candidates"),
        ("Reinforce", "reinforce:Reinforce", "a policy over genotypes, on- and off-policy"),
        ("OneShot", "oneshot:OneShot", "a policy over a supernet, beside a co-trained baseline"),
        ("DNAS", "dnas:DNAS", "Gumbel-softmax over the choices, by gradients"),
        ("random", "random:RandomSearch", "short for RandomSearch"),
        ("evolution", "evolution:RegularizedEvolution", "short for RegularizedEvolution"),
        ("nsga2", "evolution:NSGA2", "short for NSGA2"),
        ("tpe", "optuna:TPE", "short for TPE"),
        ("gp", "optuna:GP", "short for GP"),
        ("predictor", "predictor:Predictor", "short for Predictor"),
        ("rl", "reinforce:Reinforce", "short for Reinforce"),
        ("oneshot", "oneshot:OneShot", "short for OneShot"),
        ("dnas", "dnas:DNAS", "short for DNAS"),
    ):
        catalog.search_methods.add(name, f"recloom.search.methods.{path}", summary=summary)
    catalog.search_spaces.add(
        "SlotSpace", "recloom.search.slot:SlotSpace", summary="any space as a part of a given model: an item tower, ..."
    )
    for name, path, summary in (
        ("FromScratch", "scratch:FromScratch", "each candidate trained from fresh weights"),
        ("Together", "together:Together", "several candidates trained from fresh weights in one loop"),
        ("MovingBaseline", "moving:MovingBaseline", "gains over a baseline trained on the same rows"),
        ("SupernetEvaluator", "supernet:SupernetEvaluator", "shared weights, the last layer fine-tuned"),
        ("ZeroCost", "zerocost:ZeroCost", "proxies at the start of training"),
    ):
        catalog.evaluators.add(name, f"recloom.search.evaluators.{path}", summary=summary)
    summary = "another evaluator, on the machines of a Ray cluster"
    catalog.evaluators.add("OnRay", "recloom.search.evaluators.on_ray:OnRay", summary=summary, extra="ray")
    for name, path, summary in (
        ("Exhaustive", "exhaustive:Exhaustive", "every item scored, by any model"),
        ("FlatIP", "vectors:FlatIP", "all inner products, by faiss"),
        ("IVF", "ivf:IVF", "inner products in inverted lists, by faiss"),
        ("HNSW", "hnsw:HNSW", "inner products in a graph, by faiss"),
        ("Cascade", "cascade:Cascade", "candidates by inner product, then the ranker"),
    ):
        catalog.indexes.add(name, f"recloom.retrieval.{path}", summary=summary)
    summary = "recall of the exhaustive scorer's best, within a fit"
    catalog.callbacks.add("RetrievalEval", "recloom.retrieval.evaluation:RetrievalEval", summary=summary)
    costs = catalog.cost_models
    costs.add("AnalyticCost", "recloom.search.costs:AnalyticCost", summary="MACs, parameters, bytes of tables")
    costs.add("LatencyCost", "recloom.search.costs:LatencyCost", summary="forward time on this machine")
