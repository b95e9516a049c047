"""Chat: conversations, or prompts with completions, where what the assistant says is trained.

    in      messages: [{role, content}], or prompt and completion (texts or messages); also `tools`
    out     TextExample: the whole conversation, `counts` True on what is trained
    trained the assistant's turns, each with its end-of-turn token; of prompt and completion the completion and the end
            token. A message's own `train: true|false` (also `loss`, `weight`) goes before everything else.

    completion_only_loss  prompt and completion: the prompt is not trained
    assistant_only_loss   messages: only turns of `roles_to_train` are trained
    train_on_inputs       everything is trained but the begin token; overrides the two above
    train_on_eos          end tokens that are trained: of trained turns, of all turns, of the last trained turn, none
    responses_only        response tuning (arXiv:2409.14254): what users say is left out and their turns stay, empty. The very
                          same tokens are trained, so that answers are learned without what they answer

Messages go through the chat template. A prompt and a completion that are plain texts are joined as they are and the
end token is added, as in trl and as prompts are read in evaluation; apply_chat_template: true makes them a user's and
an assistant's message.
Departures: trl trains whole conversations unless told otherwise (assistant_only_loss: false here).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from luthier.core.batch import TextExample
from luthier.core.method import LuthierError, RowError
from luthier.data._family import Conversational, Rendered, TextRows, Wanted, as_messages, needed, tidy, tidy_tools


@dataclass(frozen=True)
class Chat(TextRows, Conversational):
    paper: ClassVar[str] = ""
    cards: ClassVar[tuple[int, ...]] = (31, 33)
    detected: ClassVar[bool] = True
    example_kind: ClassVar[type] = TextExample
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("messages", "prompt"), ("messages", "completion"))
    optional: ClassVar[tuple[str, ...]] = ("tools",)
    completion_only_loss: bool = True
    assistant_only_loss: bool = True
    train_on_inputs: bool = False
    roles_to_train: tuple[str, ...] = ("assistant",)
    train_on_eos: Literal["turn", "all", "last", "none"] = "turn"
    responses_only: bool = False

    def texts(self, row: dict[str, Any], tokenizer: Any) -> list[Rendered]:
        if row.get("messages") is not None:
            messages, switches = tidy(row["messages"], "messages")
            everything, start = not self.assistant_only_loss, 0
        else:
            prompt, completion = needed(row, "prompt"), needed(row, "completion")
            everything = not self.completion_only_loss
            if isinstance(prompt, str) and isinstance(completion, str) and self.joins(tokenizer):
                if self.responses_only:
                    raise LuthierError(
                        "responses_only: a prompt that is plain text is no user's turn: say apply_chat_template: true"
                    )
                return [self._joined(prompt, completion, everything)]
            asked = as_messages(prompt, "prompt", "user")
            messages = asked + as_messages(completion, "completion", "assistant")
            switches, start = [None] * len(messages), len(asked)
        turns = [
            (m["role"] in self.roles_to_train and i >= start) if s is None else s
            for i, (m, s) in enumerate(zip(messages, switches))
        ]
        everything = self.train_on_inputs or everything
        if not any(turns) and not everything:
            raise RowError(f"no message to train on (roles_to_train: {', '.join(self.roles_to_train)})")
        opened = self.opened(messages)
        wanted = Wanted((*[False] * (len(opened) - len(messages)), *turns), self.train_on_eos, everything)
        template, tools = self.conversation(tokenizer), tidy_tools(row.get("tools"))
        if self.responses_only:
            opened = template.emptied(opened, "user", tools)
        return [template.spans(opened, wanted, tools)]

    def _joined(self, prompt: str, completion: str, everything: bool) -> Rendered:
        start = 0 if everything or self.train_on_inputs else len(prompt)
        whole = prompt + completion
        return Rendered(whole, [(start, len(whole))], specials=True, close=self.train_on_eos != "none")
