"""Messages to text, and which characters of the text are trained.

A turn's characters are found in one of two exact ways, in this order:
    marks      the template has {% generation %} blocks, one for each assistant turn
    prefixes   the conversation up to the turn, with the generation prompt, and up to its end are rendered; both must be
               prefixes of the whole rendering, and what lies between them is the turn
If neither holds, the row is refused with the reason: characters are never guessed.

The closing mark of a turn (<|im_end|>, <end_of_turn>, </s> ...) is found once for a template, by rendering a probe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.method import LuthierError, RowError

Message = dict[str, Any]
Span = tuple[int, int]

BUILT_IN = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "plain": (
        "{% for m in messages %}{{ m['role'] + ':' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ ' ' + m['content'] + (eos_token or '\n') }}{% endgeneration %}"
        "{% else %}{{ ' ' + m['content'] + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    ),
    "tags": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + (eos_token or '') }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}
_PROBE = "luthierprobe"
_FIX = (
    "mark the assistant's text in the template with {% generation %} ... {% endgeneration %} (chat_template_path), "
    "or split the conversation so that each row ends with the turn to train"
)


@dataclass(slots=True)
class Rendered:
    """A text with its trained characters.

    specials  the tokenizer adds its own begin and end tokens (plain text); False where a template wrote them
    close     an end token follows the text and is trained
    marks     what happened on the way, counted in the report
    """

    text: str
    trained: list[Span]
    specials: bool = False
    close: bool = False
    marks: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Wanted:
    """Which turns of a conversation are trained and what of their closing marks."""

    turns: tuple[bool, ...]
    closing: str = "turn"  # turn, all, last, none
    everything: bool = False


class ChatTemplate:
    """One template with the special tokens of one tokenizer."""

    def __init__(self, source: str, tokenizer: Any) -> None:
        self.source = source
        self.tokens: dict[str, Any] = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
        self.bos = self.tokens.get("bos_token", "")
        self.marked = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.content.strip()]
        self.specials = sorted({*added, *self.tokens.values()}, key=len, reverse=True)
        self.closing = self._find_closing()

    def _find_closing(self) -> str:
        try:
            text, _ = self._render([_message("user", "a"), _message("assistant", _PROBE)], None, False)
        except RowError:
            return self.tokens.get("eos_token", "")
        tail = text[text.rfind(_PROBE) + len(_PROBE) :] if _PROBE in text else ""
        mark = next((s for s in self.specials if tail.lstrip().startswith(s)), None)
        return mark or tail.strip() or tail

    def _render(self, messages: Sequence[Message], tools: Any, prompt: bool) -> tuple[str, list[Span]]:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered: Any = render_jinja_template(
                [list(messages)], tools=tools, chat_template=self.source, return_assistant_tokens_mask=self.marked,
                add_generation_prompt=prompt, **self.tokens,
            )  # fmt: skip
        except jinja2.TemplateSyntaxError as error:
            raise LuthierError(f"chat template, line {error.lineno}: {error.message}") from None
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise RowError(f"the chat template refuses the messages: {error}") from None
        texts, spans = rendered
        return texts[0], list(spans[0]) if spans else []

    def render(self, messages: Sequence[Message], tools: Any = None, prompt: bool = False) -> str:
        """The text of a conversation; `prompt` adds the header of an assistant's turn."""
        return self._render(messages, tools, prompt)[0]

    def emptied(self, messages: Sequence[Message], role: str, tools: Any = None) -> list[Message]:
        """The messages with nothing said in the turns of `role`. Raises LuthierError where these turns would not stay."""

        def saying(text: str) -> list[Message]:
            return [{**m, "content": text} if m["role"] == role else m for m in messages]

        if self.render(saying(""), tools) != self.render(saying(_PROBE), tools).replace(_PROBE, ""):
            raise LuthierError(
                f"the chat template does not write an empty {role} turn as a turn: use another one (chat_template_path)"
            )
        return saying("")

    def spans(self, messages: Sequence[Message], wanted: Wanted, tools: Any = None) -> Rendered:
        """The text of a conversation with the characters to train."""
        text, blocks = self._render(messages, tools, False)
        out = Rendered(text, [])
        if wanted.everything:
            out.trained = [(len(self.bos) if text.startswith(self.bos) else 0, len(text))]
            return out
        spoken = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        marked = dict(zip(spoken, blocks)) if len(blocks) == len(spoken) else {}
        last = max((i for i, t in enumerate(wanted.turns) if t), default=-1)
        for i, train in enumerate(wanted.turns):
            if not train:
                continue
            closes = wanted.closing in ("turn", "all") or (wanted.closing == "last" and i == last)
            if i in marked:
                out.trained += self._block(text, marked[i], closes, out.marks)
            elif messages[i]["role"] == "assistant":
                out.trained += self._turn(text, *self._between(text, messages, i, tools), closes)
            else:
                out.trained += self._said(text, messages, i, tools, closes)
        if wanted.closing == "all" and self.closing:
            out.trained += [m.span() for m in re.finditer(re.escape(self.closing), text)]
        out.trained = _union(out.trained)
        return out

    def _block(self, text: str, block: Span, closes: bool, marks: set[str]) -> list[Span]:
        """A {% generation %} block. A closing mark that the template left just outside of it is trained as well."""
        start, end = block
        said, mark = text[start:end], self.closing.strip()
        at = len(said.rstrip()) - len(mark) if mark and said.rstrip().endswith(mark) else -1
        if not mark and self.closing and said.endswith(self.closing):
            at = len(said) - len(self.closing)
        if at >= 0:
            return [block] if closes else [(start, start + at)]
        if closes and self.closing and text.startswith(self.closing, end):
            marks.add("turn end added to the template's marks")
            return [(start, end + len(self.closing))]
        return [block]

    def _turn(self, text: str, start: int, end: int, closes: bool) -> list[Span]:
        """A turn between two prefixes: its text and its closing mark, not the line break after it."""
        at = text.rfind(self.closing, start, end) if self.closing else -1
        if at < 0 or text[at + len(self.closing) : end].strip():
            return [(start, end)] if closes else [(start, start + len(text[start:end].rstrip()))]
        return [(start, at + len(self.closing) if closes else at)]

    def _between(self, text: str, messages: Sequence[Message], i: int, tools: Any) -> Span:
        """Characters of assistant turn i, by rendering the prefixes of the conversation around it."""
        if i == 0:
            raise RowError("the conversation starts with an assistant turn, so its beginning cannot be found")
        head = self.render(messages[:i], tools, prompt=True)
        tail = text if i == len(messages) - 1 else self.render(messages[: i + 1], tools)
        return self._checked(text, head, tail, i)

    def _checked(self, text: str, head: str, tail: str, i: int) -> Span:
        for part, words in ((head, "up to"), (tail, "including")):
            if not text.startswith(part):
                raise RowError(
                    f"the chat template cannot be masked: rendered alone, the conversation {words} message {i + 1} is "
                    f"not the beginning of the whole; {_FIX}"
                )
        if len(tail) < len(head):
            raise RowError(f"the chat template cannot be masked: it renders nothing for message {i + 1}; {_FIX}")
        return len(head), len(tail)

    def _said(self, text: str, messages: Sequence[Message], i: int, tools: Any, closes: bool) -> list[Span]:
        """What a user, system or tool message says, without its header."""
        head = self.render(messages[:i], tools) if i else ""
        tail = text if i == len(messages) - 1 else self.render(messages[: i + 1], tools)
        start, end = self._checked(text, head, tail, i)
        content = messages[i]["content"] or ""
        said = next((c for c in (content, content.strip()) if c and c in text[start:end]), None)
        if said is None:
            raise RowError(f"the chat template does not show the text of message {i + 1} as it is; {_FIX}")
        at = text.index(said, start, end)
        stop = at + len(said)
        follows = text.find(self.closing, stop, end) if self.closing and closes else -1
        return [(at, follows + len(self.closing) if follows >= 0 and not text[stop:follows].strip() else stop)]


def _union(spans: list[Span]) -> list[Span]:
    """Sorted, with overlapping and touching spans joined, empty ones gone."""
    joined: list[Span] = []
    for start, end in sorted(s for s in spans if s[1] > s[0]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def template_source(tokenizer: Any, path: str | None) -> str | None:
    """The template to use: of `path` (a built-in name, a file, a model folder), else the tokenizer's, else None."""
    if path is None:
        own = getattr(tokenizer, "chat_template", None)
        if isinstance(own, Mapping):
            return own.get("default") or next(iter(own.values()), None)
        return own
    if path in BUILT_IN:
        return BUILT_IN[path]
    place = Path(path)
    if place.is_file() and place.name != "tokenizer_config.json":
        return place.read_text(encoding="utf-8")
    folder = place if place.is_dir() else place.parent
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "tokenizer_config.json").is_file():
        held = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
        if isinstance(held, list):  # the older form: named templates
            held = {t["name"]: t["template"] for t in held}.get("default")
        if held:
            return held
    raise LuthierError(
        f"chat_template_path: no template at '{path}'; give a .jinja file, a folder with a tokenizer, "
        f"or one of {', '.join(BUILT_IN)}"
    )


# Messages


_SWITCHES = ("train", "loss", "weight", "loss_scale", "training_detail", "train_detail")
ROLES = ("system", "developer", "user", "assistant", "tool")


def tidy(value: Any, name: str) -> tuple[list[Message], list[bool | None]]:
    """Messages as templates want them, and the train switch of each (None where it has none)."""
    if isinstance(value, str) and value[:1] == "[":
        value = _json(value, name)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RowError(f"'{name}' is not a list of messages" if value else f"'{name}' is empty")
    pairs = [_tidy_one(m, f"{name}[{i}]") for i, m in enumerate(value)]
    return [m for m, _ in pairs], [s for _, s in pairs]


def _tidy_one(message: Any, where: str) -> tuple[Message, bool | None]:
    if not isinstance(message, Mapping):
        raise RowError(f"{where} is not an object with `role` and `content`")
    clean = {k: v for k, v in message.items() if v is not None and k not in _SWITCHES}
    role = clean.get("role")
    if role == "function":
        clean["role"] = role = "tool"
    if role not in ROLES:
        raise RowError(f"{where} has {'no role' if role is None else f'the role {role!r}'}; known: {', '.join(ROLES)}")
    if "function_call" in clean:  # OpenAI's form before tool_calls
        clean["tool_calls"] = [{"type": "function", "function": clean.pop("function_call")}]
    if "tool_calls" in clean:
        clean["tool_calls"] = [_call(c, where) for c in clean["tool_calls"]]
    elif "content" not in clean:
        raise RowError(f"{where} has no content")
    clean["content"] = _content(clean.get("content", ""), where)
    return clean, _switch(message, where)


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(isinstance(p, Mapping) for p in content):
        other = next((p.get("type") for p in content if p.get("type", "text") != "text"), None)
        if other is not None:
            raise RowError(f"{where} has a part of type '{other}'; only text is read")
        return "".join(str(p.get("text", "")) for p in content)
    raise RowError(f"{where}: content is not text")


def _call(call: Any, where: str) -> dict[str, Any]:
    """A tool call with its arguments as an object: templates write the JSON themselves."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise RowError(f"{where}: a tool call needs `function` with `name` and `arguments`")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments or "{}", f"{where}: arguments of '{function['name']}'")
    outer = {k: v for k, v in call.items() if v is not None} if "function" in call else {"type": "function"}
    return outer | {"function": {**function, "arguments": arguments}}


def _switch(message: Mapping[str, Any], where: str) -> bool | None:
    """The per-message switch: `train` (axolotl), `loss` (ms-swift) or `weight` (OpenAI), each true or false."""
    values = {k: message[k] for k in _SWITCHES if message.get(k) is not None}
    for key, value in values.items():
        if key not in ("train", "loss", "weight") and value not in (0, 1, True, False):
            raise RowError(f"{where}: `{key}` is not read; switch whole messages with `train: true` or `train: false`")
        if value not in (0, 1, True, False):
            raise RowError(f"{where}: `{key}` must be true or false, not {value!r}")
    if len({bool(v) for v in values.values()}) > 1:
        raise RowError(f"{where}: {' and '.join(values)} contradict each other")
    return bool(next(iter(values.values()))) if values else None


def tidy_tools(value: Any) -> list[dict[str, Any]] | None:
    """The tools column: a list of JSON schemas, or the same as JSON text."""
    if isinstance(value, str):
        value = _json(value, "tools") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, Sequence) or not all(isinstance(t, Mapping) for t in value):
        raise RowError("'tools' is not a list of JSON schemas")
    return [dict(t) for t in value]


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f"{what}: not JSON: {error.msg} at column {error.colno}") from None


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
