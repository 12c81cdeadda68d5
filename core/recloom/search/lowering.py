"""The program of any model that exports: its work read off the graph of `torch.export`.

A space says itself what its models do; this is for models that were written by hand, so that they are priced like
candidates. Each node of the exported graph becomes a work by the rule of its operation: products with weights, products
of two computed operands, gathers, and elementwise work for all others. A module can say itself what it becomes: by a
method `lower(program, inputs, name, group) -> place`, or by a rule that `@module_rule(Class)` registered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from recloom.errors import RecloomError
from recloom.model import RankingModule
from recloom.search.graph import BATCH, Lowering, each, module_rule, operation_rule, value
from recloom.search.program import Program
from recloom.sequence import histories_of
from recloom.serving import batch_of, random_inputs

__all__ = ["Lowering", "lower", "module_rule", "operation_rule"]


def lower(module: RankingModule) -> Program:
    """Return what `module` does for a sample, as its exported graph says; bags and histories are full.

    Works are named by the modules that they are in, and grouped by the direct parts of the model. Parameters are those
    that serving needs: weights that are only ever used together, as their sum say, count as one.

    Raises:
        RecloomError: The model cannot be exported.
    """
    inputs = random_inputs(module, BATCH, 0)
    if "lengths" in inputs:
        lengths = torch.tensor([[feature.max_length or 4] * BATCH for feature in module.schema.sparse])
        inputs |= {"lengths": lengths, "values": torch.zeros(int(lengths.sum()), dtype=torch.int64)}
        if "weights" in inputs:
            inputs["weights"] = torch.ones(len(inputs["values"]))
    batch = batch_of(module, inputs)
    sparse = batch.sparse_features
    arguments: tuple[Any, ...] = (batch.dense_features, sparse.values, sparse.bag_offsets, sparse.weights)
    arguments += (histories_of(batch),) if module.uses_histories else ()
    try:
        with torch.no_grad():
            exported = torch.export.export(module.eval(), arguments).run_decompositions()
    except Exception as error:  # whatever torch.export raises on what it cannot follow
        cause = str(error).strip().split("\n")[0]
        raise RecloomError(f"{type(module).__name__} cannot be lowered: {cause}", "It must be exportable.") from error
    return Lowering(module, exported).run()


@operation_rule("mm", "addmm", "bmm", "baddbmm")
def product(lowering: Lowering, node: Node) -> None:
    """Add a matrix product: with weights if one operand is static, else of two computed operands."""
    first, second = (operand for operand in node.args[-2:] if isinstance(operand, Node))
    *_, left, inner = value(first).shape
    columns = value(second).shape[-1]
    count = value(first).shape[0] if value(first).ndim == 3 else 1
    bias = len(node.args) > 2 and node.args[0] in lowering.static
    if second in lowering.static:
        lowering.add(node, "matmul", inner, columns, each(count * left), second, bias=bias)
    elif first in lowering.static:
        lowering.add(node, "matmul", inner, left, each(count * columns), first, bias=bias)
    else:
        lowering.add(node, "dynamic", inner, columns, each(count * left))


@operation_rule("embedding", "index_select", "index", "_embedding_bag")
def gather(lowering: Lowering, node: Node) -> None:
    """Add a lookup if the rows are those of a parameter; else it is a view."""
    source = node.args[0]
    if isinstance(source, Node) and source in lowering.parameters and value(source).is_floating_point():
        width = value(source).shape[-1]
        index = next(other for other in node.all_input_nodes if other is not source)
        lookups = each(value(index).numel())
        lowering.add(node, "gather", 1, width, lookups, parameters=lowering.table(source))
