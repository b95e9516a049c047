"""What a run costs: scalars, bytes, operations and time, read from real steps. Every report uses these numbers.

trained, head     scalars that move; those of them in a new task head (reported apart)
base              scalars of the model before a tuner added any: what shares are shares of
total, served     scalars of the model in training; of the model as it is served (an adapter that merges adds none)
saved_tensor_bytes        what the graph keeps for backward, storages once, parameters not counted
optimizer_bytes           state of the optimiser
forward_flops, backward_flops   of the operators really run (core/flops.py): no gradient of frozen weights, nothing below
                          the lowest tensor that moves. With a frozen head the gradient of the states is taken in the
                          forward pass (core/logprobs.py), so compare the sum of the two
peak_memory_bytes         CUDA: the allocator's peak; CPU: parameters, gradients, optimiser state and the graph of a
                          micro-batch (the resident peak of a process that ran other things before says nothing)
step_seconds              median of the steps, without the first five where there are enough
in_turns                  the same of single passes, side by side

Tied tensors, and tensors under several names, count once everywhere.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.anatomy import in_task_head
from luthier.core.flops import counter
from luthier.core.method import Tuner
from luthier.core.quantise import held

WARM_UP, ENOUGH = 5, 20


@dataclass(frozen=True)
class Scalars:
    """Scalars of a model in training; see the module for the words."""

    trained: int
    head: int
    base: int
    total: int
    served: int


def scalars(model: nn.Module, tuner: Tuner | None = None) -> Scalars:
    """Count `model` as `tuner` wrapped it (before anything of an adapter is frozen)."""
    named = list(model.named_parameters())  # a tensor under several names is listed once
    trained = sum(p.numel() for _, p in named if p.requires_grad)
    head = sum(p.numel() for n, p in named if p.requires_grad and in_task_head(n))
    total = sum(p.numel() for _, p in named) + held(model)[0]
    gone = sum(p.numel() for n, p in named if "original_module" in n.split("."))  # peft keeps a saved module's old self
    added = tuner is not None and tuner.artefact == "adapter"  # all that moves, copies of heads and norms included
    if tuner is not None and added and "merge" in tuner.capabilities:
        gone += trained - head
    return Scalars(trained, head, total - trained if added else total, total, total - gone)


@dataclass
class StepCost:
    """Cost of one forward and backward pass over one batch."""

    forward_flops: int
    backward_flops: int
    saved_tensor_bytes: int
    tokens: int
    padded_tokens: int

    @property
    def flops(self) -> int:
        return self.forward_flops + self.backward_flops

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def step_cost(model: nn.Module, loss_of: Callable[[], Tensor], tokens: int, padded: int) -> StepCost:
    """Run one step without taking it; gradients and random state are left as they were."""
    before = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(enabled=True):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), counter() as forward:
            loss = loss_of()
        with counter() as backward:
            loss.backward()
    for name, parameter in model.named_parameters():
        parameter.grad = before.get(name)
    return StepCost(forward.get_total_flops(), backward.get_total_flops(), sum(kept.values()), tokens, padded)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(
        v.numel() * v.element_size()
        for state in optimizer.state.values()
        for v in state.values()
        if isinstance(v, Tensor)
    )


def memory_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, saved_tensor_bytes: int) -> int:
    """Parameters, gradients, optimiser state and one graph."""
    parameters = sum(p.numel() * p.element_size() for p in model.parameters()) + held(model)[1]
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return parameters + gradients + optimizer_bytes(optimizer) + saved_tensor_bytes


def peak_memory_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, saved_tensor_bytes: int) -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return memory_bytes(model, optimizer, saved_tensor_bytes)


def in_turns(*passes: Callable[[], Any]) -> list[float]:
    """Median seconds of each of `passes`, which run in turns after a few warm-up rounds; a busy machine falls on all."""
    took: list[list[float]] = [[] for _ in passes]
    for _ in range(WARM_UP + ENOUGH):
        for run, mine in zip(passes, took, strict=True):
            begun = _clock()
            run()
            mine.append(_clock() - begun)
    return [step_seconds(mine) for mine in took]


def _clock() -> float:
    """The wall, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def step_seconds(seconds: Sequence[float]) -> float:
    """Median time of a step; the first few warm up caches and are left out where enough remain."""
    if not seconds:
        return 0.0
    return statistics.median(seconds[WARM_UP:] if len(seconds) >= WARM_UP + ENOUGH else seconds)
