"""One optimizer over dense parameters and embedding rows, clipping of dense gradients."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recloom import rowupdate
from recloom.errors import RecloomError, unknown
from recloom.learning_rate import lr_policy, scheduled
from recloom.rowgrad import is_row_parameter, row_gradients, row_parameters

__all__ = [
    "CompositeOptimizer",
    "OptimizerConfig",
    "build_optimizer",
    "clip_dense_norm",
    "is_row_parameter",
    "lr_policy",
    "scheduled",
]


@dataclass
class OptimizerConfig:
    """Optimizers of the dense parameters and of the embedding rows, and the learning-rate policy of both.

    The policy: linear warm-up from lr / warmup_steps to lr, hold, then from step `decay_start` on
    lr ((D - k) / D)^2 for D = decay_steps and k steps into the decay, down to 1e-7.

    Args:
        dense: Any class of torch.optim that takes dense gradients: SGD, Adagrad, Adam, AdamW, ...
        dense_lr: Learning rate of the dense parameters.
        dense_options: Further arguments of that class.
        sparse: Update of embedding rows: sgd, rowwise_adagrad (one state a row) or adagrad.
        sparse_lr: Learning rate of embedding rows.
        sparse_eps: Added to the root of Adagrad's state.
        clip_norm: Largest norm of all dense gradients together; None: no clipping.
        warmup_steps: Steps of linear warm-up.
        decay_start: Step at which the decay begins; at the end of the warm-up if 0.
        decay_steps: Steps of the decay; 0: no decay.
    """

    dense: str = "SGD"
    dense_lr: float = 0.1
    dense_options: dict[str, Any] = field(default_factory=dict)
    sparse: Literal["sgd", "rowwise_adagrad", "adagrad"] = "sgd"
    sparse_lr: float = 0.1
    sparse_eps: float = 1e-8
    clip_norm: float | None = None
    warmup_steps: int = 0
    decay_start: int = 0
    decay_steps: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that no training can use."""
        least = ("dense_lr", "sparse_lr", "sparse_eps", "warmup_steps", "decay_start", "decay_steps")
        for name in (*least, "clip_norm"):
            value = getattr(self, name)
            if value is not None and not (0 <= value < math.inf and (value or name != "clip_norm")):
                wanted = "a positive number" if name == "clip_norm" else "0 or a positive number"
                raise RecloomError(f"optimizer.{name} is {value}", f"Give {wanted}.")


class CompositeOptimizer(torch.optim.Optimizer):
    """A torch.optim optimizer for dense parameters and row updates for embeddings, behind one optimizer's interface.

    The dense groups come first in `param_groups`, and are those of the inner optimizer; the last group, if there are
    row parameters, is theirs. Learning rates are read from the groups at each step. When several ranks hold the same
    tables, `step` applies every rank's row gradients, averaged; a parameter with an attribute `recloom_sharded`
    set to True is its rank's own. Set `synchronize_rows` to False to let replicas drift.

    Args:
        dense: Dense parameters.
        rows: Parameters with row gradients, in the order of their states.
        config: Optimizers and learning rates.
    """

    def __init__(self, dense: Iterable[nn.Parameter], rows: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
        self.clip_norm = config.clip_norm
        self.synchronize_rows = True
        self._replicas_checked: set[nn.Parameter] = set()
        dense, rows = list(dense), list(rows)
        for parameter in rows:
            row_gradients(parameter)
        self._inner = _inner(dense, config) if dense else None
        groups: list[dict[str, Any]] = list(self._inner.param_groups) if self._inner else []
        if rows:
            groups.append({"params": rows, "lr": config.sparse_lr, "eps": config.sparse_eps, "rows": config.sparse})
        begun = dict(self._inner.state) if self._inner else {}
        super().__init__(groups, {})
        self.state.update(begun)  # what an optimizer keeps from the start: Adagrad's sums

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group: of dense parameters, or of row parameters if it has the keys "rows" (the rule) and "eps"."""
        if self._inner is not None and "rows" not in param_group:
            for name, value in self._inner.defaults.items():
                param_group.setdefault(name, value)
        super().add_param_group(param_group)
        self._share()

    def _share(self) -> None:
        """Make the inner optimizer work on this one's groups and state."""
        if self._inner is not None:
            self._inner.param_groups = [group for group in self.param_groups if "rows" not in group]
            self._inner.state = self.state

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_inner", "clip_norm", "synchronize_rows", "_replicas_checked")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; ValueError when it is that of another optimizer, whose groups would replace these."""
        here, there = (" and ".join(map(_kind, groups)) for groups in (self.param_groups, state_dict["param_groups"]))
        if here != there:
            raise ValueError(f"loaded state dict is of {there}, this optimizer is {here}")
        super().load_state_dict(state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, those of rows too."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if "rows" in group:
                    row_gradients(parameter).clear()
                if set_to_none:
                    parameter.grad = None
        if not set_to_none and self._inner is not None:
            self._inner.zero_grad(set_to_none=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters; row gradients are used up, dense ones are left for `zero_grad`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._inner is not None:
            if self.clip_norm is not None:
                clip_dense_norm((p for g in self._inner.param_groups for p in g["params"]), self.clip_norm)
            self._inner.step()
        for group in self.param_groups:
            if "rows" in group:
                for parameter in group["params"]:
                    self._update_rows(parameter, group)
        return loss

    def _update_rows(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        if parameter.grad is not None:
            raise RecloomError(
                f"an embedding weight of {len(parameter)} rows has a dense gradient, which row updates would leave out",
                "Let the loss reach it by the collection's lookups alone, or give the collection gradient: sparse.",
            )
        gradients = row_gradients(parameter)
        state = self.state[parameter]
        if group["rows"] != "sgd" and not state:
            state.update(rowupdate.new_state(parameter, group["rows"]))
        applied = self._over_ranks(parameter, gradients)
        rowupdate.apply(parameter, state, applied, group["rows"], float(group["lr"]), group["eps"])
        gradients.clear()

    def _over_ranks(self, parameter: nn.Parameter, gradients: list[Any]) -> list[Any]:
        if not (self.synchronize_rows and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return gradients
        if getattr(parameter, "recloom_sharded", False):
            return gradients
        if parameter not in self._replicas_checked:
            check_replicas(parameter)
            self._replicas_checked.add(parameter)
        return rowupdate.gather_over_ranks(gradients)


def _kind(group: dict[str, Any]) -> str:
    """Return what tells the optimizer of a group from others: the rule of rows, or the options that only some have."""
    if "rows" in group:
        return str(group["rows"])
    telling = ("betas", "momentum", "lr_decay", "alpha", "rho", "etas", "lambd")
    return f"one with {', '.join(name for name in telling if name in group) or 'a learning rate'}"


def check_replicas(parameter: Tensor) -> None:
    """Raise RecloomError unless all ranks hold the same values (a thousand of them are compared)."""
    flat = parameter.detach().view(-1)
    sample = flat[:: max(1, len(flat) // 1000)].contiguous()
    ranks = [torch.empty_like(sample) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, sample)
    for rank, other in enumerate(ranks):
        if not torch.equal(other, ranks[0]):
            raise RecloomError(
                f"rank {rank} has other embedding rows than rank 0",
                "Give all ranks one seed (seed_everything), or the embedding its own (seed).",
            )


def _inner(dense: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer of the dense parameters, in its fused implementation where there is one."""
    known = {
        name: value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and name != "Optimizer"
    }
    if config.dense not in known:
        raise unknown("torch.optim optimizer", config.dense, known)
    options = dict(config.dense_options)
    kind: Callable[..., torch.optim.Optimizer] = known[config.dense]
    implementations = {"fused", "foreach", "capturable", "differentiable"}
    if "fused" in inspect.signature(kind).parameters and not implementations & options.keys():
        options["fused"] = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in dense)
    try:
        return kind(dense, lr=config.dense_lr, **options)
    except TypeError as error:
        raise RecloomError(f"torch.optim.{config.dense}: {error}", "Check optimizer.dense_options.") from None


def build_optimizer(
    module: nn.Module, config: OptimizerConfig
) -> tuple[CompositeOptimizer, list[Callable[[int], float]] | None]:
    """Return the optimizer of all parameters of `module` that require a gradient, and its learning-rate policy.

    The policy, None when there is none, is for `torch.optim.lr_scheduler.LambdaLR`: a factor a group.
    """
    rows = [parameter for _, parameter in row_parameters(module) if parameter.requires_grad]
    chosen = set(rows)
    dense = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter not in chosen]
    optimizer = CompositeOptimizer(dense, rows, config)
    if not config.warmup_steps and not config.decay_steps:
        return optimizer, None
    return optimizer, [lr_policy(config, group["lr"]) for group in optimizer.param_groups]


def clip_dense_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the dense gradients so that their norm is at most `max_norm`; return the norm before.

    Rows of tables and sparse gradients are left alone: a batch's rows have no norm that compares with a dense one.
    """
    dense = [p for p in parameters if not is_row_parameter(p) and p.grad is not None and not p.grad.is_sparse]
    return nn.utils.clip_grad_norm_(dense, max_norm)
