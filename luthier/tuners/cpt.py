"""CPT, context-aware prompt tuning: labelled examples in front of the input, whose embeddings move inside small balls.

    input = [E(c_1) + d_1 ... E(c_m) + d_m ; E(x_1) ... E(x_n)]        d (n', D) for the n' rows of c that may move
    d_j <- d_j e_j / max(|d_j|, e_j)                                   after every step: projected gradient descent

    ids       c, m tokens of the context
    types     of each token: 0 separator, 1 input template, 2 input text, 3 output template, 4 label; + 4 i in example i
    examples  (text, label) pairs from which ids and types are made with the model's tokenizer (`context`), by
    input_template, output_template      texts with one {};  within, between   separators inside and after an example
    epsilon_input, epsilon_format        e_j = epsilon sqrt(D / 2048) for kind 2 and for kinds 1 and 3
    Labels and separators have no d: they cannot move.
Start:      d = 0: exactly the base model with the context written before the input.
Cost:       n' D scalars; sequences are m positions longer. Folded, m D for serving: `core.adapt.folded`.
Paper:      Blau et al., 2024, "Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods",
            arXiv:2410.17222.
Departures: the loss on the labels inside the context is the objective `context_sft`; with another one only the balls
            are left. An input keeps the BOS that its tokenizer writes. A row that is also in the context is not taken
            out of it. Both E(c) and d are saved, so that training goes on around the same centres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from luthier.core.adapt import PromptLabel, PromptPart
from luthier.core.anatomy import anatomy
from luthier.core.method import LuthierError
from luthier.tuners._prompts import FoldableTuner, start_rows

SEPARATOR, INPUT_TEMPLATE, INPUT, OUTPUT_TEMPLATE, LABEL = range(5)


def kind(type_: int) -> int:
    """0 to 4, without the number of the example."""
    return (type_ - 1) % 4 + 1 if type_ else SEPARATOR


def context(
    examples: Sequence[Sequence[str]],
    tokenizer: Any,
    input_template: str,
    output_template: str,
    within: str,
    between: str,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids and types of a few-shot prompt, piece by piece, after the tokens that begin any text (BOS)."""
    opening = _opening(tokenizer)
    ids, types = list(opening), [SEPARATOR] * len(opening)
    for i, (text, label) in enumerate(examples):
        before, after = _halves(input_template, "input_template")
        lead, tail = _halves(output_template, "output_template")
        pieces = (
            (before, INPUT_TEMPLATE), (text, INPUT), (after, INPUT_TEMPLATE), (within, SEPARATOR),
            (lead, OUTPUT_TEMPLATE), (label, LABEL), (tail, OUTPUT_TEMPLATE), (between, SEPARATOR),
        )  # fmt: skip
        for piece, type_ in pieces:
            new = tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
            ids += new
            types += [type_ + 4 * i if type_ else SEPARATOR] * len(new)
    return tuple(ids), tuple(types)


def _opening(tokenizer: Any) -> list[int]:
    written = tokenizer("")["input_ids"]
    return (
        [tokenizer.bos_token_id]
        if tokenizer.bos_token_id is not None and written[:1] == [tokenizer.bos_token_id]
        else []
    )


def _halves(template: str, key: str) -> list[str]:
    parts = template.split("{}")
    if len(parts) != 2:
        raise LuthierError(f"tuner.{key}: '{template}' must contain {{}} once")
    return parts


class ContextPart(PromptPart):
    rows: Tensor

    def __init__(self, rows: Tensor, ids: tuple[int, ...], types: tuple[int, ...], radii: dict[int, float]):
        super().__init__()
        self.ids, self.types = ids, types
        self.moving = [j for j, t in enumerate(types) if kind(t) in radii]
        self.radii = [radii[kind(types[j])] for j in self.moving]
        self.register_buffer("rows", rows)  # (m, D): the centres of the balls
        self.delta = nn.Parameter(torch.zeros(len(self.moving), rows.shape[1]))

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def projected(self) -> Tensor:
        """(n', D) inside the balls, whatever the last step did."""
        radius = torch.tensor(self.radii, dtype=self.delta.dtype, device=self.delta.device)[:, None]  # (n', 1)
        length = self.delta.norm(dim=1, keepdim=True)
        return self.delta * (radius / torch.maximum(length, radius).clamp(min=1e-30))

    def prompt(self) -> Tensor:
        if (
            self.training
        ):  # the step before may have left the balls; the projection is a part of the step, not of the loss
            with (
                torch.no_grad()
            ):  # `data`: a second pass of the same step projects the same numbers, and autograd may go on
                self.delta.data.copy_(self.projected())
        delta = self.delta if self.training else self.projected()
        at = torch.tensor(self.moving, dtype=torch.long, device=delta.device)
        return self.rows.to(delta.dtype).index_add(0, at, delta)

    def labels(self) -> list[PromptLabel]:
        last = (max(self.types) - 1) // 4
        at = [(j, t) for j, t in enumerate(self.types) if kind(t) == LABEL and j > 0]
        return [PromptLabel(j, self.ids[j], last - (t - 1) // 4) for j, t in at]


@dataclass(frozen=True)
class CPT(FoldableTuner):
    paper: ClassVar[str] = "arXiv:2410.17222"
    cards: ClassVar[tuple[int, ...]] = (52,)
    kinds: ClassVar[frozenset[str]] = frozenset({"decoder"})
    capabilities: ClassVar[frozenset[str]] = frozenset({"off", "several", "generate", "fold"})
    learning_rate: ClassVar[float] = 1e-4

    ids: tuple[int, ...] = ()
    types: tuple[int, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()
    input_template: str = "{}"
    output_template: str = "{}"
    within: str = ""
    between: str = "\n"
    epsilon_input: float = 0.1
    epsilon_format: float = 0.1

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.types):
            raise LuthierError(f"tuner.types has {len(self.types)} entries for {len(self.ids)} tokens in tuner.ids")
        if min(self.types, default=0) < 0 or min(self.epsilon_input, self.epsilon_format) < 0:
            raise LuthierError("tuner.types, tuner.epsilon_input and tuner.epsilon_format must not be negative")

    @classmethod
    def example(cls) -> Self:
        """Balls about as large as the tiny models' embeddings are long."""
        return cls(
            ids=(2, 11, 12, 40, 3, 13, 14, 41, 3), types=(0, 1, 2, 4, 0, 5, 6, 8, 0), epsilon_input=16, epsilon_format=8
        )

    def for_data(self, tokenizer: Any, label_names: Sequence[str] | None = None) -> Self:
        if self.ids or not self.examples:
            return self
        ids, types = context(
            self.examples, tokenizer, self.input_template, self.output_template, self.within, self.between
        )
        return replace(self, ids=ids, types=types)

    def sizes(self, width: int) -> tuple[int, int]:
        return len(self.ids), 0

    def radii(self, width: int) -> dict[int, float]:
        """By kind of token; kinds without a radius do not move."""
        share = math.sqrt(width / 2048)
        return {
            INPUT_TEMPLATE: self.epsilon_format * share,
            INPUT: self.epsilon_input * share,
            OUTPUT_TEMPLATE: self.epsilon_format * share,
        }

    def whole(self, width: int, table: Tensor) -> PromptPart:
        if not self.ids:
            raise LuthierError("tuner.examples: give (text, label) pairs, or their tokens as tuner.ids and tuner.types")
        rows = start_rows(table, len(self.ids), "vocabulary", self.ids)
        return ContextPart(rows, self.ids, self.types, self.radii(width))

    def parameter_count(self, model: nn.Module) -> int:
        D = anatomy(model).width
        return D * (len(self.ids) if self.folded else sum(kind(t) in self.radii(D) for t in self.types))
