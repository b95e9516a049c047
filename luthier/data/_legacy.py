"""Older formats to the row types of today, before any type is detected.

    instruction, input, output, system, history           alpaca       ->  messages
    conversations: [{from, value}]                        ShareGPT     ->  messages
    query, response, history                              query        ->  messages
    the three with chosen, rejected / rejected_response                ->  prompt, chosen, rejected
    the three with kto_tag                                             ->  prompt, completion, label
    input, preferred_output, non_preferred_output         OpenAI DPO   ->  prompt, chosen, rejected
    dataset_info.json                                     LLaMA-Factory: an entry says which of these, and the names

Columns that a format does not use stay in the row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.method import LuthierError, RowError
from luthier.data._words import nearest

Row = dict[str, Any]
Message = dict[str, Any]
REGISTRY = "dataset_info.json"


@dataclass(frozen=True)
class Style:
    """A format and the function that converts one row of it."""

    name: str
    convert: Callable[[Row], Row]


@dataclass(frozen=True)
class Tags:
    """How a list of turns spells roles and texts."""

    role: tuple[str, ...] = ("from", "role")
    content: tuple[str, ...] = ("value", "content", "text")
    user: tuple[str, ...] = ("human", "user")
    assistant: tuple[str, ...] = ("gpt", "assistant", "model", "chatgpt", "bard", "bing")
    system: tuple[str, ...] = ("system",)
    tool: tuple[str, ...] = ("observation", "tool", "function_response")
    call: tuple[str, ...] = ("function_call",)


TAGS = Tags()


def recognise(columns: Sequence[str]) -> Style | None:
    """The legacy format of these columns, if they are one and are not a row type of today already."""
    have = set(columns)
    if have & {"messages", "prompt", "segments", "input_ids"}:
        return None
    if "conversations" in have:
        return Style("ShareGPT", lambda row: _sharegpt(row, TAGS))
    if {"input", "preferred_output", "non_preferred_output"} <= have:
        return Style("OpenAI preference", _openai_preference)
    if "instruction" in have and ("output" in have or {"chosen", "rejected"} <= have):
        return Style("alpaca", _alpaca)
    if {"query", "response"} <= have:
        return Style("query and response", _query_response)
    return None


# One row


def _alpaca(row: Row) -> Row:
    names = ("instruction", "input", "output", "system", "history", "chosen", "rejected", "kto_tag")
    rest, used = _part(row, names)
    user = "\n".join(t for t in (_text(used, "instruction"), _text(used, "input", needed=False)) if t)
    turns = [*_opening(used), {"role": "user", "content": user}]
    return rest | _answered(used, turns, "output")


def _query_response(row: Row) -> Row:
    names = ("query", "response", "system", "history", "rejected_response", "kto_tag")
    rest, used = _part(row, names)
    turns = [*_opening(used), {"role": "user", "content": _text(used, "query")}]
    if used.get("rejected_response") is not None:
        used |= {"chosen": used["response"], "rejected": used["rejected_response"]}
    return rest | _answered(used, turns, "response")


def _sharegpt(row: Row, tags: Tags) -> Row:
    rest, used = _part(row, ("conversations", "system", "chosen", "rejected", "kto_tag"))
    turns = _decoded(used["conversations"])
    if not isinstance(turns, list) or not turns:
        raise RowError("'conversations' is not a list of turns")
    messages = [_message(turn, tags, f"conversations[{i}]") for i, turn in enumerate(turns)]
    if messages[0]["role"] != "system":
        messages = _opening(used) + messages
    if used.get("chosen") is not None and used.get("rejected") is not None:
        pair = {k: [_message(_decoded(used[k]), tags, k)] for k in ("chosen", "rejected")}
        return rest | {"prompt": messages} | pair
    if used.get("kto_tag") is not None:
        return rest | {"prompt": messages[:-1], "completion": messages[-1:], "label": used["kto_tag"]}
    return rest | {"messages": messages}


def _openai_preference(row: Row) -> Row:
    rest, used = _part(row, ("input", "preferred_output", "non_preferred_output"))
    given = used["input"]
    prompt = given.get("messages") if isinstance(given, Mapping) else given
    if not isinstance(prompt, list):
        raise RowError("'input' is neither a list of messages nor an object with `messages`")
    tools = {"tools": given["tools"]} if isinstance(given, Mapping) and given.get("tools") else {}
    return rest | tools | {
        "prompt": prompt,
        "chosen": used["preferred_output"],
        "rejected": used["non_preferred_output"],
    }  # fmt: skip


def _answered(used: Row, turns: list[Message], answer: str) -> Row:
    """The turns with what follows them: an answer, a pair of answers, or a judged answer."""
    if used.get("chosen") is not None and used.get("rejected") is not None:
        return {"prompt": turns} | {k: [_assistant(_text(used, k))] for k in ("chosen", "rejected")}
    reply = [_assistant(_text(used, answer))]
    if used.get("kto_tag") is not None:
        return {"prompt": turns, "completion": reply, "label": used["kto_tag"]}
    return {"messages": turns + reply}


def _opening(used: Row) -> list[Message]:
    """System message and earlier rounds of a row, where it has them."""
    system = _text(used, "system", needed=False)
    messages = [{"role": "system", "content": system}] if system else []
    for pair in _decoded(used.get("history")) or []:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RowError("'history' is not a list of [question, answer] pairs")
        messages += [{"role": "user", "content": pair[0]}, _assistant(pair[1])]
    return messages


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _part(row: Row, names: Sequence[str]) -> tuple[Row, Row]:
    return {k: v for k, v in row.items() if k not in names}, {k: row[k] for k in names if k in row}


def _text(row: Row, name: str, needed: bool = True) -> str:
    value = row.get(name)
    if isinstance(value, str):
        return value
    if value is None and not needed:
        return ""
    raise RowError(f"no '{name}'" if value is None else f"'{name}' is not text")


def _decoded(value: Any) -> Any:
    """A value that csv and some json files hold as JSON text."""
    if not isinstance(value, str) or value[:1] not in "[{":
        return value or None
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _message(turn: Any, tags: Tags, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} is not an object with a role and a text")
    role_key = next((k for k in tags.role if turn.get(k) is not None), None)
    text_key = next((k for k in tags.content if turn.get(k) is not None), None)
    if role_key is None or text_key is None:
        missing = tags.role if role_key is None else tags.content
        raise RowError(f"{where} has no '{missing[0]}'")
    said, text = turn[role_key], turn[text_key]
    switches = {k: v for k, v in turn.items() if k not in (*tags.role, *tags.content) and v is not None}
    if said in tags.call:
        return {"role": "assistant", "content": "", "tool_calls": _calls(text, where)} | switches
    for role in ("user", "assistant", "system", "tool"):
        if said in getattr(tags, role):
            return {"role": role, "content": text} | switches
    known = [*tags.user, *tags.assistant, *tags.system, *tags.tool, *tags.call]
    raise RowError(f"{where}: {nearest('role', str(said), known)}")


def _calls(text: Any, where: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError:
        value = None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(c, Mapping) and "name" in c for c in calls):
        raise RowError(f"{where}: a function call must be JSON with `name` and `arguments`")
    return [
        {"type": "function", "function": {"name": c["name"], "arguments": c.get("arguments", {})}} for c in calls
    ]  # fmt: skip


# LLaMA-Factory's registry

_ENTRY_KEYS = (
    "file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "load_from", "formatting",
    "ranking", "subset", "split", "folder", "num_samples", "columns", "tags",
)  # fmt: skip
_COLUMNS = {
    "prompt": "instruction", "query": "input", "response": "output", "history": "history", "messages": "conversations",
    "system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag",
    "images": "images", "videos": "videos", "audios": "audios",
}  # fmt: skip
_TAGS = {
    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
    "observation_tag": "tool", "function_tag": "call", "system_tag": "system",
}  # fmt: skip


def entry(registry: Path, name: str | None) -> tuple[Style, str, str | None, int | None]:
    """How to read one entry: its format, its place, its split and how many rows it wants."""
    try:
        known = json.loads(registry.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LuthierError(f"{registry}: not JSON: {error}") from None
    if not isinstance(known, dict) or not all(isinstance(v, dict) for v in known.values()):
        raise LuthierError(f"{registry}: expected an object that maps names to data sets")
    if name is None and len(known) == 1:
        name = next(iter(known))
    if name is None:
        raise LuthierError(f"{registry}: choose a data set with '{registry.parent}:NAME': {', '.join(known)}")
    if name not in known:
        raise LuthierError(f"{registry}: {nearest('data set', name, known)}")
    given, where = known[name], f"{registry}: {name}"
    for key in given:
        if key not in _ENTRY_KEYS:
            raise LuthierError(f"{where}: {nearest('key', key, _ENTRY_KEYS)}")
    return _style(given, where), _place(given, registry.parent, where), given.get("split"), given.get("num_samples")


def _place(given: Mapping[str, Any], folder: Path, where: str) -> str:
    if given.get("hf_hub_url"):
        return given["hf_hub_url"] + (f"?name={given['subset']}" if given.get("subset") else "")
    if given.get("file_name"):
        return str(folder / given["file_name"])
    raise LuthierError(f"{where}: needs `file_name` or `hf_hub_url`; other places are not read here")


def _style(given: Mapping[str, Any], where: str) -> Style:
    formatting = given.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise LuthierError(f"{where}: {nearest('formatting', str(formatting), ('alpaca', 'sharegpt', 'openai'))}")
    columns, tags = given.get("columns") or {}, given.get("tags") or {}
    for key in columns:
        if key not in _COLUMNS:
            raise LuthierError(f"{where}: {nearest('column', key, _COLUMNS)}")
    for key in tags:
        if key not in _TAGS:
            raise LuthierError(f"{where}: {nearest('tag', key, _TAGS)}")
    renamed = {old: _COLUMNS[new] for new, old in columns.items()}
    spelling = Tags(**{_TAGS[k]: (v,) for k, v in tags.items()})

    def convert(row: Row) -> Row:
        named = {renamed.get(k, k): v for k, v in row.items()}
        if "conversations" not in named and formatting == "openai" and "messages" in named:
            named["conversations"] = named.pop("messages")
        if formatting != "alpaca":
            return _sharegpt(named, spelling)
        if "prompt" in columns and "response" not in columns and not given.get("ranking"):
            rest, used = _part(named, ("instruction",))  # its pretraining sets: the prompt is the text
            return rest | {"text": _text(used, "instruction")}
        return _alpaca(named)

    return Style(f"LLaMA-Factory {formatting}", convert)
