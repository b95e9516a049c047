"""Re-initialised top layers: the top blocks and the pooler start anew, then everything is trained.

    W ~ N(0, initializer_range^2),  b = 0,  norm weight = 1,  norm bias = 0      in the top `layers` blocks and the pooler

    layers  number of top blocks that start anew (0: none)
    pooler  whether the pooler, where the model has one, starts anew as well
    stack   of encoder-decoders: whose top it is
    decay   layer-wise decay of the rates below the new blocks, which have the head's rate (1: one rate for all)
Start:      the base model with new top blocks, drawn by the model's own initialisation from the run's seed.
Cost:       that of full fine-tuning.
Paper:      Tinn et al., 2023, "Fine-Tuning Large Neural Language Models for Biomedical Natural Language Processing",
            arXiv:2112.07869; Zhang et al., 2021, "Revisiting Few-sample BERT Fine-tuning", arXiv:2006.05987, section 4.
Departures: the initialisation is the architecture's (GPT-2 scales the last matrix of each block, T5 scales by width), which
            for BERT is the paper's. Language heads keep their values: only the pooler and task heads are specific enough.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError, PartialTuner
from luthier.core.trainable import Selection
from luthier.tuners._partial import decayed


@dataclass(frozen=True)
class Reinit(PartialTuner):
    paper: ClassVar[str] = "arXiv:2112.07869"
    cards: ClassVar[tuple[int, ...]] = (46,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"generate"})

    layers: int = 1
    pooler: bool = True
    stack: Literal["decoder", "encoder", "both"] = "decoder"
    decay: float = 1.0

    @classmethod
    def example(cls) -> Self:
        return cls(layers=1)

    def wrap(self, model: nn.Module, task: str, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name in self.new_modules(model):
                model.get_submodule(name).apply(lambda module: _start_anew(model, module))
        return super().wrap(model, task, seed)

    def select(self, model: nn.Module, rng: random.Random) -> Selection:
        return Selection(whole={n for n, _ in model.named_parameters()})

    def groups(self, model: nn.Module) -> list[dict[str, Any]] | None:
        return None if self.decay == 1 else decayed(model, self.decay, new=self.layers)

    def new_modules(self, model: nn.Module) -> list[str]:
        """Blocks and pooler that start anew."""
        body = anatomy(model)
        stacks = dict.fromkeys(layer.stack for layer in body.layers)
        if len(stacks) > 1 and self.stack != "both":
            stacks = {self.stack: None}
        out: list[str] = []
        for stack in stacks:
            mine = [layer.name for layer in body.layers if layer.stack == stack]
            if self.layers > len(mine):
                raise LuthierError(f"tuner.layers is {self.layers}, but the {stack} has {len(mine)} blocks")
            out += mine[len(mine) - self.layers :]
        pooled = [n for n, _ in model.named_modules() if n.rsplit(".", 1)[-1] == "pooler"]
        return [*out, *(pooled if self.pooler and self.layers else [])]


@torch.no_grad()
def _start_anew(model: nn.Module, module: nn.Module) -> None:
    """transformers leaves alone what is marked as loaded, so the marks go first."""
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        tensor.__dict__.pop("_is_hf_initialized", None)
    model._init_weights(module)  # type: ignore[operator]
