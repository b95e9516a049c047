"""Ladder side-tuning: a narrow network beside the frozen model reads its states; nothing goes backward through the model.

    g_0  = LN(h_0) V_0 + v_0                                   h_l (B, T, D) output of block l, h_0 the first one's input
    u_l  = m_l (LN(h_l) V_l + v_l) + (1 - m_l) g_(l-1)         m_l = sigmoid(a_l / temperature), a_l a trained scalar
    g_l  = u_l + act(u_l P_l + p_l) Q_l + q_l                  g_l (B, T, s), V_l (D, s), P_l (s, e s), Q_l (e s, s)
    final state = h_L + g_L U + c                              U (s, D); then the model's own last norm and head

    reduction   D / s, how much narrower the side network is;  expansion  e, width of its blocks inside
    temperature of the gates
Start:      U = 0, c = 0: exactly the base model. Q = 0 and all m_l = 1/2, so g is a running mean of what V sees; V and P
            Kaiming-uniform (a = sqrt 5).
Cost:       (L + 1)(D + 1) s + L (2 e s^2 + (e + 1) s + 1) + (s + 1) D scalars for L blocks; stays in the forward pass.
            Backward reaches the head, the last norm and the side network: no block keeps activations or passes gradients.
Paper:      Sung et al., 2022, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning",
            arXiv:2206.06522, section 3.
Departures: blocks of the side network are feed-forward: a state sees other tokens through the model's states alone, and no
            second cache is needed. They start at random, not as a pruned model. h_l is normed, without parameters. Of an
            encoder-decoder only the decoder has a side network: what changed the encoder's states would be learned
            through the decoder's cross-attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.adapt import BridgedTuner, ModuleLayer
from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError
from luthier.tuners._ladder import Bottleneck, Path, Rung, ends


class SideBlock(Rung):
    def __init__(self, width: int, side: int, expansion: int, act: str, temperature: float, first: bool, last: bool):
        super().__init__(first, last, detach=True)
        self.enter = _linear(width, side) if first else None
        self.read = _linear(width, side)
        self.gate = nn.Parameter(torch.zeros(1))
        self.block = Bottleneck(side, expansion * side, side, act)
        self.leave = nn.Linear(side, width) if last else None
        self.temperature = temperature
        if self.leave is not None:
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)

    def climb(self, h: Tensor, x: Tensor, before: Tensor | None) -> Tensor:
        if self.enter is not None:
            before = self.enter(_normed(x))
        assert before is not None
        share = torch.sigmoid(self.gate / self.temperature)
        mixed = share * self.read(_normed(h)) + (1 - share) * before  # (B, T, s)
        return mixed + self.block(mixed)

    def end(self, y: Tensor, state: Tensor) -> Tensor:
        assert self.leave is not None
        return y.detach() + self.leave(
            state
        )  # embeddings may ask for a gradient (checkpointing): it would lead nowhere


def _linear(inputs: int, outputs: int) -> nn.Linear:
    made = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(made.weight, a=math.sqrt(5))
    nn.init.zeros_(made.bias)
    return made


def _normed(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:])


@dataclass(frozen=True)
class LadderSide(BridgedTuner):
    paper: ClassVar[str] = "arXiv:2206.06522"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3
    layer_class: ClassVar[type] = ModuleLayer

    reduction: int = 8
    expansion: int = 4
    temperature: float = 0.1
    act: str = "gelu"

    def __post_init__(self) -> None:
        for name in ("reduction", "expansion", "temperature"):
            if getattr(self, name) <= 0:
                raise LuthierError(f"tuner.{name} is {getattr(self, name)}: a number above 0")

    @classmethod
    def example(cls) -> Self:
        return cls(reduction=4, expansion=2)

    def target_modules(self, model: nn.Module) -> list[str]:
        body = anatomy(model)
        return [layer.name for layer in body.layers if layer.stack == body.layers[-1].stack]

    def build_shared(self, model: nn.Module) -> Path:
        return Path()

    def build_for(self, target: nn.Module, model: nn.Module, name: str) -> SideBlock:
        body = anatomy(model)
        side = self.side(body.width)
        return SideBlock(body.width, side, self.expansion, self.act, self.temperature, *ends(body, name))

    def side(self, width: int) -> int:
        """s."""
        if self.reduction > width:
            raise LuthierError(f"tuner.reduction is {self.reduction}, but the model is only {width} wide")
        return width // self.reduction

    def groups(self, model: nn.Module) -> list[dict[str, Any]] | None:
        """A gate is not pulled to one half."""
        gates = [n for n, p in model.named_parameters() if p.requires_grad and n.endswith(".gate")]
        return [{"params": gates, "weight_decay": 0.0}]

    def parameter_count(self, model: nn.Module) -> int:
        D, L, e = anatomy(model).width, len(self.target_modules(model)), self.expansion
        s = self.side(D)
        return (L + 1) * (D + 1) * s + L * (2 * e * s * s + (e + 1) * s + 1) + (s + 1) * D
