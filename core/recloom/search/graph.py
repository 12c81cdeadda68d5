"""A graph of core ATen operations on its way to a program: see `recloom.search.lowering`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from recloom.search.program import Program, WorkKind

ModuleRule = Callable[[nn.Module, Program, Sequence[int], str, str], int]
"""(module, program, places of its inputs, name, group) to the place of its result."""

OperationRule = Callable[["Lowering", Node], None]

BATCH = 2
_MODULES: dict[type, ModuleRule] = {}
_OPERATIONS: dict[str, OperationRule] = {}
_VIEWS = {
    *("view", "_unsafe_view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "cat", "slice"),
    *(
        "select",
        "clone",
        "detach",
        "alias",
        "_to_copy",
        "split",
        "split_with_sizes",
        "getitem",
        "copy",
        "flip",
        "stack",
    ),
    *("_assert_tensor_metadata", "constant_pad_nd", "repeat", "lift_fresh_copy", "index_put", "gather", "unbind"),
}


def module_rule(kind: type) -> Callable[[ModuleRule], ModuleRule]:
    """Register what modules of a class, and of its subclasses, become."""

    def register(rule: ModuleRule) -> ModuleRule:
        _MODULES[kind] = rule
        return rule

    return register


def operation_rule(*names: str) -> Callable[[OperationRule], OperationRule]:
    """Register what operations become, by their names in core ATen ("mm") or a library's ("mine::op")."""

    def register(rule: OperationRule) -> OperationRule:
        _OPERATIONS.update(dict.fromkeys(names, rule))
        return rule

    return register


class Lowering:
    """A graph on its way to a program.

    Args:
        module: The model.
        exported: Its graph, of core ATen operations, for a batch of `BATCH` samples.
    """

    def __init__(self, module: nn.Module, exported: torch.export.ExportedProgram) -> None:
        self.module, self.graph = module, exported.graph
        self.program = Program()
        self.parameters: dict[Node, str] = {}
        self.places: dict[Node, tuple[int, ...]] = {}
        self.static: set[Node] = set()
        self._names: dict[str, int] = {}
        self._weights: dict[str, int] = {}
        self._tables: dict[str, int] = {}
        self._done: dict[str, int] = {}
        signature = exported.graph_signature
        known = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        for node in self.graph.nodes:
            if node.op == "placeholder" and (node.name in known or node.name in constants):
                self.parameters[node] = known.get(node.name, node.name)

    def run(self) -> Program:
        """Return the program."""
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.places[node] = ()
                if node in self.parameters:
                    self.static.add(node)
            elif node.op == "call_function":
                self._visit(node)
        self.program.table_bytes = sum(self._tables.values())
        return self.program

    def add(
        self,
        node: Node,
        kind: WorkKind,
        rows: int,
        columns: int,
        vectors: int,
        weight: Node | None = None,
        **options: Any,
    ) -> None:
        """Add the work of `node`; its inputs are those of the node, and `weight` its fixed operand."""
        path = self._path(node)
        name = path or _operation(node)
        self._names[name] = self._names.get(name, 0) + 1
        if self._names[name] > 1:
            name = f"{name}.{_operation(node)}{self._names[name]}"
        inputs = sorted({place for source in node.all_input_nodes for place in self.places[source]})
        group = path.split(".")[0]
        same = -1 if weight is None else self._weights.get(_formula(weight), -1)
        place = self.program.add(name, kind, rows, columns, vectors, inputs, group, weights_of=same, **options)
        if weight is not None and same < 0:
            self._weights[_formula(weight)] = place
        self.places[node] = (place,)

    def table(self, node: Node) -> int:
        """Count `node`, a parameter, as a table; return its number of values."""
        tensor = value(node)
        self._tables[self.parameters[node]] = tensor.numel() * tensor.element_size()
        return tensor.numel()

    def _visit(self, node: Node) -> None:
        sources = node.all_input_nodes
        self.places[node] = tuple(sorted({place for source in sources for place in self.places[source]}))
        if all(source in self.static for source in sources):
            self.static.add(node)
            return
        if (owner := self._owner(node)) is not None:
            self.places[node] = (self._by_module(owner),)
            return
        result = node.meta.get("val")
        if not isinstance(result, Tensor | tuple | list) or not _floating(result):
            return  # bookkeeping of ids and bounds
        operation = _operation(node)
        if operation in _OPERATIONS:
            _OPERATIONS[operation](self, node)
        elif operation not in _VIEWS:
            elementwise(self, node)

    def _owner(self, node: Node) -> str | None:
        """Return the path of the outermost module around `node` that says itself what it becomes."""
        for path in self._stack(node)[1:]:
            if _rule(self.module.get_submodule(path)) is not None:
                return path
        return None

    def _by_module(self, path: str) -> int:
        if path not in self._done:
            inside = {node for node in self.graph.nodes if path in self._stack(node)}
            outside = {source for node in inside for source in node.all_input_nodes} - inside
            inputs = sorted({place for source in outside for place in self.places.get(source, ())})
            module = self.module.get_submodule(path)
            rule = _rule(module)
            assert rule is not None
            self._done[path] = rule(module, self.program, inputs, path, path.split(".")[0])
        return self._done[path]

    def _stack(self, node: Node) -> list[str]:
        return [path for path, _ in (node.meta.get("nn_module_stack") or {"": ("", "")}).values()]

    def _path(self, node: Node) -> str:
        return self._stack(node)[-1]


def value(node: Any) -> Tensor:
    """Return the (symbolic) tensor of a node."""
    tensor = node.meta["val"]
    assert isinstance(tensor, Tensor)
    return tensor


def elementwise(lowering: Lowering, node: Node) -> None:
    """Add an operation on each value of the largest tensor that it reads or makes."""
    tensors = [value(n) for n in [*node.all_input_nodes, node] if isinstance(n.meta.get("val"), Tensor)]
    largest = max((t for t in tensors), key=lambda tensor: tensor.numel())
    own = [n for n in node.all_input_nodes if n in lowering.parameters and n.op == "placeholder"]
    width = int(largest.shape[-1]) if largest.ndim > 1 else 1
    parameters = sum(value(n).numel() for n in own)
    vectors = each(largest.numel() // max(width, 1))
    lowering.add(node, "elementwise", 1, width, vectors, own[0] if own else None, parameters=parameters)


def each(count: int) -> int:
    """Return what one sample has of `count` in the batch."""
    return math.ceil(count / BATCH)


def _formula(node: Any) -> str:
    """Return how a static node is made from parameters: equal texts are equal tensors."""
    if not isinstance(node, Node):
        return repr(node) if not isinstance(node, list | tuple) else f"[{','.join(map(_formula, node))}]"
    return node.name if node.op == "placeholder" else f"{node.target}({','.join(map(_formula, node.args))})"


def _rule(module: nn.Module) -> ModuleRule | None:
    for kind in type(module).__mro__:
        if kind in _MODULES:
            return _MODULES[kind]
    own = getattr(type(module), "lower", None)
    return own if callable(own) else None


def _operation(node: Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target.name().partition("::")
        name = name.partition(".")[0]
        return name if namespace == "aten" else f"{namespace}::{name}"
    return getattr(target, "__name__", str(target))


def _floating(result: Any) -> bool:
    tensors = result if isinstance(result, tuple | list) else [result]
    return any(isinstance(t, Tensor) and t.is_floating_point() for t in tensors)
