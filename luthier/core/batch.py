"""Examples and batches: what the tokens are, who sees whom, and which positions are scored.

Letters: B rows, T tokens, N scored positions, A answers. Masks are boolean, True means "counts".

A batch does not carry shifted labels. It lists the N *scored* positions: position `source[n]` (flat index
into the B*T grid) predicts token `target[n]`, which belongs to answer `owner[n]`. Padding, packing several
examples into one row and sharing one prompt between several answers (a tree) are then the same thing to
everything downstream: a different layout of the same list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORED = -100


@dataclass(slots=True)
class TextExample:
    """One sequence. `counts[t]` says whether token t is trained on (it is then predicted from its past)."""

    row: int
    ids: list[int]
    counts: list[bool]
    extras: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class GroupExample:
    """One prompt with several answers (a preference pair is a group of two: chosen first, then rejected).

    `given[k]` first tokens of answer k are not trained: where prompts differ, `prompt` is what they have in common.
    """

    row: int
    prompt: list[int]
    answers: list[list[int]]
    scores: list[float] | None = None
    given: list[int] | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt) + sum(len(a) for a in self.answers)


@dataclass(slots=True)
class LabelledExample:
    """One input with a class index, a number, or a list of 0/1 for several labels at once."""

    row: int
    ids: list[int]
    label: int | float | list[float]
    type_ids: list[int] | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class TaggedExample:
    """One input with the index of a class for some of its tokens, and `IGNORED` for the others."""

    row: int
    ids: list[int]
    tags: list[int]
    type_ids: list[int] | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tagged(self) -> list[int]:
        """Places of the tokens that have a class."""
        return [t for t, tag in enumerate(self.tags) if tag != IGNORED]


@dataclass(slots=True)
class SourceTargetExample:
    """An encoder input and a decoder target (sequence-to-sequence models)."""

    row: int
    ids: list[int]
    target: list[int]
    extras: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids) + len(self.target)


@dataclass(slots=True)
class SearchExample:
    """A query with documents: the one that answers it first, then hard negatives.

    keys      identity of each document, so that the same one is known again under another query
    query_key identity of the query
    query     empty where each of `documents` is query and document in one sequence, for one model to read together
    type_ids  sentence index of each token of each document, for encoders that use one
    """

    row: int
    query: list[int]
    documents: list[list[int]]
    keys: list[int]
    query_key: int
    type_ids: list[list[int]] | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.query) + sum(len(d) for d in self.documents)

    @property
    def sequences(self) -> list[list[int]]:
        """What the model reads, one by one."""
        return ([self.query] if self.query else []) + self.documents


Example = TextExample | GroupExample | LabelledExample | TaggedExample | SourceTargetExample | SearchExample


@dataclass
class Batch:
    """Model inputs and the list of scored positions.

    ids        (B, T) long    token ids; `pad_id` where `mask` is False
    mask       (B, T) bool    True on real tokens
    positions  (B, T) long    position of each token in its own sequence; None: count from the first token
    sees       (B, T, T) bool row t may attend to column s; None: ordinary (causal or full) attention
    source     (N,) long      flat position b*T+t whose state predicts; for seq2seq in the decoder's grid
    target     (N,) long      token to predict; the class of the token itself, for tagged examples
    owner      (N,) long      answer the scored token belongs to, 0 <= owner < A
    rows       (A,) long      data row of each answer (of each sequence for labelled examples, of each query of a search)
    label      (B,) or (B, L) class index, number or 0/1 vector
    decoder_ids, decoder_mask (B, U) for encoder-decoder models
    type_ids   (B, T) long    sentence index for encoders that use one
    scores     (A,) float     score or rank of each answer, where the data has one
    reference  (A,) float     log-probability of each answer under the reference model, where asked for
    weights    (N,) float     weight of each scored token; None: all one
    top_ids, top_logp (N, k)  a teacher's likeliest tokens at each scored position and their log-probabilities, where asked for
    asked_by   (D,) long      query that each of D documents belongs to; the first of a query's own is the right one. The
                              grid holds the queries (where they are sequences of their own), then the documents
    keys       (D,) long      identity of each document;  query_keys (A,) of each query
    group      (A,) long      example of the batch that each answer belongs to, for groups
    shared     (k,) float     means over the whole step of what the objective asks (`Objective.statistic`); None: not asked
    noise      (alpha, key)   of the noise on its embeddings, while training with one (`core.noise`)
    """

    ids: Tensor
    mask: Tensor
    rows: Tensor
    positions: Tensor | None = None
    sees: Tensor | None = None
    source: Tensor | None = None
    target: Tensor | None = None
    owner: Tensor | None = None
    label: Tensor | None = None
    decoder_ids: Tensor | None = None
    decoder_mask: Tensor | None = None
    type_ids: Tensor | None = None
    scores: Tensor | None = None
    reference: Tensor | None = None
    weights: Tensor | None = None
    top_ids: Tensor | None = None
    top_logp: Tensor | None = None
    asked_by: Tensor | None = None
    keys: Tensor | None = None
    query_keys: Tensor | None = None
    group: Tensor | None = None
    shared: Tensor | None = None
    noise: tuple[float, int] | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Real tokens that pass through the model (padding not counted)."""
        n = int(self.mask.sum())
        return n + (int(self.decoder_mask.sum()) if self.decoder_mask is not None else 0)

    @property
    def answers(self) -> int:
        return len(self.rows)

    def sequences(self) -> tuple[Tensor, Tensor]:
        """(place, row), both (B, T): a token's place in its sequence and the data row of that; -1 on padding.

        Rows of a shared prompt are one sequence; answers of it begin where the prompt ends.
        """
        place = positions_from_mask(self.mask) if self.positions is None else self.positions
        starts = self.mask & (place == 0)
        number = (starts.flatten().cumsum(0) - 1).view_as(place)
        row = self.rows
        if len(row) != (n := int(starts.sum())):  # several answers a sequence: any of them tells its row
            assert self.source is not None and self.owner is not None
            row = row.new_empty(n).index_put((number.flatten()[self.source],), row[self.owner])
        return place.where(self.mask, -1), row[number.clamp(min=0)].where(self.mask, -1)

    @property
    def place_in_run(self) -> Tensor:
        """(N,) how many scored tokens stand right before each in its answer, or its turn of a chat."""
        assert self.owner is not None and self.source is not None
        n = torch.arange(len(self.source), device=self.source.device)
        begins = torch.ones_like(n, dtype=torch.bool)
        begins[1:] = (self.owner[1:] != self.owner[:-1]) | (self.source[1:] != self.source[:-1] + 1)
        return n - torch.where(begins, n, 0).cummax(0).values

    def by_answer(self, column: Tensor) -> Tensor:
        """Sums (A,) of a column (N,) over the scored tokens of each answer."""
        assert self.owner is not None
        return torch.zeros(self.answers, dtype=column.dtype, device=column.device).index_add_(0, self.owner, column)

    def of_answers(self, kept: Tensor) -> Batch:
        """The same tokens, of which only those of the answers `kept` (A,) are scored; `extras["scored"]` says which."""
        assert self.source is not None and self.target is not None and self.owner is not None
        at = kept[self.owner].nonzero()[:, 0]
        number = kept.long().cumsum(0) - 1
        names = ("source", "target", "weights", "top_ids", "top_logp")
        of_token = {k: v[at] for k in names if (v := getattr(self, k)) is not None}
        of_answer = {k: v[kept] for k in ("rows", "scores", "reference") if (v := getattr(self, k)) is not None}
        changed: dict[str, Any] = of_token | of_answer
        if self.group is not None:  # numbered anew: groups of which nothing is kept are none
            changed["group"] = self.group[kept].unique_consecutive(return_inverse=True)[1]
        return replace(self, owner=number[self.owner[at]], extras={**self.extras, "scored": at}, **changed)

    def to(self, device: torch.device | str) -> Batch:
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Keyword arguments for a transformers model. `dtype` is that of the additive mask, where one is needed."""
        out: dict[str, Tensor] = {"input_ids": self.ids}
        if self.sees is None:
            out["attention_mask"] = self.mask.long()
        else:  # additive: the one form that eager and sdpa attention both take
            bias = torch.zeros(self.sees.shape, dtype=dtype, device=self.ids.device)
            out["attention_mask"] = bias.masked_fill_(~self.sees, torch.finfo(dtype).min)[:, None]  # (B, 1, T, T)
        if self.positions is not None:
            out["position_ids"] = self.positions
        if self.type_ids is not None:
            out["token_type_ids"] = self.type_ids
        if self.decoder_ids is not None:
            assert self.decoder_mask is not None
            out["decoder_input_ids"] = self.decoder_ids
            out["decoder_attention_mask"] = self.decoder_mask.long()
        return out


Collate = Callable[[Sequence[Example]], Batch]


def _grid(
    sequences: Sequence[Sequence[int]], pad: int, side: str = "right", multiple: int = 1
) -> tuple[Tensor, Tensor]:
    """Ragged id lists to (B, T) ids and mask, padded on `side` to a multiple of `multiple`."""
    width = max(len(s) for s in sequences)
    width = -(-width // multiple) * multiple
    ids = np.full((len(sequences), width), pad, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=bool)
    for b, seq in enumerate(sequences):
        start = width - len(seq) if side == "left" else 0
        ids[b, start : start + len(seq)] = seq
        mask[b, start : start + len(seq)] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)


def positions_from_mask(mask: Tensor) -> Tensor:
    """(B, T) mask to positions that start at 0 on the first real token, wherever the padding is."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


_Span = tuple[np.ndarray, np.ndarray, int]
"""Flat positions that predict, flat positions of the tokens predicted, and the answer that they belong to."""


def _scored(spans: Sequence[_Span], ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(source, target, owner), each (N,); targets are read from the grid of ids."""
    if not spans:
        empty = torch.zeros(0, dtype=torch.long)
        return empty, empty.clone(), empty.clone()
    source, predicted = (np.concatenate(part).astype(np.int64) for part in list(zip(*spans))[:2])
    owner = np.repeat([s[2] for s in spans], [len(s[0]) for s in spans]).astype(np.int64)
    return torch.from_numpy(source), ids.flatten()[torch.from_numpy(predicted)], torch.from_numpy(owner)


def _text_span(e: TextExample, at: int, owner: int) -> _Span:
    """Counted tokens of an example whose first token is at flat position `at`; nothing predicts a first token."""
    predicted = at + 1 + np.flatnonzero(np.asarray(e.counts[1:], dtype=bool))
    return predicted - 1, predicted, owner


def collate_text(examples: Sequence[TextExample], pad: int, side: str = "right") -> Batch:
    """One example a row."""
    ids, mask = _grid([e.ids for e in examples], pad, side)
    width = ids.shape[1]
    starts = [b * width + (width - len(e) if side == "left" else 0) for b, e in enumerate(examples)]
    source, target, owner = _scored([_text_span(e, at, b) for b, (e, at) in enumerate(zip(examples, starts))], ids)
    positions = positions_from_mask(mask) if side == "left" else None
    return Batch(ids, mask, _rows(examples), positions, None, source, target, owner, extras=_extras(examples))


def collate_packed(rows: Sequence[Sequence[TextExample]], pad: int, side: str = "right") -> Batch:
    """Several examples a row, with restarted positions and a block mask: no example sees another.

    `rows[b]` are the examples packed into row b. Numbers are those of `collate_text` (tests hold them equal).
    """
    if side != "right":
        raise ValueError("packed rows are padded on the right")
    ids, mask = _grid([[t for e in row for t in e.ids] for row in rows], pad)
    B, T = ids.shape
    positions = torch.zeros(B, T, dtype=torch.long)
    segments = torch.full((B, T), -1, dtype=torch.long)
    spans: list[_Span] = []
    flat: list[TextExample] = []
    for b, row in enumerate(rows):
        at = 0
        for e in row:
            n, a = len(e), len(flat)
            positions[b, at : at + n] = torch.arange(n)
            segments[b, at : at + n] = a
            spans.append(_text_span(e, b * T + at, a))
            flat.append(e)
            at += n
    sees = (segments[:, :, None] == segments[:, None, :]) & torch.ones(T, T, dtype=torch.bool).tril()
    source, target, owner = _scored(spans, ids)
    return Batch(ids, mask, _rows(flat), positions, sees, source, target, owner, extras=_extras(flat))


def collate_groups(examples: Sequence[GroupExample], pad: int, side: str = "right", share_prompt: bool = True) -> Batch:
    """Answers in the order of the groups. With `share_prompt` each prompt is computed once: a tree per row."""
    flat_rows = torch.tensor([e.row for e in examples for _ in e.answers])
    group = torch.tensor([g for g, e in enumerate(examples) for _ in e.answers])
    scores = None
    if all(e.scores is not None for e in examples):
        scores = torch.tensor([s for e in examples for s in e.scores], dtype=torch.float32)  # type: ignore[union-attr]
    if not share_prompt:
        texts = [
            TextExample(e.row, e.prompt + a, [t >= len(e.prompt) + g for t in range(len(e.prompt) + len(a))])
            for e in examples
            for a, g in zip(e.answers, e.given or [0] * len(e.answers), strict=True)
        ]
        return replace(
            collate_text(texts, pad, side), rows=flat_rows, scores=scores, group=group, extras=_extras(examples)
        )
    if side != "right":
        raise ValueError("rows with a shared prompt are padded on the right")
    ids, mask = _grid([e.prompt + [t for a in e.answers for t in a] for e in examples], pad)
    B, T = ids.shape
    positions = torch.zeros(B, T, dtype=torch.long)
    branch = torch.full((B, T), -2, dtype=torch.long)  # -2 padding, -1 prompt, k answer k
    spans: list[_Span] = []
    for b, e in enumerate(examples):
        n = len(e.prompt)
        positions[b, :n] = torch.arange(n)
        branch[b, :n] = -1
        at = n
        for k, a in enumerate(e.answers):
            positions[b, at : at + len(a)] = torch.arange(n, n + len(a))
            branch[b, at : at + len(a)] = k
            predicted = b * T + np.arange(at, at + len(a))
            source = predicted - 1
            source[:1] = b * T + n - 1  # the prompt's last token predicts the first token of every answer
            g = 0 if e.given is None else e.given[k]
            spans.append((source[g:], predicted[g:], len(spans)))
            at += len(a)
    same = (branch[:, :, None] == branch[:, None, :]) | ((branch[:, None, :] == -1) & (branch[:, :, None] >= 0))
    sees = same & torch.ones(T, T, dtype=torch.bool).tril()
    scored, target, owner = _scored(spans, ids)
    return Batch(
        ids,
        mask,
        flat_rows,
        positions,
        sees,
        scored,
        target,
        owner,
        scores=scores,
        group=group,
        extras=_extras(examples),
    )


def first_answers(batch: Batch, of: int) -> Batch:
    """A batch of groups with the first of each `of` answers alone; what only the others need is not computed.

    Answers keep their numbers: the others are there without a scored token.
    """
    assert batch.source is not None and batch.target is not None and batch.owner is not None
    kept = batch.owner % of == 0
    source, width = batch.source[kept], batch.ids.shape[1]
    row, column = source // width, source % width
    last = torch.zeros_like(batch.ids[:, 0]).scatter_reduce(0, row, column + 1, "amax")  # (B,)
    mask = batch.mask & (torch.arange(width, device=last.device) <= last[:, None])
    rows = last.nonzero()[:, 0]
    number = torch.zeros_like(last).index_put((rows,), torch.arange(len(rows), device=last.device))
    W = int(last.max()) + 1
    return replace(
        batch, ids=batch.ids[rows, :W], mask=mask[rows, :W],
        positions=None if batch.positions is None else batch.positions[rows, :W],
        sees=None if batch.sees is None else batch.sees[rows, :W, :W],
        source=number[row] * W + column, target=batch.target[kept], owner=batch.owner[kept],
        weights=None if batch.weights is None else batch.weights[kept],
        top_ids=None if batch.top_ids is None else batch.top_ids[kept],
        top_logp=None if batch.top_logp is None else batch.top_logp[kept],
    )  # fmt: skip


def _typed_grid(
    examples: Sequence[LabelledExample] | Sequence[TaggedExample], pad: int, side: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Ids, mask, sentence indices where the examples have some, and positions where they do not count from the first column."""
    ids, mask = _grid([e.ids for e in examples], pad, side)
    types = [e.type_ids for e in examples]
    type_ids = None if types[0] is None else _grid(types, 0, side)[0]  # type: ignore[arg-type]
    return ids, mask, type_ids, positions_from_mask(mask) if side == "left" else None


def collate_labelled(examples: Sequence[LabelledExample], pad: int, side: str = "right") -> Batch:
    """One input a row with its label."""
    ids, mask, type_ids, positions = _typed_grid(examples, pad, side)
    label = torch.tensor([e.label for e in examples])
    return Batch(ids, mask, _rows(examples), positions, label=label, type_ids=type_ids, extras=_extras(examples))


def collate_tagged(examples: Sequence[TaggedExample], pad: int, side: str = "right") -> Batch:
    """One input a row; scored are the tokens that have a class, each at its own place."""
    ids, mask, type_ids, positions = _typed_grid(examples, pad, side)
    width = ids.shape[1]
    starts = [b * width + (width - len(e) if side == "left" else 0) for b, e in enumerate(examples)]
    source = torch.tensor([at + t for e, at in zip(examples, starts) for t in e.tagged], dtype=torch.long)
    target = torch.tensor([e.tags[t] for e in examples for t in e.tagged], dtype=torch.long)
    owner = torch.tensor([b for b, e in enumerate(examples) for _ in e.tagged], dtype=torch.long)
    return Batch(
        ids, mask, _rows(examples), positions, None, source, target, owner, type_ids=type_ids, extras=_extras(examples)
    )


def collate_source_target(examples: Sequence[SourceTargetExample], pad: int, start: int, side: str = "right") -> Batch:
    """Encoder input and decoder target; the decoder reads `start` and the target shifted by one."""
    ids, mask = _grid([e.ids for e in examples], pad, side)
    decoder_ids, decoder_mask = _grid([[start, *e.target[:-1]] for e in examples], pad)
    U = decoder_ids.shape[1]
    lengths = [len(e.target) for e in examples]
    source = torch.cat([torch.arange(b * U, b * U + n) for b, n in enumerate(lengths)])
    target = torch.tensor([t for e in examples for t in e.target], dtype=torch.long)
    owner = torch.arange(len(examples)).repeat_interleave(torch.tensor(lengths))
    return Batch(
        ids, mask, _rows(examples), None, None, source, target, owner,
        decoder_ids=decoder_ids, decoder_mask=decoder_mask, extras=_extras(examples),
    )  # fmt: skip


def collate_searches(examples: Sequence[SearchExample], pad: int, side: str = "right") -> Batch:
    """All queries, then all documents, a row each."""
    queries = [e.query for e in examples if e.query]
    ids, mask = _grid([*queries, *(d for e in examples for d in e.documents)], pad, side)
    type_ids = None
    if examples[0].type_ids is not None:
        types = [t for e in examples for t in e.type_ids or []]
        type_ids = _grid([*([0] * len(q) for q in queries), *types], 0, side)[0]
    asked_by = torch.arange(len(examples)).repeat_interleave(torch.tensor([len(e.documents) for e in examples]))
    return Batch(
        ids, mask, _rows(examples), positions_from_mask(mask) if side == "left" else None, type_ids=type_ids,
        asked_by=asked_by, keys=torch.tensor([k for e in examples for k in e.keys]),
        query_keys=torch.tensor([e.query_key for e in examples]), extras=_extras(examples),
    )  # fmt: skip


def _rows(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([e.row for e in examples], dtype=torch.long)


def _extras(examples: Sequence[Example]) -> dict[str, Any]:
    keys = examples[0].extras.keys() if examples else ()
    return {k: [e.extras[k] for e in examples] for k in keys}


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit-decreasing bins: indices per row so that each row's lengths sum to at most `capacity`.

    Raises ValueError for an example longer than `capacity`.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[i] > capacity:
            raise ValueError(
                f"row {i} has {lengths[i]} tokens, more than the packed length {capacity}: raise max_length"
            )
        fits = [b for b in range(len(bins)) if room[b] >= lengths[i]]
        if fits:
            best = min(fits, key=lambda b: (room[b], b))
            bins[best].append(i)
            room[best] -= lengths[i]
        else:
            bins.append([i])
            room.append(capacity - lengths[i])
    return bins


@dataclass
class Plan:
    """Which examples make up which optimiser step: a pure function of its fields, so resuming needs only the step.

    The examples of one step depend on `step_size` alone, never on how the step is split over micro-batches and
    processes; within a step they are sorted by length, so that splitting wastes little padding.

    group  examples that must stay together, next to each other in a step: consecutive ones of the epoch's permutation,
           so that each epoch draws its groups anew. Groups, not examples, are then sorted by length (of their longest);
           where the number of examples leaves a smaller group, it is the last of its step. `step_size` is a multiple.
    round  steps that are walked `passes` times before the next ones: what they hold is made anew each round
    """

    lengths: Sequence[int]
    step_size: int
    seed: int = 0
    group_by_length: bool = True
    shuffle: bool = True
    window_steps: int = 50
    drop_last: bool = False
    group: int = 1
    round: int = 1
    passes: int = 1
    _walked: tuple[int, list[list[int]]] | None = field(default=None, repr=False, compare=False)

    @property
    def steps_per_epoch(self) -> int:
        n = len(self.lengths)
        return self.passes * max(1, n // self.step_size if self.drop_last else -(-n // self.step_size))

    def epoch(self, epoch: int) -> list[list[int]]:
        """Steps of one epoch, each a list of example indices."""
        n, size = len(self.lengths), self.step_size
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(n) if self.shuffle else np.arange(n)
        if not self.group_by_length:
            steps = [order[i : i + size].tolist() for i in range(0, n, size)]
        else:
            steps = self._sorted(order)
            if self.shuffle:
                steps = [steps[i] for i in rng.permutation(len(steps))]
        if self.drop_last and len(steps) > 1:
            steps = [s for s in steps if len(s) == size]
        rounds = [steps[i : i + self.round] for i in range(0, len(steps), self.round)]
        return [step for part in rounds for _ in range(self.passes) for step in part]

    def _sorted(self, order: np.ndarray) -> list[list[int]]:
        """Steps of groups of like length; within a step the shortest group first, a smaller group last."""
        g, whole = self.group, len(order) // self.group * self.group
        groups, rest = order[:whole].reshape(-1, g), order[whole:].tolist()
        longest = np.asarray(self.lengths)[groups].max(1)
        per_step = self.step_size // g
        window = per_step * self.window_steps
        steps: list[list[int]] = []
        for start in range(0, len(groups), window):
            here = start + np.argsort(longest[start : start + window], kind="stable")
            for i in range(0, len(here), per_step):
                step = here[i : i + per_step]
                step = step[np.lexsort((groups[step, 0], longest[step]))]
                steps.append(groups[step].ravel().tolist())
        if not rest:
            return steps
        if len(groups) % per_step:  # there is room in the last step
            return [*steps[:-1], steps[-1] + rest]
        return [*steps, rest]

    def step(self, index: int) -> list[int]:
        """Example indices of optimiser step `index`, counted from the start of training."""
        epoch, at = divmod(index, self.steps_per_epoch)
        if self._walked is None or self._walked[0] != epoch:
            self._walked = (epoch, self.epoch(epoch))  # only the epoch being walked is worth keeping
        return self._walked[1][at]

    def of_round(self, index: int) -> range:
        """The steps of the round that step `index` is in. No round reaches over the end of an epoch."""
        epoch, at = divmod(index, self.steps_per_epoch)
        first, size = epoch * self.steps_per_epoch, self.round * self.passes
        return range(first + at - at % size, first + min(at - at % size + size, self.steps_per_epoch))
