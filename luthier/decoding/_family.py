"""The one cached step loop, and what feeds it.

A *stream* gives the next-token scores of rows that grow by one token at a time; it owns a model's cache, mask and
position counters. A *rule* is a pure function of the scores: (B, V) to the chosen tokens (B,). The loop knows neither
models nor distributions:

    z = stream.start(prompts)                       z (B, V)
    repeat   y = rule(shape(z));  finished rows leave;  z = stream.feed(y)

Prompts are padded on the left and positions come from the mask, so a row in a batch is the row alone. A virtual
prompt of an adapter stands between the padding and the row's tokens. Rows that finish are taken out of the cache.
Several models at one step are a stream of streams (each with its own prompts), constraints are a `shape`.

Drafts: `extend` appends several tokens at once, `retract` takes the last ones of each row back, out of the caches too.

A text that prompts begin with is read once (`primed`): its keys and values stand in front of every row, before the
padding, and are neither changed nor counted by what rows do.

B rows that still run, T prompt tokens, P virtual prompt tokens, V vocabulary, k tokens appended at once.
"""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from luthier.core.batch import _grid, positions_from_mask
from luthier.core.config import build
from luthier.core.method import Decoder, Generation, Limits, Refusal
from luthier.core.mixture import Mixture, in_nucleus
from luthier.core.subject import TextLimits, adapter_config, at_rest, plain_model

# ------------------------------------------------------------------------------------------------------ streams


class Stream(ABC):
    """Next-token scores of rows that grow together."""

    @abstractmethod
    def start(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts; scores (B, V) float32 of what follows."""

    @abstractmethod
    def feed(self, token: Tensor) -> Tensor:
        """Append `token` (B,) to the rows; scores (B, V) of what follows."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, in this order; a row named twice is continued twice."""

    @property
    def ragged(self) -> bool:
        """Whether rows may take back different numbers of tokens."""
        return False

    def extend(self, tokens: Tensor) -> Tensor:
        """Append `tokens` (B, k); scores (B, k, V) of what follows each of them."""
        raise Refusal(f"{type(self).__name__} reads one token at a time: it cannot verify drafts")

    def retract(self, count: Tensor) -> None:
        """Take the last `count` (B,) tokens of each row back. The next call appends at least one again."""
        raise Refusal(f"{type(self).__name__} cannot take tokens back: it cannot verify drafts")

    def until(self, most: int) -> None:  # noqa: B027  only streams that count positions of their own need it
        """After `start`: rows say at most `most` tokens. Drafts beyond that are never kept, and get no position of their
        own: the model may have none."""


def stream(model: nn.Module, pad_id: int = 0, cached: bool = True) -> Stream:
    """The stream that drives `model`. Without a cache every step reads the whole row again: slow, any model."""
    if isinstance(model, Mixture):
        return MixtureStream(model, pad_id, cached)
    if isinstance(model, Primed):
        return _DecoderStream(model.model, pad_id, cached, model.held if cached else None)
    kind = _EncoderDecoderStream if plain_model(model).config.is_encoder_decoder else _DecoderStream
    return kind(model, pad_id, cached)


class _ModelStream(Stream):
    """What both kinds of model share: the adapter in front and the head at the last position only."""

    def __init__(self, model: nn.Module, pad_id: int, cached: bool):
        self.model: Any = model
        self.plain: Any = plain_model(model)
        self.pad_id, self.cached = pad_id, cached
        self.device = next(model.parameters()).device
        config = adapter_config(model)
        learned = config is not None and config.is_prompt_learning
        self.prefix = learned and str(config.peft_type.value) in ("PREFIX_TUNING", "CARTRIDGE")
        self.prompt = learned and not self.prefix
        if self.prompt and str(config.peft_type.value) == "MULTITASK_PROMPT_TUNING":
            raise Refusal("a multitask prompt needs to know the task of each row: use peft's own generate")
        self.virtual = config.num_virtual_tokens if learned else 0
        self.cache: Any = None

    def _call(self, model: nn.Module, **inputs: Any) -> tuple[Any, Tensor]:
        """The model's output and its scores (B, V) at the last position."""
        with _head_at_last(self.plain.get_output_embeddings()):
            out = model(**inputs)
        self.cache = getattr(out, "past_key_values", None) if self.cached else None
        return out, out.logits[:, -1].float()


@contextmanager
def _head_at_last(head: nn.Module | None) -> Iterator[None]:
    """While active, `head` sees the last position only: (B, T, D) becomes (B, 1, D)."""
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][:, -1:], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


class _DecoderStream(_ModelStream):
    """Decoder-only models. `held`: what they have read already; rows need not all begin with it."""

    def __init__(self, model: nn.Module, pad_id: int, cached: bool, held: Held | None = None):
        super().__init__(model, pad_id, cached)
        self.positioned = _takes_positions(self.plain)
        self.held = held
        self.shared = 0  # how many tokens of it all rows begin with
        self.last: Tensor | None = None

    def start(self, ids: Sequence[Sequence[int]]) -> Tensor:
        if any(len(row) == 0 for row in ids):
            raise Refusal("an empty prompt has nothing to continue: give at least a BOS token")
        self.shared = 0 if self.held is None else self.held.shared(ids)
        grid, mask = _grid([row[self.shared :] for row in ids], self.pad_id, "left")
        self.ids, self.mask = grid.to(self.device), mask.to(self.device)  # (B, T) without what is held
        return self._read()

    def _read(self) -> Tensor:
        """The whole of every row at once."""
        inputs: dict[str, Any] = {"input_ids": self.ids}
        model, mask, first = self.model, self.mask, 0
        if self.prompt:
            inputs, mask = self._with_prompt()
            model = self.plain
        elif self.prefix:
            inputs["past_key_values"] = self.model.get_prompt(len(self.ids))
            model, first = self.plain, self.virtual
        elif self.held is not None and self.shared:
            inputs["past_key_values"] = self.held.cache(len(self.ids), self.shared)
            first = self.shared
        positions = positions_from_mask(mask) + first
        mask = torch.cat([mask.new_ones(len(mask), first), mask], 1)  # (B, P + T): what is there already, then padding
        if self.positioned:
            inputs["position_ids"] = positions
        _, logits = self._call(model, **inputs, attention_mask=mask.long(), use_cache=self.cached)
        self.stepper, self.next = model, positions[:, -1:] + 1
        self.seen = mask.long()
        return logits

    def _with_prompt(self) -> tuple[dict[str, Any], Tensor]:
        """Embeddings (B, P + T, D) in the order padding, virtual prompt, tokens."""
        tokens = self.plain.get_input_embeddings()(self.ids)  # (B, T, D)
        prompt = self.model.get_prompt(batch_size=len(self.ids)).to(tokens.dtype)  # (B, P, D)
        both = torch.cat([prompt, tokens], 1)
        column = torch.arange(both.shape[1], device=self.device)[None]
        pads = (~self.mask).sum(1, keepdim=True)  # (B, 1)
        source = torch.where(column < pads, column + self.virtual, column)
        source = torch.where((column >= pads) & (column < pads + self.virtual), column - pads, source)
        return {"inputs_embeds": both.gather(1, source[..., None].expand_as(both))}, column >= pads

    def feed(self, token: Tensor) -> Tensor:
        if self.cache is None:
            self.ids = torch.cat([self.ids, token[:, None]], 1)
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], 1)
            return self._read()
        return self.extend(token[:, None])[:, -1]

    def extend(self, tokens: Tensor) -> Tensor:
        if self.cache is None:
            raise Refusal(f"a {type(self.plain).__name__} keeps no cache: it cannot verify drafts")
        self.seen = torch.cat([self.seen, torch.ones_like(tokens)], 1)
        inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": self.seen}
        if self.positioned:
            positions = self.next + torch.arange(tokens.shape[1], device=self.device)  # (B, k)
            inputs["position_ids"] = positions if self.last is None else positions.minimum(self.last)
        out = self.stepper(**inputs, past_key_values=self.cache, use_cache=True)
        self.next = self.next + tokens.shape[1]
        return out.logits.float()

    @property
    def ragged(self) -> bool:
        return True

    def until(self, most: int) -> None:
        self.last = self.next + most - 1

    def retract(self, count: Tensor) -> None:
        """Rows move to the right again, so that padding is on the left as ever and the longest row has none."""
        column = torch.arange(self.seen.shape[1], device=self.device)
        self.seen = self.seen * (column < len(column) - count[:, None])
        width = int(self.seen.sum(1).max())
        columns = self.seen.argsort(dim=1, stable=True)[
            :, -width:
        ]  # (B, width): what is masked first, the rest in its order
        pick_columns(self.cache, columns)
        self.seen, self.next = self.seen.gather(1, columns), self.next - count[:, None]

    def keep(self, rows: Tensor) -> None:
        self.ids, self.mask = self.ids[rows], self.mask[rows]
        self.seen, self.next = self.seen[rows], self.next[rows]
        self.last = None if self.last is None else self.last[rows]
        if self.cache is not None:
            self.cache.reorder_cache(rows)


@dataclass
class Held:
    """What a model has read of a text: `layers` are keys and values (1, H, P, d) of each, P tokens.

    They are joined to what rows add, never written to.
    """

    ids: tuple[int, ...]
    layers: list[tuple[Tensor, Tensor]]

    def shared(self, ids: Sequence[Sequence[int]]) -> int:
        """How many of its tokens all rows begin with; each row has at least one left to read."""
        most = min([len(self.ids), *(len(row) - 1 for row in ids)])
        return next((t for t in range(most) if any(row[t] != self.ids[t] for row in ids)), most)

    def cache(self, rows: int, n: int) -> Any:
        """A new cache of the first `n` tokens for `rows` rows."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for i, (keys, values) in enumerate(self.layers):
            cache.update(keys[:, :, :n].expand(rows, -1, -1, -1), values[:, :, :n].expand(rows, -1, -1, -1), i)
        return cache


class Primed(nn.Module):
    """A model that has read the beginning of its prompts: what `primed` returns. It is the model in every other way."""

    def __init__(self, model: nn.Module, held: Held):
        super().__init__()
        self.model, self.held = model, held

    @property
    def config(self) -> Any:
        return plain_model(self.model).config


_HELD: WeakKeyDictionary[nn.Module, tuple[Held, tuple[int, ...], Tensor]] = WeakKeyDictionary()
"""What each model has read, with the versions of its weights then and what it said (V,) after the last token."""


def primed(model: nn.Module, ids: Sequence[int]) -> nn.Module:
    """`model` with the text `ids` read once, to be streamed from. What it read is kept until it is asked about another text.

    Before each use the last token is read again: a model whose weights or adapters have changed since says something else, and
    reads all. A model that keeps anything but keys and values of all tokens, whose adapter puts a prompt in front, or
    that is a sum of several, is returned as it is.
    """
    if isinstance(model, Mixture) or len(ids) < 2 or plain_model(model).config.is_encoder_decoder:
        return model
    adapter = adapter_config(model)
    if (adapter is not None and adapter.is_prompt_learning) or not _takes_positions(plain_model(model)):
        return model
    versions = tuple(p._version for p in model.parameters())
    with at_rest(model):
        if (known := _HELD.get(model)) is not None:
            held, at, said = known
            if (held.ids, at) == (tuple(ids), versions) and torch.equal(_last_said(model, held), said):
                return Primed(model, held)
        read = _forward(model, list(ids), 0, None)
        layers = getattr(read.past_key_values, "layers", [])
        if not layers or any(type(layer).__name__ != "DynamicLayer" for layer in layers):
            return model
        held = Held(tuple(ids), [(layer.keys, layer.values) for layer in layers])
        _HELD[model] = (held, versions, _last_said(model, held))
    return Primed(model, held)


def _last_said(model: nn.Module, held: Held) -> Tensor:
    """Scores (V,) after the last token, read alone."""
    n = len(held.ids) - 1
    said: Tensor = _forward(model, [held.ids[n]], n, held.cache(1, n)).logits[0, -1]
    return said


def _forward(model: Any, ids: list[int], first: int, cache: Any) -> Any:
    device = next(model.parameters()).device
    row = torch.tensor([ids], device=device)
    with _head_at_last(plain_model(model).get_output_embeddings()):
        return model(
            input_ids=row, attention_mask=torch.ones(1, first + len(ids), dtype=torch.long, device=device),
            position_ids=torch.arange(first, first + len(ids), device=device)[None], past_key_values=cache, use_cache=True,
        )  # fmt: skip


def _takes_positions(model: Any) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


class _EncoderDecoderStream(_ModelStream):
    """Encoder-decoder models: the encoder reads the prompt once, the decoder starts from its start token."""

    def start(self, ids: Sequence[Sequence[int]]) -> Tensor:
        grid, mask = _grid(ids, self.pad_id)
        grid, self.mask = grid.to(self.device), mask.long().to(self.device)
        start = self.plain.config.decoder_start_token_id
        self.ids = torch.full(
            (len(ids), 1), start, dtype=torch.long, device=self.device
        )  # (B, U) what the decoder read
        inputs: dict[str, Any] = {"input_ids": grid}
        self.stepper = self.model if not self.virtual else self.plain
        if self.prompt:
            tokens = self.plain.get_input_embeddings()(grid)
            prompt = self.model.get_prompt(batch_size=len(ids))[:, : self.virtual].to(tokens.dtype)
            inputs = {"inputs_embeds": torch.cat([prompt, tokens], 1)}
            self.mask = torch.cat([self.mask.new_ones(len(ids), self.virtual), self.mask], 1)
        out, logits = self._decode(**inputs)
        self.states = out.encoder_last_hidden_state
        return logits

    def _decode(self, **inputs: Any) -> tuple[Any, Tensor]:
        if self.prefix:
            inputs["past_key_values"] = self.model.get_prompt(len(self.ids))
        return self._call(
            self.stepper, **inputs, attention_mask=self.mask, decoder_input_ids=self.ids, use_cache=self.cached
        )

    def feed(self, token: Tensor) -> Tensor:
        if self.cache is None:
            self.ids = torch.cat([self.ids, token[:, None]], 1)
            return self._decode(encoder_outputs=_encoded(self.states))[1]
        return self.extend(token[:, None])[:, -1]

    def extend(self, tokens: Tensor) -> Tensor:
        if self.cache is None:
            raise Refusal(f"a {type(self.plain).__name__} keeps no cache: it cannot verify drafts")
        out = self.stepper(
            encoder_outputs=_encoded(self.states), attention_mask=self.mask, decoder_input_ids=tokens,
            past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        return out.logits.float()

    def retract(self, count: Tensor) -> None:
        """The same number from every row: these decoders count positions by columns."""
        length = self.cache.get_seq_length() - int(count[0])
        pick_columns(self.cache.self_attention_cache, torch.arange(length, device=self.device).expand(len(count), -1))

    def keep(self, rows: Tensor) -> None:
        self.ids, self.mask, self.states = self.ids[rows], self.mask[rows], self.states[rows]
        if self.cache is not None:
            self.cache.reorder_cache(rows)


class MixtureStream(Stream):
    """Streams that grow by the same tokens, each with its own prompts, cache and device; scores are their sum's."""

    def __init__(self, mixture: Mixture, pad_id: int, cached: bool):
        self.mixture = mixture
        self.streams = [stream(m.model, pad_id, cached) for m in mixture.members]
        self.devices = [next(m.model.parameters()).device for m in mixture.members]

    def start(self, ids: Sequence[Sequence[int]]) -> Tensor:
        members = zip(self.streams, self.mixture.members, strict=True)
        return self.mixture.combine([s.start([m.wrap(row) for row in ids]) for s, m in members])

    def feed(self, token: Tensor) -> Tensor:
        return self.mixture.combine([s.feed(token.to(d)) for s, d in zip(self.streams, self.devices, strict=True)])

    def extend(self, tokens: Tensor, known: tuple[int, Tensor] | None = None) -> Tensor:
        """`known` are the scores (B, k, V) of a member that has read the tokens already."""
        scores = [
            known[1] if known is not None and i == known[0] else s.extend(tokens.to(d))
            for i, (s, d) in enumerate(zip(self.streams, self.devices, strict=True))
        ]
        return self.mixture.combine([s.flatten(0, 1) for s in scores]).unflatten(0, tokens.shape)

    @property
    def ragged(self) -> bool:
        return all(s.ragged for s in self.streams)

    def until(self, most: int) -> None:
        for s in self.streams:
            s.until(most)

    def retract(self, count: Tensor) -> None:
        for s, device in zip(self.streams, self.devices, strict=True):
            s.retract(count.to(device))

    def keep(self, rows: Tensor) -> None:
        for s, device in zip(self.streams, self.devices, strict=True):
            s.keep(rows.to(device))


def pick_columns(cache: Any, columns: Tensor) -> None:
    """Keep the given columns (B, T') of every row of a cache, in their order.

    Raises Refusal for caches that hold anything but keys and values of all tokens (a sliding window, a state).
    """
    for layer in cache.layers:
        if type(layer).__name__ != "DynamicLayer":
            raise Refusal(
                f"a cache of {type(layer).__name__} cannot take tokens back: this model cannot draft or be drafted for"
            )
        at = columns.to(layer.keys.device)
        row = torch.arange(len(at), device=at.device)[:, None]
        layer.keys, layer.values = (x.transpose(1, 2)[row, at].transpose(1, 2) for x in (layer.keys, layer.values))


def _encoded(states: Tensor) -> Any:
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=states)


# --------------------------------------------------------------------------------------------------------- loop


@dataclass(slots=True)
class Row:
    """One row on its way: `index` in the caller's list, what it has said, and its own random numbers."""

    index: int
    seed: tuple[int, ...]
    ids: list[int] = field(default_factory=list)
    logp: float = 0.0
    stopped: bool = False
    _random: np.random.Generator | None = None

    def uniform(self) -> float:
        """The next number in [0, 1) of this row: it depends on seed, prompt and step, not on the other rows."""
        if self._random is None:
            self._random = np.random.default_rng(self.seed)
        return self._random.random()


Rule = Callable[[Tensor, Sequence[Row]], Tensor]
"""Scores (B, V) and rows to chosen tokens (B,)."""
Shape = Callable[[Tensor, Sequence[Row]], Tensor]
"""Scores (B, V) and rows to other scores (B, V): constraints, penalties."""


def rows_of(ids: Sequence[Sequence[int]], seed: int) -> list[Row]:
    """Rows whose random numbers are given by seed, prompt, and how many equal prompts came before."""
    copies: dict[tuple[int, ...], int] = {}
    rows = []
    for index, prompt in enumerate(ids):
        copy = copies[tuple(prompt)] = copies.get(tuple(prompt), -1) + 1
        digest = hashlib.blake2b(np.asarray(prompt, dtype=np.int64).tobytes(), digest_size=8).digest()
        rows.append(Row(index, (seed, int.from_bytes(digest, "little"), copy)))
    return rows


def decode(
    source: Stream, ids: Sequence[Sequence[int]], limits: Limits, rule: Rule, shape: Shape | None = None
) -> list[Generation]:
    """Run the loop. `logp` of a generation is under the stream's own distribution, before `shape` and `rule`."""
    rows = rows_of(ids, limits.seed)
    everyone = list(rows)
    scores = source.start(ids) if limits.max_new_tokens > 0 and rows else None
    while scores is not None:
        token = rule(scores if shape is None else shape(scores, rows), rows)  # (B,)
        logp = scores.gather(1, token[:, None])[:, 0] - scores.logsumexp(1)
        alive = []
        for b, (row, t, p) in enumerate(zip(rows, token.tolist(), logp.tolist(), strict=True)):
            row.logp += p
            if advance(row, t, limits) and len(row.ids) < limits.max_new_tokens:
                alive.append(b)
        if not alive:
            break
        if len(alive) < len(rows):
            select = torch.tensor(alive, device=token.device)
            source.keep(select)
            token, rows = token[select], [rows[b] for b in alive]
        scores = source.feed(token)
    return [Generation(row.ids, row.stopped, row.logp) for row in everyone]


def advance(row: Row, token: int, limits: Limits) -> bool:
    """Append `token` unless it is a stop token; whether the row goes on."""
    if token in limits.stop_ids:
        row.stopped = True
        return False
    row.ids.append(token)
    row.stopped = text_ended(row.ids, limits)
    return not row.stopped


def text_ended(ids: list[int], limits: Limits) -> bool:
    """Whether the text of a row says that it is over (a stop string)."""
    return isinstance(limits, TextLimits) and limits.finished is not None and limits.finished(ids)


def nucleus_probability(scores: Tensor, temperature: float, top_p: float, top_k: int) -> Tensor:
    """The distribution (B, V) float64 that a sampler draws from: temperature, top_k, top_p. `temperature` > 0."""
    p = (scores.double() / temperature).softmax(-1)
    if top_k and top_k < p.shape[-1]:
        p = p.masked_fill(p < p.topk(top_k, -1).values[:, -1:], 0.0)
        p = p / p.sum(-1, keepdim=True)
    if top_p < 1:
        p = p.masked_fill(~in_nucleus(p, top_p), 0.0)
    return p / p.sum(-1, keepdim=True)


def certain(scores: Tensor) -> Tensor:
    """All probability (B, V) float64 on the likeliest token: greedy decoding as a distribution."""
    return torch.zeros_like(scores, dtype=torch.float64).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)


def draw(p: Tensor, rows: Sequence[Row]) -> Tensor:
    """One token (B,) per row by the inverse of the distribution function, with each row's own random number.

    `p` (B, V) need not sum to 1.
    """
    at = torch.tensor([[row.uniform()] for row in rows], dtype=p.dtype, device=p.device)
    below = p.cumsum(-1)
    token = torch.searchsorted(below, at * below[:, -1:], right=True)[:, 0]
    return token.clamp(max=p.shape[-1] - 1)


def penalised(penalty: float) -> Shape:
    """Tokens that a row has said before become less likely: a positive score is divided by `penalty`, others multiplied.

    Prompts do not count, whatever they hold.
    """

    def shape(scores: Tensor, rows: Sequence[Row]) -> Tensor:
        out = scores.clone()
        for b, row in enumerate(rows):
            said = torch.tensor(sorted(set(row.ids)), dtype=torch.long, device=scores.device)
            z = scores[b, said]
            out[b, said] = torch.where(z > 0, z / penalty, z * penalty)
        return out

    return shape


def chooser_of(told: Any) -> Decoder:
    """The decoder that an option `choose` names: a name, a mapping with its options, or the decoder itself."""
    if isinstance(told, Decoder):
        return told
    found: Decoder = build("decoding", {"name": told} if isinstance(told, str) else dict(told), "decoding.choose")
    return found


class StepDecoder(Decoder):
    """A decoder of one model, one token at a time: a method gives `rule`, and the distribution that it draws from."""

    def probability(self, scores: Tensor) -> Tensor:
        """Scores (B, V) to the probabilities (B, V) float64 with which `rule` takes each token."""
        raise Refusal(f"{self.name} does not say how likely it takes a token: its drafts cannot be verified")

    def rule(self, scores: Tensor, rows: Sequence[Row]) -> Tensor:
        """Scores (B, V) to chosen tokens (B,)."""
        raise NotImplementedError

    def generate(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        with at_rest(model):
            return decode(stream(model, limits.pad_id), ids, limits, self.rule)
