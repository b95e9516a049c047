"""Control prompts: a soft prompt for every label, in front of the rows that carry it, so that one model answers in several ways.

    input of a row with label c = [P_c ; E(x_1) ... E(x_n)]             P_c (m, D), E the frozen embedding table (V, D)

    labels   names of the controls
    by       column of the rows that holds their label; rows must carry it along (`data.keep`)
    tokens   m, vectors of each control
    texts    a description for each label, in order, whose tokens the vectors start from, cycled or cut to m
    init     else: "vocabulary", rows of the embedding table drawn at random, or "normal", N(0, spread of the table)
    control  what acts on rows that carry no label: one of the labels, or "mean", all in equal parts. Empty: the first where the
             model is asked, and an error in training
    ids      texts as token ids: filled in from the tokenizer
One batch may hold rows of all labels: each has its own prompt, and labels that do not occur get no gradient. Weight decay is off:
it would move controls that do not occur.
Asking:     `control: bad`, or weights as in {good: 1.5, bad: -0.5}, in the settings of a model (`luthier generate --control`).
Start:      not the base model: the prompts are there from the first step.
Cost:       m D scalars a label; every sequence is m positions longer.
Paper:      Xue et al., 2023, "Parameter-Efficient Tuning Helps Language Model Alignment", arXiv:2310.00819: its first stage with
            prompt tuning.
Departures: the paper's m, start and rates were not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from luthier.core.adapt import PromptPart, PromptTuner
from luthier.core.anatomy import base_transformer
from luthier.core.method import LuthierError
from luthier.tuners._controls import Controls, ControlTuner, start_rows


class PromptOfEach(PromptPart):
    """A prompt (m, D) for every label. What acts is decided by `shared`."""

    shared: Controls

    def __init__(self, rows: dict[str, Tensor]):
        super().__init__()
        self.rows = nn.ParameterDict(rows)

    def prompt(self) -> Tensor:
        """(m, D), or (B, m, D)."""
        return self.shared.of(self.rows)

    @property
    def tokens(self) -> int:
        return len(next(iter(self.rows.values())))


@dataclass(frozen=True)
class ControlPrompts(ControlTuner, PromptTuner):
    paper: ClassVar[str] = "arXiv:2310.00819"
    cards: ClassVar[tuple[int, ...]] = (43,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"off", "several", "generate"})
    learning_rate: ClassVar[float] = 2e-2

    tokens: int = 10
    texts: tuple[str, ...] = ()
    init: Literal["vocabulary", "normal"] = "vocabulary"
    ids: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for key in ("texts", "ids"):
            if len(getattr(self, key)) not in (0, len(self.labels)):
                raise LuthierError(
                    f"tuner.{key}: give one for each of the labels {', '.join(self.labels)}, in their order"
                )

    @classmethod
    def example(cls) -> Self:
        return cls(tokens=3, control="mean")

    def for_data(self, tokenizer: Any, label_names: Any = None) -> Self:
        ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in self.texts)
        return replace(self, ids=tuple(tuple(i) for i in ids)) if self.texts else self

    def build(self, width: int, table: Tensor) -> PromptOfEach:
        ids = self.ids or [()] * len(self.labels)
        return PromptOfEach(
            {
                name: start_rows(table, self.tokens, self.init, tuple(i))
                for name, i in zip(self.labels, ids, strict=True)
            }
        )

    def parameter_count(self, model: nn.Module) -> int:
        return self.tokens * base_transformer(model).config.hidden_size * len(self.labels)
