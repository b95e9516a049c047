"""What soft prompts share: how rows start, and prompts that are computed in training and folded for serving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from luthier.core.adapt import FoldedPrompt, PromptPart, PromptTuner
from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError


def start_rows(table: Tensor, tokens: int, init: str, ids: tuple[int, ...] = ()) -> Tensor:
    """(m, D) first prompt rows: those of `ids` in the embedding table, cycled or cut, else drawn as `init` says."""
    if table.device.type == "meta":
        return torch.empty(tokens, table.shape[1])
    if ids:
        _known(ids, table)
        return table[[ids[i % len(ids)] for i in range(tokens)]].float().cpu().clone()
    if init == "normal":
        return torch.randn(tokens, table.shape[1]) * table.float().std().cpu()
    return table[torch.randint(len(table), (tokens,))].float().cpu().clone()


def _known(ids: tuple[int, ...], table: Tensor) -> None:
    if not 0 <= min(ids) <= max(ids) < len(table):
        raise LuthierError(
            f"tuner.ids: token ids must be from 0 to {len(table) - 1}, the last of this model's vocabulary"
        )


class SoftPrompt(PromptPart):
    """m free vectors (m, D)."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def prompt(self) -> Tensor:
        return self.rows


@dataclass(frozen=True)
class FoldableTuner(PromptTuner):
    """A prompt that is computed. `folded` is what `core.adapt.folded` sets: the adapter holds plain vectors."""

    folded: bool = False

    def whole(self, width: int, table: Tensor) -> PromptPart:
        """The part that is trained."""
        raise NotImplementedError

    def sizes(self, width: int) -> tuple[int, int]:
        """(m, s): rows of the prompt, rows of the correction (0: none)."""
        raise NotImplementedError

    def build(self, width: int, table: Tensor) -> PromptPart:
        if not self.folded:
            return self.whole(width, table)
        m, s = self.sizes(width)
        return FoldedPrompt(torch.zeros(m, width), torch.zeros(s, width) if s else None)


class DecomposedPart(PromptPart):
    """Short prompt P (m, D) and the correction c A B of the embeddings: A (s, R), B (R, D)."""

    def __init__(self, rows: Tensor, length: int, r: int, alpha: float):
        super().__init__()
        self.rows = nn.Parameter(rows)
        self.A = nn.Parameter(torch.empty(length, r))
        self.B = nn.Parameter(torch.zeros(r, rows.shape[1]))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = alpha / math.sqrt(r)

    def prompt(self) -> Tensor:
        return self.rows

    @property
    def tokens(self) -> int:
        return len(self.rows)

    def correction(self) -> Tensor:
        return self.scale * (self.A @ self.B)  # (s, D)


@dataclass(frozen=True)
class DecomposedTuner(FoldableTuner):
    """A short prompt and a low-rank correction, within the parameters of a longer prompt, at two learning rates."""

    capabilities: ClassVar[frozenset[str]] = frozenset({"off", "several", "generate", "fold"})
    learning_rate: ClassVar[float] = 0.3

    tokens: int = 40
    r: int | None = None
    max_length: int = 256
    budget: int = 100
    alpha: float = 8.0
    init: Literal["vocabulary", "normal"] = "vocabulary"
    ids: tuple[int, ...] = ()
    lr_ratio: float = 1 / 60

    def spent(self, width: int) -> int:
        """Scalars besides prompt and correction."""
        return 0

    def rank(self, width: int) -> int:
        """R: the field, or the largest with which everything together has at most as many scalars as `budget` rows."""
        if self.r is not None:
            return self.r
        left = (self.budget - self.tokens) * width - self.spent(width)
        r = left // (self.max_length + width)
        if r < 1:
            raise LuthierError(
                f"tuner.budget: {self.budget} rows of {width} leave no room for a correction beside tuner.tokens = "
                f"{self.tokens} and tuner.max_length = {self.max_length}: raise tuner.budget or set tuner.r"
            )
        return r

    def sizes(self, width: int) -> tuple[int, int]:
        return self.tokens, self.max_length

    def start(self, table: Tensor) -> Tensor:
        return start_rows(table, self.tokens, self.init, self.ids)

    def groups(self, model: nn.Module) -> list[dict[str, Any]] | None:
        slow = [n for n, p in model.named_parameters() if p.requires_grad and not n.endswith(".rows")]
        return [{"params": slow, "lr_scale": self.lr_ratio}]

    def parameter_count(self, model: nn.Module) -> int:
        D, s = anatomy(model).width, self.max_length
        if self.folded:
            return (self.tokens + s) * D
        return self.tokens * D + self.rank(D) * (s + D) + self.spent(D)
