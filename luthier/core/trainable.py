"""The trainable set: which tensors, blocks of fused tensors or single elements move, and keeping the rest exactly still.

A frozen tensor has no gradient and no optimiser state, so nothing can move it. Frozen *blocks* or *elements* of a
tensor that moves otherwise have their gradient set to zero and, because weight decay and old momentum move a parameter
even then, are put back after every optimiser step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.anatomy import TASK_HEADS, Block, Matrix, in_task_head
from luthier.core.method import LuthierError


@dataclass
class Selection:
    """Parameters that move.

    whole    names of tensors that move as a whole
    blocks   of fused tensors, the blocks that move
    entries  of other tensors, the flat indices (int64) that move
    keep     below 1: in each step a random share `keep` of the elements of `whole` moves, drawn from `seed` and step
    note     what the choice rests on, for the record
    """

    whole: set[str] = field(default_factory=set)
    blocks: dict[str, list[Block]] = field(default_factory=dict)
    entries: dict[str, Tensor] = field(default_factory=dict)
    keep: float = 1.0
    seed: int = 0
    note: dict[str, object] = field(default_factory=dict)

    def add_module(self, model: nn.Module, name: str) -> None:
        """Everything inside module `name` moves."""
        self.whole.update(f"{name}.{p}" if name else p for p, _ in model.get_submodule(name).named_parameters())

    def add_heads(self, model: nn.Module) -> None:
        """Task heads are new: they move whatever else does."""
        self.whole.update(n for n, _ in model.named_parameters() if n.split(".", 1)[0] in TASK_HEADS)

    def add_matrix(self, model: nn.Module, matrix: Matrix) -> None:
        """The weight of one role moves, and its bias with it."""
        if not matrix.blocks:
            return self.add_module(model, matrix.module)
        module = model.get_submodule(matrix.module)
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{matrix.module}.{name}"
            blocks = [(d if parameter.ndim > 1 else 0, a, b) for d, a, b in matrix.blocks]
            self.blocks.setdefault(full, []).extend(blocks)
        return None

    def apply(self, model: nn.Module) -> None:
        """Freeze everything else. Fused tensors whose blocks together are the whole count as whole."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        unknown = self._names() - set(parameters)
        if unknown:
            raise LuthierError(f"no such parameter: {sorted(unknown)[0]}")
        for name, blocks in list(self.blocks.items()):
            if name in self.whole or _elements(parameters[name], blocks) == parameters[name].numel():
                self.whole.add(name)
                del self.blocks[name]
        for name, at in list(self.entries.items()):
            if name in self.whole or len(at) == parameters[name].numel():
                self.whole.add(name)
                del self.entries[name]
        moving = {id(parameters[n]) for n in self._names()}  # tied tensors move together
        for parameter in parameters.values():
            parameter.requires_grad_(id(parameter) in moving)
            if id(parameter) not in moving:
                parameter.grad = None

    def count(self, model: nn.Module, heads: bool = True) -> int:
        """Scalars that move; tied tensors once. `heads`: those of a task head too."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        seen: dict[int, int] = {}
        for name in self.whole:
            if heads or not in_task_head(name):
                seen[id(parameters[name])] = parameters[name].numel()
        for name, blocks in self.blocks.items():
            seen.setdefault(id(parameters[name]), _elements(parameters[name], blocks))
        for name, at in self.entries.items():
            seen.setdefault(id(parameters[name]), len(at))
        return sum(seen.values())

    def __bool__(self) -> bool:
        """Whether anything was selected."""
        return bool(self._names())

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint, without the note."""
        return {
            "whole": sorted(self.whole),
            "blocks": self.blocks,
            "entries": {n: at.cpu() for n, at in self.entries.items()},
            "keep": self.keep,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Selection:
        return cls(**{**told, "whole": set(told["whole"])})

    @property
    def partly(self) -> bool:
        """Whether some tensor moves in part only, so that a guard is needed."""
        return bool(self.blocks or self.entries) or self.keep < 1

    def guard(self, model: nn.Module) -> BlockGuard:
        named = dict(model.named_parameters())
        if self.keep < 1:
            body = [named[n] for n in sorted(self.whole & set(named)) if not in_task_head(n)]
            return StepGuard(body, self.keep, self.seed)
        partly = self.blocks.keys() | self.entries.keys()
        return BlockGuard({p: self._mask(n, p) for n, p in named.items() if n in partly})

    def _mask(self, name: str, parameter: Tensor) -> Tensor:
        """True where a tensor that moves in part moves."""
        moves = torch.zeros_like(parameter, dtype=torch.bool, memory_format=torch.contiguous_format)
        for dim, start, stop in self.blocks.get(name, ()):
            moves.narrow(dim, start, stop - start).fill_(True)
        if name in self.entries:
            moves.view(-1)[self.entries[name].to(moves.device)] = True
        return moves

    def _names(self) -> set[str]:
        return self.whole | set(self.blocks) | set(self.entries)


def _elements(parameter: Tensor, blocks: Iterable[Block]) -> int:
    return sum((stop - start) * (parameter.numel() // parameter.shape[dim]) for dim, start, stop in blocks)


class BlockGuard:
    """Keeps the frozen part of partly trained tensors where it was. `moves`: parameter -> mask, True moves."""

    def __init__(self, moves: dict[nn.Parameter, Tensor]):
        self.kept: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self.handles = []
        for parameter, mask in moves.items():
            self.kept.append((parameter, mask, parameter.detach().clone()))
            self.handles.append(parameter.register_hook(lambda g, m=mask: g * m))

    def begin(self, step: int) -> None:
        """Call before the gradients of optimiser step `step`."""

    @torch.no_grad()
    def restore(self) -> None:
        """Call after each optimiser step."""
        for parameter, moves, value in self.kept:
            parameter.copy_(torch.where(moves, parameter, value))

    def idle(self) -> int:
        """Scalars that may move but are where they began: they never had a gradient."""
        return sum(int((p.detach() == value)[moves].sum()) for p, moves, value in self.kept)

    def release(self) -> None:
        for handle in self.handles:
            handle.remove()


class StepGuard(BlockGuard):
    """In each step another random share of the elements moves; their gradients are divided by it.

    The draw depends on seed and step alone: the same for all micro-batches and processes, and after resuming.
    """

    def __init__(self, parameters: list[nn.Parameter], keep: float, seed: int):
        super().__init__({})
        self.keep, self.seed = keep, seed
        self.parameters = parameters
        self.drawn: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        self.handles = [p.register_hook(lambda g, p=p: self._masked(p, g)) for p in parameters]

    def _masked(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        if parameter not in self.drawn:  # costs are measured before the first step
            return gradient
        return gradient * self.drawn[parameter][0] / self.keep

    @torch.no_grad()
    def begin(self, step: int) -> None:
        generators: dict[torch.device, torch.Generator] = {}
        for parameter in self.parameters:
            device = parameter.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed((self.seed << 31) + step)
            moves = torch.rand(parameter.shape, generator=generators[device], device=device) < self.keep
            self.drawn[parameter] = (moves, parameter.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, (moves, value) in self.drawn.items():
            parameter.copy_(torch.where(moves, parameter, value))


def trainable_names(model: nn.Module) -> list[str]:
    """Names of parameters that require gradients, each tensor once."""
    return [n for n, p in model.named_parameters() if p.requires_grad]
