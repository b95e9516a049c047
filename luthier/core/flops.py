"""Floating-point operations: those of a real step, and those of any trainable set from the graph of one step.

    T(m) = sum_R f_R [ R and m share a unit ]               m a set of units (tensors, or groups of tensors)

One backward pass with everything movable runs under a recorder: each product is booked on the graph node that runs it
and on the inputs of the node whose gradient it serves. R is the set of units that lie behind those inputs. A weight's
own gradient serves that weight alone; a gradient that passes through an operator serves all that lies below it on that
branch. So T is exact for every subset: parallel branches (q, k, v), tied tensors and several stacks are in the graph.
It holds as long as the same kernels run (T5's fused attention takes another one where its position bias stands still).

Multiply-adds count twice; elementwise work is not counted (nor by torch's counter, whose formulas these are).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


MISSING: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Operators that torch's counter passes over: attention on a CPU."""


def counter() -> FlopCounterMode:
    """torch's counter, with attention on a CPU."""
    return FlopCounterMode(display=False, custom_mapping=MISSING)


@dataclass
class GraphCost:
    """Operations of a step for any trainable set.

    units    names; unit k is bit k of a set
    forward  operations of the forward passes
    shared   set of units (bits) -> operations that run where at least one of them moves
    tokens   padded tokens of the measured batches
    """

    units: list[str]
    forward: int = 0
    shared: dict[int, int] = field(default_factory=dict)
    tokens: int = 0

    def bits(self, names: Iterable[str]) -> int:
        """A set of units by name."""
        at = {name: k for k, name in enumerate(self.units)}
        return sum(1 << at[n] for n in set(names))

    def names(self, bits: int) -> list[str]:
        return [n for k, n in enumerate(self.units) if bits >> k & 1]

    def backward(self, bits: int) -> int:
        """T(m): operations of the backward passes when the units in `bits` move."""
        return sum(flops for behind, flops in self.shared.items() if behind & bits)

    @property
    def full(self) -> int:
        """T of everything."""
        return sum(self.shared.values())

    def add(self, other: GraphCost) -> None:
        """Another batch of the same units."""
        assert self.units == other.units
        self.forward += other.forward
        self.tokens += other.tokens
        for behind, flops in other.shared.items():
            self.shared[behind] = self.shared.get(behind, 0) + flops


class _Recorder(TorchDispatchMode):
    """Books every counted operation on the graph node that runs it, and follows where its result goes inside the node.

    While a node runs, each storage carries the operations that flowed into it; the gradients that the node returns then
    tell which operations each of them needs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.formulas = {**flop_registry, **{k: _by_shape(v) for k, v in MISSING.items()}}
        self.node: Any = None
        self.booked: list[
            tuple[Any, int, tuple[int, ...]]
        ] = []  # node, operations, indices of its inputs that need them

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", func)
        flops = int(self.formulas[packet](*args, **kwargs, out_val=out)) if packet in self.formulas else 0
        if self.node is None:
            if flops:
                self.booked.append((None, flops, ()))
            return out
        behind: set[int] = set()
        for tensor in _tensors((args, kwargs)):
            behind |= self.flows.get(_storage(tensor), set())
        if flops:
            behind.add(len(self.flops))
            self.flops.append(flops)
        if behind:
            for tensor in _tensors(out):
                self.flows.setdefault(_storage(tensor), set()).update(behind)
                self.alive.append(tensor)  # a freed storage's address may come back
        return out

    def enter(self, node: Any) -> None:
        self.node = node
        self.flops: list[int] = []
        self.alive: list[Tensor] = []
        self.flows: dict[int, set[int]] = {}

    def leave(self, gradients: Sequence[Tensor | None]) -> None:
        serves: list[list[int]] = [[] for _ in self.flops]
        for j, gradient in enumerate(gradients):
            for op in self.flows.get(_storage(gradient), ()) if gradient is not None else ():
                serves[op].append(j)
        self.booked += [(self.node, f, tuple(s)) for f, s in zip(self.flops, serves, strict=True)]
        self.node = None
        del self.flows, self.alive


def _by_shape(formula: Callable[..., int]) -> Callable[..., int]:
    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return formula(*(a.shape if isinstance(a, Tensor) else a for a in args), out_shape=None)

    return count


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (x for x in tree_iter(tree) if isinstance(x, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def graph_cost(
    model: nn.Module, units: Mapping[str, Sequence[str]], loss_of: Callable[[], Tensor], tokens: int = 0
) -> GraphCost:
    """Costs of every subset of `units` (name -> names of its parameters) from one forward and backward pass.

    Parameters outside all units stand still. Gradients, flags and random state are left as they were.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    bit = {id(parameters[n]): 1 << k for k, names in enumerate(units.values()) for n in names}
    flags = {p: p.requires_grad for p in parameters.values()}
    gradients = {p: p.grad for p in parameters.values()}
    recorder = _Recorder()
    try:
        for parameter in flags:
            parameter.requires_grad_(id(parameter) in bit)
        with torch.random.fork_rng(enabled=True):
            with counter() as forward:
                loss = loss_of()
            order = _nodes(loss.grad_fn)
            handles = []
            for node in order:
                if not hasattr(node, "variable"):  # everything but the leaves
                    handles.append(node.register_prehook(lambda _, n=node: recorder.enter(n)))
                    handles.append(node.register_hook(lambda grads, _: recorder.leave(grads)))
            with recorder:
                loss.backward()
        for handle in handles:
            handle.remove()
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = gradients[parameter]
    behind = _reach(order, bit)
    cost = GraphCost(list(units), forward.get_total_flops(), {}, tokens)
    everything = (1 << len(units)) - 1
    for node, flops, inputs in recorder.booked:
        told = [n for n, _ in node.next_functions if n is not None] if node is not None else []
        if inputs:
            told = [node.next_functions[j][0] for j in inputs]
        bits = 0 if told else everything
        for below in told:
            bits |= behind.get(below, 0)
        cost.shared[bits] = cost.shared.get(bits, 0) + flops
    return cost


def _nodes(root: Any) -> list[Any]:
    """Nodes of the graph, each after those that lie below it."""
    out: list[Any] = []
    seen = {root}
    stack = [(root, iter([n for n, _ in root.next_functions if n is not None]))]
    while stack:
        node, rest = stack[-1]
        below = next((n for n in rest if n not in seen), None)
        if below is None:
            out.append(node)
            stack.pop()
        else:
            seen.add(below)
            stack.append((below, iter([n for n, _ in below.next_functions if n is not None])))
    return out


def _reach(order: Sequence[Any], bit: dict[int, int]) -> dict[Any, int]:
    """Units that lie behind each node."""
    behind: dict[Any, int] = {}
    for node in order:
        if hasattr(node, "variable"):
            behind[node] = bit.get(id(node.variable), 0)
        else:
            behind[node] = 0
            for below, _ in node.next_functions:
                behind[node] |= behind.get(below, 0)
    return behind
