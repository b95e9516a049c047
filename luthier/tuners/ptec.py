"""PTEC: a soft prompt and a classification head, trained together at two learning rates on a frozen language model.

    z = C h([P ; E(x_1) ... E(x_n)])           h (D,) final state of the last real token, C (K, D), P (p, D)
    P <- P - eta_P dL/dP,   C <- C - eta_C dL/dC,   eta_C = head_rate * eta_P

    tokens     p, number of prompt vectors
    init       "labels": the embeddings of the label names, one after the other; a random subset where they are more
               than p, filled up with random rows of the table where they are fewer.  "vocabulary": random rows only
    head_rate  learning rate of the head as a share of the prompt's
    label_ids  token ids of the label names (a run fills them in)
Start:      not the base model: the prompt is there from the first step. The head is new.
Cost:       p D scalars and the head's K D; one forward pass an input, where generating labels needs one a token.
Paper:      Buchner, Cao, Kalo and von Ehrenheim, 2023, "Prompt Tuned Embedding Classification for Multi-Label Industry
            Sector Allocation", arXiv:2309.12075, section 3. Loss and weights: objective `classification`.
Departures: positions come from the mask, so padding on either side changes nothing; too few label tokens are filled up
            with random rows instead of fixed ids; no exponential decay of the rates. Every kind of model is taken; in
            encoder-decoders the prompt is the encoder's. On a model without a task head only the prompt is there to
            train, which is the paper's baseline of prompt tuning with the language head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from luthier.core.adapt import PromptTuner
from luthier.core.anatomy import base_transformer, in_task_head
from luthier.core.method import LuthierError
from luthier.tuners._prompts import SoftPrompt


@dataclass(frozen=True)
class PTEC(PromptTuner):
    paper: ClassVar[str] = "arXiv:2309.12075"
    cards: ClassVar[tuple[int, ...]] = (24,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"off", "several", "generate"})
    learning_rate: ClassVar[float] = 3e-3

    tokens: int = 100
    init: Literal["labels", "vocabulary"] = "labels"
    head_rate: float = 1e-5 / 3e-3
    label_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.head_rate < 0:
            raise LuthierError("ptec needs tokens >= 1 and head_rate >= 0")

    @classmethod
    def example(cls) -> Self:
        return cls(tokens=4, head_rate=0.1, label_ids=(11, 25, 7))

    def for_data(self, tokenizer: Any, label_names: Sequence[str] | None = None) -> Self:
        ids = [i for name in label_names or () for i in tokenizer(f" {name}", add_special_tokens=False)["input_ids"]]
        return replace(self, label_ids=tuple(ids))

    def build(self, width: int, table: Tensor) -> SoftPrompt:
        if table.device.type == "meta":
            return SoftPrompt(torch.empty(self.tokens, width))
        ids = torch.tensor(self.label_ids if self.init == "labels" else (), dtype=torch.long)
        if len(ids) > self.tokens:
            ids = ids[torch.randperm(len(ids))[: self.tokens].sort().values]
        fill = torch.randint(len(table), (self.tokens - len(ids),))
        return SoftPrompt(table[torch.cat([ids, fill]).to(table.device)].float().cpu().clone())

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        moving = [n for n, p in model.named_parameters() if p.requires_grad]
        head = [n for n in moving if in_task_head(n)]
        return [{"params": head, "lr_scale": self.head_rate}] if head else []

    def parameter_count(self, model: nn.Module) -> int:
        return self.tokens * base_transformer(model).config.hidden_size
