"""Ways to run a trained model, each checked against the eager one: `build(module, "onnx", threads)`.

An engine takes a `Batch` and returns probabilities. What it may differ from the eager model by is stated in TOLERANCE.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.batch import Batch
from recloom.errors import RecloomError, unknown
from recloom.export import export_model
from recloom.linear import for_inference
from recloom.model import RankingModule
from recloom.online.inputs import inputs_of
from recloom.serving import batch_of, random_inputs

Engine = Callable[[Batch], Tensor]
"""Maps a batch of B samples to B probabilities, or B x T."""

TOLERANCE = {"eager": 1e-6, "bf16": 2e-2, "int8": 5e-2, "export": 1e-5, "onnx": 1e-5, "aot": 1e-4}
"""The engines, and by how much their probabilities may differ from the eager model's."""
NARROW = 16  # layers of fewer outputs, the logits above all, stay in fp32


def build(module: RankingModule, name: str = "eager") -> Engine:
    """Return the engine `name` of `module`, after comparing it with the eager model on random batches.

    Args:
        module: A trained model; it is not changed.
        name: "eager": PyTorch, weights in the order in which products read them. "bf16": linear layers in bfloat16,
            tables and logits in fp32. "int8": linear layers of 8-bit weights, activations quantised as they come.
            "export": a torch.export program. "onnx": ONNX Runtime. "aot": AOTInductor, compiled to a library (needs a
            C++ compiler; about a minute).

    Raises:
        RecloomError: There is no such engine, the model cannot be exported, or the engine disagrees with it.
    """
    makers: dict[str, Callable[[RankingModule], Engine]] = {
        "eager": lambda model: _eager(for_inference(model)),
        "bf16": lambda model: _eager(_with_linears(model, _BFloat16)),
        "int8": lambda model: _eager(_with_linears(model, _int8)),
        "export": _export,
        "onnx": _onnx,
        "aot": _aot,
    }
    if name not in makers:
        raise unknown("engine", name, makers)
    module = module.eval()
    engine = makers[name](module)
    found = largest_difference(engine, module)
    if not found <= TOLERANCE[name]:
        raise RecloomError(
            f"engine {name!r} differs from eager by {found:.3g} on random batches, more than {TOLERANCE[name]:g}",
            "Serve this model with another engine.",
        )
    return engine


def largest_difference(engine: Engine, module: RankingModule, batches: tuple[int, ...] = (1, 5, 64)) -> float:
    """Return the largest difference between the probabilities of an engine and of the eager model."""
    eager, largest = _eager(module), 0.0
    for seed, size in enumerate(batches):
        batch = batch_of(module, random_inputs(module, size, seed))
        found, expected = engine(batch), eager(batch)
        if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
            return float("inf")
        largest = max(largest, float((found - expected).abs().max()))
    return largest


def _eager(module: RankingModule) -> Engine:
    def run(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return torch.sigmoid(module.logits(batch).float())

    return run


class _BFloat16(nn.Module):
    """A linear layer whose weights are bfloat16 once and for all; autocast would convert them at each call."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight.detach().bfloat16()
        self.bias = None if layer.bias is None else layer.bias.detach().bfloat16()

    def forward(self, input: Tensor) -> Tensor:
        """Map ... x in_features to ... x out_features, in bfloat16."""
        return F.linear(input.bfloat16(), self.weight, self.bias)


class _Float(nn.Module):
    """A linear layer in fp32 that takes whatever the layer before gave."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        """Map ... x in_features to ... x out_features, in fp32."""
        return self.layer(input.float())


def _int8(layer: nn.Linear) -> nn.Module:
    from torch.ao.nn.quantized import dynamic
    from torch.ao.quantization import default_dynamic_qconfig

    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    plain.load_state_dict(layer.state_dict())
    plain.qconfig = default_dynamic_qconfig  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dynamic.Linear.from_float(plain)  # type: ignore[no-untyped-call]


def _with_linears(module: RankingModule, kind: Callable[[nn.Linear], nn.Module]) -> RankingModule:
    """Return a copy whose linear layers are `kind`s, narrow ones in fp32; it shares the tables' memory."""
    memo = {id(parameter): parameter for parameter in module.parameters()}
    copied = copy.deepcopy(module, memo)  # type: ignore[arg-type]
    places = [
        (parent, name, child)
        for parent in copied.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    for parent, name, child in places:
        setattr(parent, name, _Float(child) if child.out_features < NARROW else kind(child))
    return copied


def _export(module: RankingModule) -> Engine:
    with tempfile.TemporaryDirectory() as folder:
        path = export_model(module, Path(folder) / "model.pt2", tolerance=TOLERANCE["export"]).path
        program = torch.export.load(path).module()

    def run(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return cast(Tensor, program(**inputs_of(module, batch)))

    return run


def _onnx(module: RankingModule) -> Engine:
    with tempfile.TemporaryDirectory() as folder:
        path = export_model(module, Path(folder) / "model.onnx", "onnx", tolerance=TOLERANCE["onnx"]).path
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}

    def run(batch: Batch) -> Tensor:
        inputs = {name: t.numpy() for name, t in inputs_of(module, batch).items() if name in names}
        return torch.from_numpy(session.run(None, inputs)[0])

    return run


def _aot(module: RankingModule) -> Engine:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = export_model(module, Path(folder) / "model.pt2", tolerance=TOLERANCE["export"]).path
        program = torch.export.load(path)
        try:
            package = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/compiled.pt2")
            compiled = torch._inductor.aoti_load_package(package)
        except Exception as error:  # of many kinds: no compiler, an operation that inductor does not know
            cause = str(error).strip().split("\n")[0]
            raise RecloomError(f"AOTInductor cannot compile the model: {cause}", "Use another engine.") from error

    def run(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return cast(Tensor, compiled(**inputs_of(module, batch)))

    return run
