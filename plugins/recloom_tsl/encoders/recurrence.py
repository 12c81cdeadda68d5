"""GRU recurrences whose backward pass is written out, so that a step costs a handful of small operations.

    u_t = a_t sigmoid(p^u_t + U_u h_{t-1})        (AGRU: u_t = a_t; plain GRU: a_t = 1)
    r_t = sigmoid(p^r_t + U_r h_{t-1})
    i_t = U_n h_{t-1} + b
    n_t = tanh(p^n_t + r_t * i_t)
    h_t = (1 - u_t) * h_{t-1} + u_t * n_t

p are the projected inputs, which do not depend on the state and are there for all steps at once. The gradient of a
step's gates is dL/dh_t times factors that are known once the forward pass is done: all steps' factors come from a few
big operations, and what is left to do in order is one product, one matrix product and two sums a step. Everything is
laid out step by step, L x B x GH, with G the number of gates: 3, or 2 (AGRU).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = 32


def run_gru(module: nn.GRU, inputs: Tensor) -> Tensor:
    """Return the states of a one-directional `module` with batch_first, B x L x H, of B x L x I inputs.

    Other devices than CPUs have fused kernels, and exported programs an operator: there the module itself runs.
    """
    if inputs.device.type != "cpu" or torch.compiler.is_compiling():
        return module(inputs)[0]
    inputs = inputs.transpose(0, 1)  # L x B x I
    for layer in range(module.num_layers):
        weight, bias = getattr(module, f"weight_ih_l{layer}"), getattr(module, f"bias_ih_l{layer}")
        recurrent, inner = getattr(module, f"weight_hh_l{layer}"), getattr(module, f"bias_hh_l{layer}")
        inputs = run(F.linear(inputs, _ours(weight), _ours(bias + _gates_only(inner))), _ours(recurrent), inner)
    return inputs.transpose(0, 1)


def run(projected: Tensor, weight: Tensor, bias: Tensor | None = None, shares: Tensor | None = None) -> Tensor:
    """Return the states h_1 .. h_L, L x B x H.

    Args:
        projected: L x B x GH: p^u (unless AGRU), p^r, p^n.
        weight: GH x H: U_u (unless AGRU), U_r, U_n.
        bias: The last H of it are b; None: zeros.
        shares: L x B, a_t.
    """
    width = weight.shape[1]
    bias = weight.new_zeros(width) if bias is None else bias[-width:]
    shares = None if shares is None else shares[..., None]
    if torch.compiler.is_compiling():
        return _plain(projected, weight, bias, shares)
    states: Tensor = _Recurrence.apply(projected, weight, bias, shares)  # type: ignore[no-untyped-call]
    return states


class _Recurrence(torch.autograd.Function):
    """L x B x GH projected inputs, GH x H, H, L x B x 1 shares -> L x B x H states."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, weight: Tensor, bias: Tensor, shares: Tensor | None) -> Tensor:
        (length, rows, _), width = projected.shape, weight.shape[1]
        own_gate = weight.shape[0] == 3 * width
        states = projected.new_zeros(length + 1, rows, width)  # h_0 .. h_L
        gates = projected.new_empty(length, rows, weight.shape[0] - width)
        inner, fresh = (projected.new_empty(length, rows, width) for _ in range(2))
        update = projected.new_empty(rows, width)
        forward = weight.t().contiguous()
        gate_weight, new_weight = forward[:, :-width], forward[:, -width:]
        inputs = (projected[..., :-width], projected[..., -width:])
        views = (*inputs, gates, gates[..., :width], gates[..., -width:], inner, fresh, states[:-1], states[1:])
        shared = None if shares is None else shares.unbind(0)
        for t, (p_gates, p_new, gate, u, r, i, n, before, after) in enumerate(
            zip(*(view.unbind(0) for view in views), strict=True)
        ):
            torch.addmm(p_gates, before, gate_weight, out=gate).sigmoid_()
            torch.addmm(bias, before, new_weight, out=i)
            torch.addcmul(p_new, r, i, out=n).tanh_()
            if shared is None:
                torch.lerp(before, n, u, out=after)
            elif own_gate:
                torch.lerp(before, n, torch.mul(u, shared[t], out=update), out=after)
            else:
                torch.lerp(before, n, shared[t].expand_as(n), out=after)
        ctx.save_for_backward(weight, shares, states, gates, inner, fresh)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        weight, shares, states, gates, inner, fresh = ctx.saved_tensors
        (length, rows, width), count = fresh.shape, weight.shape[0]
        projected_grad = fresh.new_empty(length, rows, count)
        weight_grad, bias_grad = torch.zeros_like(weight), weight.new_zeros(width)
        share_grad = None if shares is None else torch.empty_like(shares)
        carry = fresh.new_zeros(rows, width)
        for start in reversed(range(0, length, CHUNK)):  # a few steps at a time: what is needed of them stays in cache
            part = slice(start, min(start + CHUNK, length))
            before, r = states[:-1][part], gates[part][..., -width:]
            own = gates[part][..., :width] if count == 3 * width else None  # u before the attention
            update = own if shares is None else shares[part] if own is None else shares[part] * own
            assert update is not None
            change = fresh[part] - before  # dh_t / du_t
            new = update * (1 - fresh[part].square())  # dh_t / d(input of tanh)
            factors = projected_grad[part]
            torch.mul(new * inner[part], r * (1 - r), out=factors[..., -2 * width : -width])
            torch.mul(new, r, out=factors[..., -width:])
            if own is not None:
                torch.mul(change * update, 1 - own, out=factors[..., :width])
            keep = (1 - update).expand_as(new)
            totals = _sweep(grads[0][part], factors, keep, weight, carry)
            weight_grad.addmm_(factors.flatten(0, 1).t(), before.flatten(0, 1))
            bias_grad += factors[..., -width:].sum(dim=(0, 1))
            torch.mul(totals, new, out=factors[..., -width:])  # of p^n: without r
            if share_grad is not None:
                share_grad[part] = (totals * (change if own is None else change * own)).sum(dim=-1, keepdim=True)
        return projected_grad, weight_grad, bias_grad, share_grad


def _sweep(grads: Tensor, factors: Tensor, keep: Tensor, weight: Tensor, carry: Tensor) -> Tensor:
    """Go from the last step to the first; return dL/dh_t in all, C x B x H.

    Args:
        grads: C x B x H, what comes from outside.
        factors: C x B x GH, by which a step's gates depend on dL/dh_t; replaced by dL/d(U h_{t-1}).
        keep: C x B x H, by which h_t depends on h_{t-1} directly.
        weight: GH x H.
        carry: B x H, dL/dh of the step before from the steps behind it; updated.
    """
    totals = torch.empty_like(keep, memory_format=torch.contiguous_format)
    by_gate = factors.unflatten(-1, (-1, keep.shape[-1]))  # C x B x G x H
    views = (grads, totals, totals.unsqueeze(2), by_gate, factors, keep)
    for grad, total, total_, gate, flat, kept in zip(*(view.unbind(0)[::-1] for view in views), strict=True):
        torch.add(grad, carry, out=total)
        gate.mul_(total_)
        torch.addmm(torch.mul(total, kept, out=carry), flat, weight, out=carry)
    return totals


def _plain(projected: Tensor, weight: Tensor, bias: Tensor, shares: Tensor | None) -> Tensor:
    """Return the L x B x H states by the equations, for export: steps are unrolled."""
    width = weight.shape[1]
    forward = weight.t()
    gate_weight, new_weight = forward[:, :-width], forward[:, -width:]
    p_gates, p_new = projected[..., :-width].unbind(0), projected[..., -width:].unbind(0)
    parts = [None] * len(p_new) if shares is None else shares.unbind(0)
    state = projected.new_zeros(projected.shape[1], width)
    states = []
    for gate, new, share in zip(p_gates, p_new, parts, strict=True):
        gates = torch.sigmoid(torch.addmm(gate, state, gate_weight))
        fresh = torch.tanh(torch.addcmul(new, gates[:, -width:], torch.addmm(bias, state, new_weight)))
        update = gates[:, :width]
        if share is not None:
            update = share * update if weight.shape[0] == 3 * width else share
        state = state + update * (fresh - state)
        states.append(state)
    return torch.stack(states)


def _ours(weights: Tensor) -> Tensor:
    """Return a GRU module's r, z, n as u, r, n: z = sigmoid(x) is what is kept, u = sigmoid(-x) what is replaced."""
    r, z, n = weights.chunk(3)
    return torch.cat([-z, r, n])


def _gates_only(bias: Tensor) -> Tensor:
    """Return the recurrent bias without its part for n, which stays inside of r * (U h + b)."""
    width = len(bias) // 3
    return torch.cat([bias[: 2 * width], bias.new_zeros(width)])
