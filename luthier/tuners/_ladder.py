"""A network beside the backbone that reads its blocks one after another: what hands its state upwards, and where it ends."""

from __future__ import annotations

import math

from torch import Tensor, nn

from luthier.core.adapt import ModulePart, activation
from luthier.core.anatomy import Anatomy


class Path(nn.Module):
    """What is handed from one part to a later one within a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Tensor | None = None

    def put(self, value: Tensor) -> None:
        self.held = value

    def take(self) -> Tensor:
        assert self.held is not None, "nothing was handed over: a part ran without the one before it"
        value, self.held = self.held, None
        return value


class Bottleneck(nn.Module):
    """act(x P + p) Q + q, with Q = 0 and biases 0 at the start."""

    def __init__(self, inputs: int, size: int, outputs: int, act: str):
        super().__init__()
        self.down, self.up, self.act = nn.Linear(inputs, size), nn.Linear(size, outputs), activation(act)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.act(self.down(x)))


class Rung(ModulePart):
    """On a block: the ladder's state from below becomes the next one; above the last block it changes the final state.

    detach  the block's states are constants for the ladder
    """

    shared: Path

    def __init__(self, first: bool, last: bool, detach: bool):
        super().__init__()
        self.first, self.last, self.detach = first, last, detach

    def climb(self, h: Tensor, x: Tensor, before: Tensor | None) -> Tensor:
        """The state after this block: `h` is its output, `x` its input, `before` the state below (None: the first)."""
        raise NotImplementedError

    def end(self, y: Tensor, state: Tensor) -> Tensor:
        """The final hidden state (B, T, D) from the last block's output and the ladder's last state."""
        return y + state

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        h, x = (y.detach(), x.detach()) if self.detach else (y, x)
        state = self.climb(h, x, None if self.first else self.shared.take())
        if self.last:
            return self.end(y, state)
        self.shared.put(state)
        return y


def ends(body: Anatomy, name: str) -> tuple[bool, bool]:
    """Whether block `name` is the first and whether it is the last of its stack."""
    here = next(layer for layer in body.layers if layer.name == name)
    stack = [layer.name for layer in body.layers if layer.stack == here.stack]
    return name == stack[0], name == stack[-1]
