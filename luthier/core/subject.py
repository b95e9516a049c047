"""A subject: a model with its tokenizer and decoder, as something that can be asked questions.

    generate            prompts to texts;  candidates: to several texts each, best first
    logp                sum of log p(completion | prompt), and the number of tokens in it
    token_logp          log-probability of each token of a text
    next_token_logp     log-probabilities of what follows a text, (n, V)
    class_probabilities probabilities of a task head, (n, C)
    embeddings          final states of a text as one vector, (n, D)

Every answer is deterministic, needs no gradient, and is the same (up to float rounding) whatever the batch size:
items are sorted by length into batches of at most `tokens_per_batch`, and handed back in their own order. The head of
a language model runs at the positions asked about only.

How text becomes tokens. A list of messages goes through the tokenizer's chat template, ready for the next turn. A
plain string is used as it is: no template, only what the tokenizer itself adds (a BOS, say). A prompt and its
completion are encoded as one string and split where the prompt ends; blanks at the end of a prompt move to the
completion. A text's first token is conditioned on the BOS token, or on the end-of-text token where there is no BOS.
A decoder with a layout of its own (`Decoder.layout`) puts it around prompts of both kinds, in place of a chat template.

A decoder that asks several models makes a sum of them (`Decoder.over`): log-probabilities are then the sum's as well, so
that what is scored is what is generated from.

B rows, T tokens, N asked positions, V vocabulary, C classes, n items.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.core.batch import _grid
from luthier.core.embedding import Pooling, pooled
from luthier.core.layout import Layout
from luthier.core.method import HEADED, Decoder, Generation, Limits, LuthierError, Refusal
from luthier.core.mixture import Mixture, Other, Wrap

Prompt = str | list[dict[str, Any]]
"""A plain text, or messages with `role` and `content`."""


LOGITS_PER_TOKEN = 16384
"""A batch holds at most this many logits per token of its size: a large vocabulary makes it smaller."""


@dataclass(frozen=True)
class TextLimits(Limits):
    """Limits that also end a row when `finished(ids so far)` says so: stop strings, which may be split over tokens."""

    finished: Callable[[list[int]], bool] | None = None


@dataclass(slots=True)
class _Ask:
    """One sequence: the model (its encoder, if there is a `decoder`) reads `ids` and is asked at positions `at`.

    prompt  how many of `ids` are the prompt, which some models of a sum read in another form
    """

    ids: list[int]
    at: list[int]
    target: list[int]
    decoder: list[int] | None = None
    prompt: int = 0

    def __len__(self) -> int:
        return len(self.ids) + len(self.decoder or ())

    def wrapped(self, wrap: Wrap) -> _Ask:
        """The same question to a model with a prompt of its own."""
        at = self.at if self.decoder is not None else [t + len(wrap) for t in self.at]
        return replace(self, ids=[*wrap(self.ids[: self.prompt]), *self.ids[self.prompt :]], at=at)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; every module's own mode is put back."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def plain_model(model: Any) -> Any:
    """The transformers model under a peft wrapper, or the model itself."""
    return model.get_base_model() if adapter_config(model) is not None else model


def adapter_config(model: nn.Module) -> Any:
    """The active peft configuration, or None for a model without a peft wrapper."""
    peft = sys.modules.get("peft")  # a wrapped model cannot exist before peft was imported
    return model.active_peft_config if peft is not None and isinstance(model, peft.PeftModel) else None


def virtual_tokens(model: nn.Module) -> int:
    """How many positions of the window an adapter's prompt takes."""
    config = adapter_config(model)
    return config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0


def window_of(model: nn.Module) -> int | None:
    """Tokens that a model can read; of a sum, those that every model can, beside what it reads of its own."""
    if isinstance(model, Mixture):
        windows = [(window_of(m.model), len(m.wrap)) for m in model.members]
        return min((size - own for size, own in windows if size is not None), default=None)
    config = plain_model(model).config
    if config.model_type in ("t5", "mt5", "umt5", "longt5"):
        return None
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
    size = next((getattr(config, n) for n in names if isinstance(getattr(config, n, None), int)), None)
    return None if size is None else size - virtual_tokens(model)


def separates(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts something between the two texts of a pair."""
    return tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False)


@contextmanager
def _head_at(head: nn.Module | None, flat: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While active, `head` sees only the asked states: (B, T, D) becomes (1, N, D)."""
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _, args: (_pick(args[0], flat)[None], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _pick(grid: Tensor, flat: Callable[[Tensor], Tensor]) -> Tensor:
    return grid.flatten(0, 1).index_select(0, flat(grid))


@dataclass
class Subject:
    """What can be asked.

    model             transformers model or PeftModel with the head that `task` needs
    task              "causal_lm", "seq2seq_lm", "masked_lm", "classification", "token_classification" or "embedding"
    decoder           how tokens are chosen; None: transformers' own greedy `generate`
    tokens_per_batch  rows times columns of a padded batch
    max_length        window; None: the model's own
    beside            loads another model by name, on the same device; None where nobody said how
    """

    model: nn.Module
    tokenizer: Any
    task: str = "causal_lm"
    decoder: Decoder | None = None
    name: str = ""
    tokens_per_batch: int = 4096
    max_length: int | None = None
    seed: int = 0
    beside: Callable[[Any], Other] | None = field(default=None, repr=False, compare=False)
    _asked: tuple[Decoder, nn.Module, nn.Module] | None = field(default=None, init=False, repr=False, compare=False)
    _laid: tuple[Decoder | None, Layout | None] | None = field(default=None, init=False, repr=False, compare=False)

    # ------------------------------------------------------------------------------------------- what is known

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def asked(self) -> nn.Module:
        """The model whose distribution is generated from and scored: `model`, or what the decoder makes of it."""
        if self.decoder is None:
            return self.model
        if self._asked is None or self._asked[0] is not self.decoder or self._asked[1] is not self.model:
            found = self.decoder.for_tokenizer(self.tokenizer).over(self.model)
            self._asked = (self.decoder, self.model, found)
        return self._asked[2]

    @property
    def pad_id(self) -> int:
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(i for i in ids if i is not None)

    @property
    def prefix_id(self) -> int:
        """What the first token of a text is conditioned on."""
        ids = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        found = next((i for i in ids if i is not None), None)
        if found is None:
            raise LuthierError("the tokenizer has neither a BOS nor an end-of-text token to start a text with: set one")
        return found

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a row: those of the model's generation config and the tokenizer's end-of-text."""
        config = getattr(plain_model(self.model), "generation_config", None)
        ids = config.eos_token_id if config is not None else None
        ids = [ids] if isinstance(ids, int) else list(ids or [])
        return tuple(dict.fromkeys([*ids, *(i for i in [self.tokenizer.eos_token_id] if i is not None)]))

    @property
    def window(self) -> int | None:
        """Tokens of one sequence, or None where the model sets no limit (relative positions)."""
        return self.max_length if self.max_length is not None else window_of(self.asked)

    @property
    def layout(self) -> Layout | None:
        """What the decoder puts around prompts."""
        if self._laid is None or self._laid[0] is not self.decoder:
            self._laid = (self.decoder, None if self.decoder is None else self.decoder.layout)
        return self._laid[1]

    # ----------------------------------------------------------------------------------------- text to tokens

    def encode(self, text: Prompt, special: bool = True) -> list[int]:
        """A plain string as it is; messages through the chat template, ready for the next turn."""
        if isinstance(text, str):
            if text and special and self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token):
                special = False  # a BOS written out in the text is not doubled
            return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        return list(self.tokenizer(self.render(text), add_special_tokens=False)["input_ids"])

    def render(self, prompt: Prompt) -> str:
        """The text that the model reads for a prompt."""
        if isinstance(prompt, str):
            return prompt
        if not self.tokenizer.chat_template:
            raise LuthierError(
                "prompts are lists of messages, but the tokenizer has no chat template: give plain strings"
            )
        open_turn = prompt[-1]["role"] == "assistant"
        return self.tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=not open_turn, continue_final_message=open_turn
        )

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """What is read for each prompt, in the decoder's layout where it has one."""
        layout = self.layout
        return [self.encode(p if layout is None else layout.prompt(p)) for p in prompts]

    def encode_pair(self, prompt: Prompt, completion: str) -> tuple[list[int], list[int]]:
        """Prompt and completion ids; the completion's are those it has right after the prompt."""
        if (layout := self.layout) is not None:
            context, said = self.encode(layout.prompt(prompt)), self.encode(completion, special=False)
            self._fits(len(context) + len(said) - 1)
            return context, said
        if not isinstance(prompt, str):
            return self.encode(prompt), self.encode(completion, special=False)
        blanks = len(prompt) - len(prompt.rstrip())
        if blanks:
            prompt, completion = prompt[:-blanks], prompt[-blanks:] + completion
        if self.task == "seq2seq_lm":
            return self.encode(prompt), self.encode(completion, special=False)
        if not prompt:
            return self._after_nothing(self.encode(completion))
        context = self.encode(prompt)
        return context, self.encode(prompt + completion)[len(context) :]

    def _after_nothing(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """A whole text: it follows its own BOS if it has one, else the prefix token."""
        start = [self.prefix_id]
        return (start, ids[1:]) if ids[:1] == start else (start, ids)

    # --------------------------------------------------------------------------------------------- generation

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int = 64, stop: Sequence[str] = (), seed: int | None = None
    ) -> list[str]:
        """Texts that follow the prompts, without special tokens, cut before the first stop string."""
        return [text for text, _ in self.said(prompts, max_new_tokens, stop, seed)]

    def said(
        self, prompts: Sequence[Prompt], max_new_tokens: int = 64, stop: Sequence[str] = (), seed: int | None = None
    ) -> list[tuple[str, bool]]:
        """The same, each with whether it ended by itself: by an end token or a stop string, and not for want of room."""
        ids = [self._room(p, max_new_tokens) for p in self.prompt_ids(prompts)]
        found = self.generations(ids, max_new_tokens, stop, seed)
        return list(zip(self._texts(found, stop), (g.stopped for g in found), strict=True))

    def generations(
        self, ids: Sequence[list[int]], max_new_tokens: int = 64, stop: Sequence[str] = (), seed: int | None = None,
        with_end: bool = False,
    ) -> list[Generation]:  # fmt: skip
        """The same from and to token ids. Copies of a prompt stay in one batch, so that a sampler tells them apart.

        `with_end`: the token that ended a row is the last of its ids, and is counted as one.
        """
        decoder, limits = self._decoding(max_new_tokens, stop, seed)
        if with_end:
            ends, said = frozenset(limits.stop_ids), limits.finished

            def finished(row: list[int]) -> bool:
                return row[-1] in ends or (said is not None and said(row))

            limits = replace(limits, stop_ids=(), finished=finished)
        copies: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(ids):
            copies.setdefault(tuple(row), []).append(i)
        out: list[Generation | None] = [None] * len(ids)
        unique = list(copies)
        with at_rest(self.model):
            for group in _buckets([len(u) + max_new_tokens for u in unique], self.tokens_per_batch):
                rows = [i for u in group for i in copies[unique[u]]]
                found = decoder.generate(self.model, [ids[i] for i in rows], limits)
                for i, generation in zip(rows, found, strict=True):
                    out[i] = generation
        return out  # type: ignore[return-value]

    def candidates(
        self, prompts: Sequence[Prompt], k: int, max_new_tokens: int = 64, stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> list[list[str]]:  # fmt: skip
        """Up to `k` different texts a prompt, the one of `generate` first. Copies of a prompt have the same ones."""
        decoder, limits = self._decoding(max_new_tokens, stop, seed)
        ids = [tuple(self._room(p, max_new_tokens)) for p in self.prompt_ids(prompts)]
        unique, found = list(dict.fromkeys(ids)), {}
        with at_rest(self.model):
            for group in _buckets([k * (len(u) + max_new_tokens) for u in unique], self.tokens_per_batch):
                rows = [unique[i] for i in group]
                for row, ranked in zip(rows, decoder.candidates(self.model, rows, limits, k), strict=True):
                    found[row] = list(dict.fromkeys(self._texts(ranked, stop)))
        return [found[row] for row in ids]

    def _texts(self, found: Sequence[Generation], stop: Sequence[str]) -> list[str]:
        """Generations as texts, cut before the first stop string and without what belongs to the layout."""
        layout = self.layout
        texts = [self.tokenizer.decode(g.ids, skip_special_tokens=True) for g in found]
        if layout is None:
            return [cut_at(text, stop) for text in texts]
        return [layout.clean(cut_at(text, (*stop, *layout.stop))) for text in texts]

    def _decoding(self, max_new_tokens: int, stop: Sequence[str], seed: int | None) -> tuple[Decoder, TextLimits]:
        """The decoder for this tokenizer, and when it stops."""
        self._writes()
        stop = stop if (layout := self.layout) is None else (*stop, *layout.stop)
        decoder = (self.decoder or _TransformersGreedy()).for_tokenizer(self.tokenizer)
        limits = TextLimits(
            max_new_tokens=max_new_tokens, stop_ids=self.stop_ids, pad_id=self.pad_id,
            seed=self.seed if seed is None else seed, finished=_stop_test(self.tokenizer, stop) if stop else None,
        )  # fmt: skip
        return decoder, limits

    def _room(self, ids: list[int], max_new_tokens: int) -> list[int]:
        """The prompt with its beginning cut off where it and the answer would not fit the window."""
        if self.window is None or self.task == "seq2seq_lm" or len(ids) + max_new_tokens <= self.window:
            return ids
        self._fits(len(ids) + max_new_tokens)
        room = self.window - max_new_tokens
        if room < 1:
            raise LuthierError(
                f"max_new_tokens={max_new_tokens} leaves no room for a prompt in a window of {self.window}"
            )
        warnings.warn(f"a prompt of {len(ids)} tokens lost its first {len(ids) - room} to fit the window", stacklevel=3)
        return ids[-room:]

    def _fits(self, length: int) -> None:
        """Raises LuthierError where a prompt in a layout does not fit the window: cut from the left it would be another one."""
        if self.layout is not None and self.window is not None and length > self.window:
            raise LuthierError(
                f"{length} tokens of constant prompt, question and answer do not fit the window of {self.window}: use fewer "
                "examples, a shorter question or fewer new tokens"
            )

    # ------------------------------------------------------------------------------------------- probabilities

    def logp(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Sums of log-probabilities (n,) float64 and token counts (n,) of completions after their prompts."""
        pairs = zip(prompts, completions, strict=True)
        if self.task == "masked_lm":
            parts = self._masked_logp([self._masked_pair(p, c) for p, c in pairs])
        else:
            parts = self.pair_logp([self.encode_pair(p, c) for p, c in pairs])
        return np.array([p.sum(dtype=np.float64) for p, _ in parts]), np.array([len(p) for p, _ in parts])

    def pair_logp(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each (context ids, continuation ids): log-probability and 'is the likeliest token', one per token."""
        return self._each([self._ask(a, b) for a, b in pairs], _logp_and_best)  # type: ignore[return-value]

    def token_logp(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Log-probability of each token of each text; texts longer than the window go through it piece by piece.

        A masked model scores each token with that token masked (pseudo-log-likelihood).
        """
        if self.task == "masked_lm":
            return [logp for logp, _ in self._masked_logp([self._masked_text(t) for t in texts])]
        return self.rolling_logp([self._after_nothing(self.encode(t)) for t in texts])

    def rolling_logp(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[np.ndarray]:
        """For each (prefix ids, ids): log-probability of every id, in disjoint pieces where the window is too short."""
        pieces, owner = [], []
        for i, (prefix, ids) in enumerate(pairs):
            found = _rolling(prefix, ids, self.window)
            pieces += found
            owner += [i] * len(found)
        out: list[list[np.ndarray]] = [[] for _ in pairs]
        for i, (logp, _) in zip(owner, self.pair_logp(pieces), strict=True):
            out[i].append(logp)
        return [np.concatenate(parts) if parts else np.zeros(0, np.float32) for parts in out]

    def next_token_logp(self, texts: Sequence[Prompt]) -> np.ndarray:
        """Log-probabilities (n, V) float32 of the token after each text."""
        if self.task != "causal_lm":
            raise Refusal(f"what follows a text is defined for causal models, not for {self.task}")
        whole = self.prompt_ids(texts)
        self._fits(max(map(len, whole), default=0))
        asks = [_Ask(ids, [len(ids) - 1], [0], prompt=len(ids)) for ids in map(self._clip, whole)]
        return np.concatenate([row[0] for row in self._each(asks, _all_logp)])

    def distributions(self, texts: Sequence[str]) -> Iterator[tuple[int, Tensor]]:
        """(index, log-probabilities (T-1, V) at every position of that text), batch by batch: hold few at a time."""
        self._writes()
        asks = []
        for text in texts:
            ids = self._clip(self.encode(text))
            asks.append(_Ask(ids[:-1], list(range(len(ids) - 1)), ids[1:], prompt=1))
        for group, parts in self._run(asks, _all_logp):
            for i, (logp,) in zip(group, parts, strict=True):
                yield i, logp

    def continued(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Tensor]:
        """For each (context ids, continuation ids): log-probabilities (T, V) of what stands at each of its T tokens."""
        out: list[Tensor | None] = [None] * len(pairs)
        for group, parts in self._run([self._ask(a, b) for a, b in pairs], _all_logp):
            for i, (logp,) in zip(group, parts, strict=True):
                out[i] = logp
        return out  # type: ignore[return-value]

    def _writes(self) -> None:
        if self.task in HEADED:
            raise Refusal(
                "a classification model gives classes, not text: measure it by a scorer of classes or numbers"
            )
        if self.task == "embedding":
            raise Refusal(
                "an embedding model gives vectors, not text: measure it by a scorer of retrieval or neighbours"
            )

    def class_probabilities(self, texts: Sequence[str | tuple[str, str]]) -> np.ndarray:
        """Probabilities (n, C) of a task head; independent ones for several labels, numbers for a regression."""
        if self.task != "classification":
            raise Refusal(f"class probabilities need a classification head, this subject is a {self.task}")
        pairs = [(t, None) if isinstance(t, str) else tuple(t) for t in texts]
        rows = [self.tokenizer(a, b, truncation=self.window is not None, max_length=self.window) for a, b in pairs]
        out: list[np.ndarray | None] = [None] * len(rows)
        with at_rest(self.model):
            for group in _buckets([len(r["input_ids"]) for r in rows], self.tokens_per_batch):
                logits = self.model(**self._class_inputs([rows[i] for i in group])).logits.float()  # (B, C)
                for i, p in zip(group, _head_probability(logits, plain_model(self.model).config), strict=True):
                    out[i] = p.cpu().numpy()
        return np.stack(out)  # type: ignore[arg-type]

    def tag_probabilities(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[np.ndarray]:
        """Probabilities (n, C) of a head of single tokens, for each (ids, n places)."""
        if self.task != "token_classification":
            raise Refusal(f"classes of tokens need a token classification head, this subject is a {self.task}")
        asks = [_Ask(ids, at, [0] * len(at)) for ids, at in rows]
        return [found[0] for found in self._each(asks, lambda logits, _: (logits.softmax(-1),))]

    def embeddings(
        self, texts: Sequence[str | tuple[str, str]], pooling: Pooling = "mean", max_length: int | None = None
    ) -> np.ndarray:
        """Final states of each text as one vector (n, D); of the encoder, where there are two halves."""
        pairs = [(t, None) if isinstance(t, str) else tuple(t) for t in texts]
        limit = min((n for n in (self.window, max_length) if n is not None), default=None)
        rows = [self.tokenizer(a, b, truncation=limit is not None, max_length=limit) for a, b in pairs]
        out: list[np.ndarray | None] = [None] * len(rows)
        with at_rest(self.model):
            for group in _buckets([len(r["input_ids"]) for r in rows], self.tokens_per_batch):
                inputs = self._class_inputs([rows[i] for i in group])
                found = pooled(self._states(inputs), inputs["attention_mask"], pooling)  # (B, D)
                for i, row in zip(group, found.cpu().numpy(), strict=True):
                    out[i] = row
        return np.stack(out)  # type: ignore[arg-type]

    def _states(self, inputs: dict[str, Tensor]) -> Tensor:
        """Final states (B, T, D) of the tokens, without those of a prompt that the model puts in front."""
        plain = plain_model(self.model)
        if self.task == "seq2seq_lm":
            out = plain.get_encoder()(**inputs).last_hidden_state
        elif self.task == "embedding":
            out = self.model(**inputs).last_hidden_state
        else:
            with _head_at(
                plain.get_output_embeddings(), lambda grid: torch.zeros(1, dtype=torch.long, device=grid.device)
            ):
                out = self.model(**inputs, output_hidden_states=True).hidden_states[-1]
        return out[:, -inputs["input_ids"].shape[1] :].float()

    # ----------------------------------------------------------------------------------------------- inside

    def _class_inputs(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        ids, mask = _grid([r["input_ids"] for r in rows], self.pad_id)
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        if "token_type_ids" in rows[0]:
            inputs["token_type_ids"] = _grid([r["token_type_ids"] for r in rows], 0)[0]
        return {k: v.to(self.device) for k, v in inputs.items()}

    def _clip(self, ids: list[int]) -> list[int]:
        """The end of a text that fits the window, with a token to start from."""
        ids = ids if ids else [self.prefix_id]
        return ids if self.window is None else ids[-self.window :]

    def _ask(self, context: list[int], continuation: list[int]) -> _Ask:
        if self.task == "seq2seq_lm":
            start = plain_model(self.model).config.decoder_start_token_id
            said = [start, *continuation[:-1]]
            return _Ask(context, list(range(len(continuation))), continuation, said, prompt=len(context))
        if self.task != "causal_lm":
            raise Refusal(f"log-probabilities of text need a language model, this subject is a {self.task}")
        whole = [*context, *continuation]
        if self.window is not None:
            whole = whole[-(self.window + 1) :]
        n = min(len(continuation), len(whole) - 1)
        first = len(whole) - 1 - n
        return _Ask(whole[:-1], list(range(first, first + n)), whole[len(whole) - n :], prompt=first + 1)

    def _masked_text(self, text: str) -> tuple[list[int], list[int]]:
        found = self.tokenizer(text, return_special_tokens_mask=True)
        return list(found["input_ids"]), [t for t, special in enumerate(found["special_tokens_mask"]) if not special]

    def _masked_pair(self, prompt: Prompt, completion: str) -> tuple[list[int], list[int]]:
        text = self.render(prompt)
        known = len(self.encode(text, special=False))
        ids, at = self._masked_text(text + completion)
        return ids, at[known:]

    def _masked_logp(self, rows: Sequence[tuple[list[int], Sequence[int]]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each position in turn is masked and predicted from all the others."""
        asks = []
        for ids, at in rows:
            for t in at:
                asks.append(_Ask([*ids[:t], self.tokenizer.mask_token_id, *ids[t + 1 :]], [t], [ids[t]]))
        found = iter(self._each(asks, _logp_and_best))
        out: list[tuple[np.ndarray, np.ndarray]] = []
        for _, at in rows:
            parts = [next(found) for _ in at]
            logp = [np.zeros(0, np.float32), *(p for p, _ in parts)]
            out.append((np.concatenate(logp), np.concatenate([np.zeros(0, bool), *(b for _, b in parts)])))
        return out

    def _each(
        self, asks: Sequence[_Ask], reduce: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    ) -> list[tuple[np.ndarray, ...]]:
        """`reduce(logits (N, V), target (N,))`, cut up per ask, in the order of `asks`."""
        out: list[tuple[np.ndarray, ...] | None] = [None] * len(asks)
        for group, parts in self._run(asks, reduce):
            for i, found in zip(group, parts, strict=True):
                out[i] = tuple(f.cpu().numpy() for f in found)
        return out  # type: ignore[return-value]

    def _run(
        self, asks: Sequence[_Ask], reduce: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    ) -> Iterator[tuple[list[int], list[tuple[Tensor, ...]]]]:
        if self.decoder is not None and self.decoder.rewrites:
            raise Refusal(
                f"{self.decoder.name} rewrites what the model reads, so that log-probabilities of given texts are not its own: "
                "leave the decoder out, or measure generated text (and set evaluate.drift to false)"
            )
        asked = self.asked
        vocabulary = plain_model(asked).config.vocab_size
        device = next(asked.parameters()).device
        cost = [max(len(a), len(a.at) * vocabulary // LOGITS_PER_TOKEN) for a in asks]
        for group in _buckets(cost, self.tokens_per_batch):
            batch = [asks[i] for i in group]
            counts = [len(a.at) for a in batch]
            target = torch.tensor([t for a in batch for t in a.target], device=device)
            with at_rest(asked):
                logits = self._logits(asked, batch) if sum(counts) else torch.zeros(0, 1, device=device)
                reduced = reduce(logits, target)
            yield group, list(zip(*(r.split(counts) for r in reduced), strict=True))

    def _logits(self, model: nn.Module, batch: Sequence[_Ask]) -> Tensor:
        """Logits (N, V) float32 at the asked positions, row after row."""
        if isinstance(model, Mixture):
            members = [(m.model, [a.wrapped(m.wrap) for a in batch]) for m in model.members]
            return model.combine([self._logits(m, asks) for m, asks in members])
        device = next(model.parameters()).device
        ids, mask = _grid([a.ids for a in batch], self.pad_id)
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        width = ids.shape[1]
        if batch[0].decoder is not None:
            ids, mask = _grid([a.decoder for a in batch], self.pad_id)  # type: ignore[misc]
            inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask.long()}
            width = ids.shape[1]
        elif self.task == "causal_lm":
            inputs["use_cache"] = False  # type: ignore[assignment]
        inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        row = torch.tensor([b for b, a in enumerate(batch) for _ in a.at], device=device)
        column = torch.tensor([t for a in batch for t in a.at], device=device)

        def flat(grid: Tensor) -> Tensor:
            """A prompt that the model puts in front of the tokens shifts every column."""
            return row * grid.shape[1] + column + (grid.shape[1] - width)

        head = plain_model(model).get_output_embeddings()
        with _head_at(head, flat):
            logits = model(**inputs).logits
        return (logits[0] if head is not None else _pick(logits, flat)).float()


def _logp_and_best(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    chosen = logits.gather(1, target[:, None])[:, 0] if len(target) else logits.new_zeros(0)
    return chosen - logits.logsumexp(-1), logits.argmax(-1) == target


def _all_logp(logits: Tensor, target: Tensor) -> tuple[Tensor]:
    return (logits.log_softmax(-1),)


def _head_probability(logits: Tensor, config: Any) -> Tensor:
    if config.problem_type == "multi_label_classification":
        return logits.sigmoid()
    return logits if config.num_labels == 1 else logits.softmax(-1)


def _buckets(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first, rows times width at most `tokens` (one row always fits)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    at = 0
    while at < len(order):
        rows = max(1, tokens // max(1, lengths[order[at]]))
        yield order[at : at + rows]
        at += rows


def _rolling(prefix: list[int], ids: list[int], window: int | None) -> list[tuple[list[int], list[int]]]:
    """Disjoint (context, continuation) pieces: every token once, each piece as full as the window allows."""
    if not ids:
        return []
    if window is None or len(ids) <= window:
        return [(prefix, ids)]
    pieces = [(prefix, ids[:window])]
    for start in range(window, len(ids), window):
        end = min(start + window, len(ids))
        pieces.append((ids[max(0, end - window - 1) : start], ids[start:end]))
    return pieces


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the strings in it."""
    found = [at for at in (text.find(s) for s in stop) if at >= 0]
    return text[: min(found)] if found else text


def _stop_test(tokenizer: Any, stop: Sequence[str]) -> Callable[[list[int]], bool]:
    """Whether the end of a row spells a stop string. A token is at least a byte, so few tokens need to be read."""
    reach = max(len(s.encode()) for s in stop) + 4

    def finished(ids: list[int]) -> bool:
        text = tokenizer.decode(ids[-reach:], skip_special_tokens=True)
        return any(s in text for s in stop)

    return finished


class _TransformersGreedy(Decoder):
    """transformers' own greedy `generate`, for a subject that was given no decoder. It returns no log-probability.

    Models whose adapter puts a prompt in front are asked row by row: their positions go wrong under padding.
    """

    def generate(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        if isinstance(model, Mixture):
            raise Refusal("a sum of models is not one of transformers' own: give the subject a decoder")
        if virtual_tokens(model) and len(ids) > 1:
            return [self.generate(model, [row], limits)[0] for row in ids]
        seq2seq = bool(plain_model(model).config.is_encoder_decoder)
        grid, mask = _grid(ids, limits.pad_id, "right" if seq2seq else "left")
        device = next(model.parameters()).device
        generate: Any = model.generate
        out = generate(
            input_ids=grid.to(device), attention_mask=mask.long().to(device), max_new_tokens=limits.max_new_tokens,
            do_sample=False, num_beams=1, eos_token_id=list(limits.stop_ids) or None, pad_token_id=limits.pad_id,
        )  # fmt: skip
        start = 1 if seq2seq else grid.shape[1]
        return [_up_to_stop(row, limits) for row in out[:, start:].tolist()]


def _up_to_stop(row: list[int], limits: Limits) -> Generation:
    """A finished row from a padded one: up to its first stop token, or to where its text ends it."""
    end = next((t for t, token in enumerate(row) if token in limits.stop_ids), None)
    kept = row if end is None else row[:end]
    stopped = end is not None
    if isinstance(limits, TextLimits) and limits.finished is not None:
        for t in range(1, len(kept) + 1):
            if limits.finished(kept[:t]):
                return Generation(kept[:t], True, float("nan"))
    return Generation(kept, stopped, float("nan"))
