"""What soft-prompt methods share: a prompt whose vectors are themselves the parameters."""

from __future__ import annotations

from torch import Tensor, nn

from luthier.core.adapt import PromptPart


class SoftPrompt(PromptPart):
    """m free vectors (m, D)."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def prompt(self) -> Tensor:
        return self.rows
