"""What every row type shares: lengths, chat templates, and the way from rows to examples in batches.

A type says two things: `texts`, the texts of a row with their trained characters, and `build`, the example made of
their tokens. Rendering, tokenising, cutting and counting are here, once. `encode` is a batch of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self
from weakref import WeakKeyDictionary

from luthier.core.batch import Example, GroupExample, TextExample
from luthier.core.method import DataSource, LuthierError, RowError
from luthier.data._templates import BUILT_IN, ChatTemplate, Message, Rendered, Wanted, template_source, tidy, tidy_tools
from luthier.data._tokens import Tokens, cut, tokenise
from luthier.data._words import nearest

__all__ = [
    "Conversational", "Encoded", "GroupRows", "Rendered", "RowType", "TextRows", "Tokens", "Wanted",
    "as_messages", "common", "cut", "nearest", "needed", "tidy", "tidy_tools",
]  # fmt: skip

Row = dict[str, Any]


@dataclass(slots=True)
class Encoded:
    """An example and what happened on the way to it ("cut", "answer cut", ...), counted in the report."""

    example: Example
    marks: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class RowType(DataSource):
    """A type of rows.

    detected         found from the columns of the data (False: used only when named)
    chosen_by_option rows may have several alternatives of a required column; an option says which is meant
    bare             other types' rows have its columns too: it is meant only where there is nothing more
    optional         columns that are read where they are there
    max_length       tokens of a sequence (of prompt and one answer, in groups); None: no limit
    truncation_mode  which end of a longer sequence is kept
    overlong         truncate: cut and count; reject: drop and report
    """

    detected: ClassVar[bool] = False
    chosen_by_option: ClassVar[bool] = False
    bare: ClassVar[bool] = False
    optional: ClassVar[tuple[str, ...]] = ()
    max_length: int | None = 1024
    truncation_mode: Literal["keep_start", "keep_end"] = "keep_start"
    overlong: Literal["truncate", "reject"] = "truncate"

    def completed(self, rows: Sequence[Row]) -> tuple[Sequence[Row], list[str]]:
        """Rows with what only all of them together can add (negatives drawn from one another), and notes."""
        return rows, []

    def settle(self, rows: Sequence[Row], names: Mapping[str, list[str]]) -> tuple[Self, list[str]]:
        """The same with what only all rows together can tell (label names), and notes for the report."""
        return self, []

    def texts(self, row: Row, tokenizer: Any) -> list[Rendered]:
        """The texts of a row with their trained characters."""
        raise NotImplementedError

    def build(self, row: Row, index: int, tokens: list[Tokens], tokenizer: Any) -> Encoded:
        """The example made of the tokens of `texts`."""
        raise NotImplementedError

    def encode(self, row: Row, index: int, tokenizer: Any) -> Example:
        result = self.encode_rows([row], [index], tokenizer)[0]
        if isinstance(result, RowError):
            raise result
        return result.example

    def encode_rows(self, rows: Sequence[Row], indices: Sequence[int], tokenizer: Any) -> list[Encoded | RowError]:
        """One result a row, in order: an example, or the reason why there is none."""
        texts: list[list[Rendered] | RowError] = []
        for row in rows:
            try:
                texts.append(self.texts(row, tokenizer))
            except RowError as error:
                texts.append(error)
        tokens = iter(tokenise([t for part in texts if not isinstance(part, RowError) for t in part], tokenizer))
        results: list[Encoded | RowError] = []
        for row, index, part in zip(rows, indices, texts):
            if isinstance(part, RowError):
                results.append(part)
                continue
            mine = [next(tokens) for _ in part]
            try:
                results.append(self.build(row, index, mine, tokenizer))
            except RowError as error:
                results.append(error)
        return results

    def fitted(self, tokens: Tokens, tokenizer: Any) -> Tokens:
        """Tokens cut to `max_length` as the options say. Raises RowError where nothing trained would be left."""
        self.fits(len(tokens.ids))
        if not any(tokens.counts):
            raise RowError("no token to train on")
        short = cut(tokens, self.max_length, self.truncation_mode, tokenizer.bos_token_id)
        if not any(short.counts):
            other = "; truncation_mode: keep_end keeps the answer" if self.truncation_mode == "keep_start" else ""
            n = len(tokens.ids)
            raise RowError(f"the answer lies beyond max_length {self.max_length} of {n} tokens: raise it{other}")
        return short

    def fits(self, n: int) -> bool:
        """Whether n tokens are within `max_length`. Raises RowError where overlong rows are rejected."""
        if self.max_length is None or n <= self.max_length:
            return True
        if self.overlong == "reject":
            raise RowError(f"{n} tokens, more than max_length {self.max_length} (overlong: reject)")
        return False


@dataclass(frozen=True)
class TextRows(RowType):
    """One text a row, to a TextExample."""

    example_kind: ClassVar[type] = TextExample

    def build(self, row: Row, index: int, tokens: list[Tokens], tokenizer: Any) -> Encoded:
        short = self.fitted(tokens[0], tokenizer)
        return Encoded(TextExample(index, short.ids, short.counts), short.marks)


_TEMPLATES: WeakKeyDictionary[Any, dict[str, ChatTemplate]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Conversational(RowType):
    """Rows that may be messages.

    system               system message of conversations that have none
    chat_template_path   template in place of the tokenizer's: a file, a model folder, "chatml", "plain" or "tags"
    apply_chat_template  auto: messages are rendered, plain texts are joined as they are; true: plain texts are rendered
                         as messages too; false: nothing is rendered
    """

    system: str | None = None
    chat_template_path: str | None = None
    apply_chat_template: Literal["auto", True, False] = "auto"

    def template_text(self, tokenizer: Any) -> str | None:
        """The Jinja source in use; None where texts are concatenated."""
        if self.apply_chat_template is False:
            return None
        source = template_source(tokenizer, self.chat_template_path)
        if source is None and self.apply_chat_template is True:
            raise LuthierError(f"apply_chat_template: true, but {_NO_TEMPLATE}")
        return source

    def template(self, tokenizer: Any) -> ChatTemplate | None:
        source = self.template_text(tokenizer)
        if source is None:
            return None
        known = _TEMPLATES.setdefault(tokenizer, {})
        if source not in known:
            known[source] = ChatTemplate(source, tokenizer)
        return known[source]

    def joins(self, tokenizer: Any) -> bool:
        """Whether plain texts are joined as they are. They cannot be where a system message is asked for."""
        if self.system and self.apply_chat_template == "auto":
            raise LuthierError(
                "system: plain texts have no system message; say apply_chat_template: true to render them"
            )
        return self.apply_chat_template is not True

    def conversation(self, tokenizer: Any) -> ChatTemplate:
        """The template, for rows that cannot do without."""
        template = self.template(tokenizer)
        if template is None:
            why = "apply_chat_template is false" if self.apply_chat_template is False else _NO_TEMPLATE
            raise LuthierError(f"data: the rows hold messages, but {why}")
        return template

    def opened(self, messages: list[Message]) -> list[Message]:
        """With the default system message in front, where there is one and the row has none."""
        if self.system and messages[0]["role"] != "system":
            return [{"role": "system", "content": self.system}, *messages]
        return messages


_NO_TEMPLATE = f"the tokenizer has no chat template: set chat_template_path (a file, a folder, {', '.join(BUILT_IN)})"


def needed(row: Row, name: str) -> Any:
    """A value that the type cannot do without."""
    value = row.get(name)
    if value is None:
        raise RowError(f"no '{name}'")
    return value


def as_messages(value: Any, name: str, role: str) -> list[Message]:
    """Messages as they are, or a text as one message."""
    if isinstance(value, str) and not (value[:1] == "[" and '"role"' in value):
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    return tidy(value, name)[0]


@dataclass(frozen=True)
class GroupRows(Conversational):
    """A prompt and its answers, to a GroupExample. A type says which by `group`."""

    example_kind: ClassVar[type] = GroupExample

    def group(self, row: Row) -> tuple[Any, list[Any], list[float]]:
        """(prompt, answers, scores), as text or messages. No prompt: it is what the answers begin with."""
        raise NotImplementedError

    def texts(self, row: Row, tokenizer: Any) -> list[Rendered]:
        prompt, answers, _ = self.group(row)
        if prompt is None:
            return self._implicit(answers, tokenizer)
        plain = isinstance(prompt, str) and all(isinstance(a, str) for a in answers)
        if plain and self.joins(tokenizer):
            return [Rendered(prompt + a, [(len(prompt), len(prompt) + len(a))], True, True) for a in answers]
        asked = as_messages(prompt, "prompt", "user")
        replies = [as_messages(a, f"answer {k + 1}", "assistant") for k, a in enumerate(answers)]
        return self._rendered(asked, replies, tidy_tools(row.get("tools")), tokenizer)

    def _rendered(
        self, asked: list[Message], replies: Sequence[list[Message]], tools: Any, tokenizer: Any
    ) -> list[Any]:
        template, asked = self.conversation(tokenizer), self.opened(asked)
        for reply in replies:
            if len(reply) != 1 or reply[0]["role"] != "assistant":
                roles = ", ".join(m["role"] for m in reply) or "nothing"
                raise RowError(f"an answer must be one assistant message after the prompt, this is {roles}")
        wanted = Wanted((*[False] * len(asked), True))
        return [template.spans(asked + reply, wanted, tools) for reply in replies]

    def _implicit(self, answers: list[Any], tokenizer: Any) -> list[Rendered]:
        """Answers that begin with their prompt: what they have in common is the prompt."""
        if all(isinstance(a, str) for a in answers) and not answers[0].startswith("[{"):
            start = common(answers)
            if start and answers[0][start - 1].isspace() and answers[0][start - 1] != "\n":
                start -= 1  # a space belongs to the word after it
            return [Rendered(a, [(start, len(a))], True, True) for a in answers]
        turns = [as_messages(a, f"answer {k + 1}", "assistant") for k, a in enumerate(answers)]
        start = common(turns)
        return self._rendered(turns[0][:start], [t[start:] for t in turns], None, tokenizer)

    def build(self, row: Row, index: int, tokens: list[Tokens], tokenizer: Any) -> Encoded:
        marks = set().union(*(t.marks for t in tokens))
        if any(True not in t.counts for t in tokens):
            raise RowError("an answer has no token to train on")
        firsts = [t.counts.index(True) for t in tokens]
        stops = [len(t.counts) - t.counts[::-1].index(True) for t in tokens]
        shared = min(common([t.ids for t in tokens]) if len(tokens) > 1 else firsts[0], *firsts, firsts[0])
        if shared == 0:
            raise RowError("the prompt is empty: its answers would have nothing to be predicted from")
        prompt = tokens[0].ids[:shared]
        answers = [t.ids[shared:stop] for t, stop in zip(tokens, stops)]
        prompt, answers, more = self._shortened(prompt, answers, tokenizer.bos_token_id)
        return Encoded(GroupExample(index, prompt, answers, self.group(row)[2]), marks | more)

    def _shortened(self, prompt: list[int], answers: list[list[int]], bos: int | None) -> tuple[Any, Any, set[str]]:
        longest = max(map(len, answers))
        if self.fits(len(prompt) + longest):
            return prompt, answers, set()
        limit = self.max_length or 0
        if self.truncation_mode == "keep_end":
            room = max(1, limit - longest)
            head = prompt[:1] if prompt[0] == bos and room > 1 else []
            prompt = head + prompt[len(prompt) - (room - len(head)) :]
        if len(prompt) >= limit:
            raise RowError(
                f"the prompt fills max_length {limit}: raise it; truncation_mode: keep_end keeps the answers"
            )
        short = [a[: limit - len(prompt)] for a in answers]
        return prompt, short, {"cut", "answer cut"} if short != answers else {"cut"}


def common(sequences: Sequence[Sequence[Any]]) -> int:
    """Length of the beginning that all have in common."""
    n = 0
    for items in zip(*sequences):
        if any(item != items[0] for item in items):
            break
        n += 1
    return n
