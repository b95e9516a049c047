"""The trainable set: which tensors (or blocks of fused tensors) move, and keeping the rest exactly still.

A frozen tensor has no gradient and no optimiser state, so nothing can move it. A frozen *block* of a tensor that moves
otherwise has its gradient set to zero and, because weight decay and old momentum move a parameter even then, is
put back after every optimiser step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.anatomy import TASK_HEADS, Block, Matrix
from luthier.core.method import LuthierError


@dataclass
class Selection:
    """Parameters that move: whole tensors by name, blocks of fused tensors, and single entries by flat index (int64)."""

    whole: set[str] = field(default_factory=set)
    blocks: dict[str, list[Block]] = field(default_factory=dict)
    entries: dict[str, Tensor] = field(default_factory=dict)
    note: dict[str, object] = field(default_factory=dict)

    def add_module(self, model: nn.Module, name: str) -> None:
        """Everything inside module `name` moves."""
        self.whole.update(f"{name}.{p}" if name else p for p, _ in model.get_submodule(name).named_parameters())

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
        unknown = (self.whole | set(self.blocks) | set(self.entries)) - set(parameters)
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
        moving = {
            id(parameters[n]) for n in self.whole | set(self.blocks) | set(self.entries)
        }  # tied tensors move together
        for parameter in parameters.values():
            parameter.requires_grad_(id(parameter) in moving)
            if id(parameter) not in moving:
                parameter.grad = None

    def count(self, model: nn.Module, heads: bool = True) -> int:
        """Scalars that move; tied tensors once. `heads`: those of a task head too."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        seen: dict[int, int] = {}
        for name in self.whole:
            if heads or name.split(".", 1)[0] not in TASK_HEADS:
                seen[id(parameters[name])] = parameters[name].numel()
        for name, blocks in self.blocks.items():
            seen.setdefault(id(parameters[name]), _elements(parameters[name], blocks))
        for name, at in self.entries.items():
            seen.setdefault(id(parameters[name]), len(at))
        return sum(seen.values())

    def __bool__(self) -> bool:
        """Whether anything was selected."""
        return bool(self.whole or self.blocks or self.entries)

    def as_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {
            "whole": sorted(self.whole),
            "blocks": {n: [list(b) for b in bs] for n, bs in self.blocks.items()},
            "entries": {n: at.tolist() for n, at in self.entries.items()},
        }

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Selection:
        blocks = {n: [tuple(b) for b in bs] for n, bs in told["blocks"].items()}
        return cls(set(told["whole"]), blocks, {n: torch.tensor(at) for n, at in told["entries"].items()})

    def guard(self, model: nn.Module) -> BlockGuard:
        moves = {}
        for name, parameter in model.named_parameters():
            if name in self.blocks or name in self.entries:
                moves[name] = mask = torch.zeros_like(parameter, dtype=torch.bool)
                for dim, start, stop in self.blocks.get(name, []):
                    mask.narrow(dim, start, stop - start).fill_(True)
                if name in self.entries:
                    mask.view(-1)[self.entries[name].to(mask.device)] = True
        return BlockGuard({n: (p, moves[n]) for n, p in model.named_parameters() if n in moves})


def _elements(parameter: Tensor, blocks: Iterable[Block]) -> int:
    return sum((stop - start) * (parameter.numel() // parameter.shape[dim]) for dim, start, stop in blocks)


class BlockGuard:
    """Keeps the frozen part of partly trained tensors where it was. `moves` is True where a tensor moves."""

    def __init__(self, tensors: dict[str, tuple[nn.Parameter, Tensor]]):
        self.kept: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self.handles = []
        for parameter, moves in tensors.values():
            self.kept.append((parameter, moves, parameter.detach().clone()))
            self.handles.append(parameter.register_hook(lambda g, m=moves: g * m))

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


def trainable_names(model: nn.Module) -> list[str]:
    """Names of parameters that require gradients, each tensor once."""
    return [n for n, p in model.named_parameters() if p.requires_grad]
