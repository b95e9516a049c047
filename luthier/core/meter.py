"""What a step costs: parameters, bytes and floating-point operations, read from the graph of one real step.

trainable, total, stored  scalars; tied tensors once
saved_tensor_bytes        what the graph keeps for backward, storages once, parameters not counted
optimizer_bytes           state of the optimiser
forward_flops, backward_flops   multiply-adds counted twice, by torch's counter over the operators really run
peak_memory_bytes         CUDA: the allocator's peak; CPU: parameters, gradients, optimiser state and the graph of a
                          micro-batch (the resident peak of a process that ran other things before says nothing)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class StepCost:
    """Cost of one forward and backward pass over one batch."""

    forward_flops: int
    backward_flops: int
    saved_tensor_bytes: int
    tokens: int
    padded_tokens: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def count(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) scalars, each tensor once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def trainable_line(model: nn.Module) -> str:
    """The wording users know."""
    trainable, total = count(model)
    return f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}"


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
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), FlopCounterMode(display=False) as forward:
            loss = loss_of()
        with FlopCounterMode(display=False) as backward:
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


def peak_memory_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, saved_tensor_bytes: int) -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return parameters + gradients + optimizer_bytes(optimizer) + saved_tensor_bytes
