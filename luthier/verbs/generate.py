"""`luthier generate` and `luthier chat`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.method import Decoder, LuthierError
from luthier.verbs.load import Loaded, decoder_of, load


def generate(
    model: str | Loaded,
    prompts: Sequence[Any],
    *,
    max_new_tokens: int = 64,
    decoding: Mapping[str, Any] | str | Decoder | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    control: str | Mapping[str, float] | None = None,
) -> list[str]:
    """Texts that follow the prompts (plain strings, or lists of messages for the chat template).

    control  of a model with several controls that is loaded by name: the one that acts, or the weight of each
    """
    loaded = model if isinstance(model, Loaded) else load(model, control=control)
    if loaded.task not in ("causal_lm", "seq2seq_lm"):
        raise LuthierError(f"'{loaded.name}' is a {loaded.task} model: it does not write text")
    subject = loaded.subject(decoder_of(decoding or "greedy"), seed)
    return subject.generate(prompts, max_new_tokens=max_new_tokens, stop=stop)


def chat(
    model: str,
    system: str | None = None,
    max_new_tokens: int = 256,
    decoding: Mapping[str, Any] | str | Decoder = "greedy",
    control: str | Mapping[str, float] | None = None,
) -> None:
    """A conversation in the terminal. Ctrl-D or an empty line ends it."""
    loaded = load(model, control=control)
    subject = loaded.subject(decoder_of(decoding))
    turns: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    takes_turns = bool(loaded.tokenizer.chat_template) or subject.layout is not None
    if not takes_turns:
        print("this tokenizer has no chat template: every line is continued as plain text")
    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if not line:
            return
        if takes_turns:
            turns.append({"role": "user", "content": line})
            answer = subject.generate([turns], max_new_tokens=max_new_tokens)[0]
            turns.append({"role": "assistant", "content": answer})
        else:
            answer = subject.generate([line], max_new_tokens=max_new_tokens)[0]
        print(answer)
