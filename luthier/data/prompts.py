"""Prompts: a question without an answer; the model that is tuned writes the answers (rollouts).

in      prompt (a text, or messages up to the assistant's turn); optional tools. All other columns stay with the row, for
        whatever judges the answers
out     TextExample of the prompt, ready for an answer
trained nothing

Messages go through the chat template with the header of an assistant's turn, plain texts are taken as they are, as prompts
are in evaluation. A prompt longer than max_length is rejected: a cut question is another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from luthier.core.batch import TextExample
from luthier.core.method import RowError
from luthier.data._family import Conversational, Encoded, Rendered, Tokens, as_messages, cut, needed, tidy_tools


@dataclass(frozen=True)
class Prompts(Conversational):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (44, 47, 49)
    detected: ClassVar[bool] = True
    bare: ClassVar[bool] = True
    example_kind: ClassVar[type] = TextExample
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt",),)
    optional: ClassVar[tuple[str, ...]] = ("tools",)
    truncation_mode: Literal["keep_start", "keep_end"] = "keep_end"
    overlong: Literal["truncate", "reject"] = "reject"

    def texts(self, row: dict[str, Any], tokenizer: Any) -> list[Rendered]:
        prompt = needed(row, "prompt")
        if isinstance(prompt, str) and self.joins(tokenizer):
            return [Rendered(prompt, [], specials=True)]
        messages = self.opened(as_messages(prompt, "prompt", "user"))
        return [Rendered(self.conversation(tokenizer).render(messages, tidy_tools(row.get("tools")), prompt=True), [])]

    def build(self, row: dict[str, Any], index: int, tokens: list[Tokens], tokenizer: Any) -> Encoded:
        self.fits(len(tokens[0].ids))
        short = cut(tokens[0], self.max_length, self.truncation_mode, tokenizer.bos_token_id)
        if not short.ids:
            raise RowError("the prompt is empty: an answer would have nothing to be predicted from")
        return Encoded(TextExample(index, short.ids, short.counts, {"row": row}), short.marks)
