"""Speculation: a small model drafts a few tokens, the model that is decoded reads them all in one pass.

    draft     x_1 ~ q_1, ..., x_k ~ q_k                q_j what the draft model would draw after x_1 .. x_{j-1}
    verify    p_1, ..., p_{k+1} from one forward of (y, x_1, ..., x_k), y the last token said
    accept    x_1, ..., x_n, each with probability min(1, p_j(x_j) / q_j(x_j)), up to the first that is refused
    go on     y' ~ (p_{n+1} - q_{n+1})_+ where x_{n+1} was refused, else y' ~ p_{k+1}

Every token said is then distributed as p says, whatever q is: a poor draft costs time, never quality. With greedy
choices p and q are certain, and the tokens are the greedy ones. Rows accept different numbers of tokens; each goes on
from where it is, and draws its own random numbers in an order that no other row changes.

What a draft model that is also part of a sum has read and scored is not read again: the other parts join it.

B rows, k drafts a round, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.core.method import Generation, Limits
from luthier.decoding._family import MixtureStream, Row, Stream, advance, draw, rows_of

Probability = Callable[[Tensor], Tensor]
"""Scores (B, V) to the probabilities (B, V) float64 that a token is drawn with."""


@dataclass(slots=True)
class _Spoken:
    """A row and its counts. `reads` are the forwards of the verified model after the prompt."""

    row: Row
    figures: dict[str, int] = field(default_factory=lambda: {"drafted": 0, "accepted": 0, "reads": 0})


def speculate(
    target: Stream, draft: Stream | int, ids: Sequence[Sequence[int]], limits: Limits, probability: Probability,
    tokens: int,
) -> list[Generation]:  # fmt: skip
    """What `decode` gives in distribution. `draft` is a stream of its own, or the number of a member of the target."""
    spoken = [_Spoken(row) for row in rows_of(ids, limits.seed)]
    if not spoken or limits.max_new_tokens == 0:
        return [_told(s) for s in spoken]
    streams = [target] if isinstance(draft, int) else [target, draft]
    found = _Speculation(target, draft, streams, probability, tokens, limits)
    if all(s.ragged for s in streams):
        return found.run(spoken, ids)
    return [g for s, prompt in zip(spoken, ids, strict=True) for g in found.run([s], [prompt])]  # caches of one length


def _told(s: _Spoken) -> Generation:
    return Generation(s.row.ids, s.row.stopped, s.row.logp, dict(s.figures))


@dataclass(slots=True)
class _Speculation:
    target: Stream
    draft: Stream | int
    streams: list[Stream]
    probability: Probability
    tokens: int
    limits: Limits

    @property
    def drafter(self) -> Stream:
        if isinstance(self.draft, int):
            assert isinstance(self.target, MixtureStream)
            return self.target.streams[self.draft]
        return self.draft

    def run(self, spoken: list[_Spoken], ids: Sequence[Sequence[int]]) -> list[Generation]:
        everyone = spoken
        scores, *_ = [s.start(ids) for s in self.streams]  # (B, V): the prompts are read by all
        for s in self.streams:
            s.until(self.limits.max_new_tokens)
        pending = draw(self.probability(scores), [s.row for s in spoken])  # (B,) said, but read by no model yet
        logp = scores.log_softmax(-1).gather(1, pending[:, None])[:, 0]
        alive = [
            b
            for b, (s, t, p) in enumerate(zip(spoken, pending.tolist(), logp.tolist(), strict=True))
            if self._say(s.row, t, p)
        ]
        while alive:
            select = torch.tensor(alive, device=pending.device)
            if len(alive) < len(spoken):
                for stream in self.streams:
                    stream.keep(select)
                spoken, pending = [spoken[b] for b in alive], pending[select]
            pending, alive = self._round(spoken, pending)
        return [_told(s) for s in everyone]

    def _say(self, row: Row, token: int, logp: float) -> bool:
        """Append a token; whether the row goes on."""
        row.logp += logp
        return advance(row, token, self.limits) and len(row.ids) < self.limits.max_new_tokens

    def _round(self, spoken: list[_Spoken], pending: Tensor) -> tuple[Tensor, list[int]]:
        """Draft, verify, accept: what each row says last, and which rows go on."""
        room = [min(self.tokens, self.limits.max_new_tokens - len(s.row.ids) - 1) for s in spoken]
        block, q, drafted = self._drafts(spoken, pending, room)  # (B, k + 1), (B, k, V), (B, k + 1, V)
        if isinstance(self.draft, int):
            assert isinstance(self.target, MixtureStream)
            scores = self.target.extend(block, known=(self.draft, drafted))
        else:
            scores = self.target.extend(block)
        p = self.probability(scores.flatten(0, 1)).unflatten(0, block.shape)  # (B, k + 1, V)
        x = block[:, 1:]
        of_p, of_q = (d[:, : x.shape[1]].gather(2, x[..., None])[..., 0].tolist() for d in (p, q.to(p.device)))
        kept = [self._accept(s, n, a, b) for s, n, a, b in zip(spoken, room, of_p, of_q, strict=True)]

        left = p[torch.arange(len(kept)), kept]  # (B, V): after the last accepted draft
        refused = [b for b, (n, most) in enumerate(zip(kept, room, strict=True)) if n < most]
        if refused:
            rest = (left[refused] - q[refused, [kept[b] for b in refused]].to(p.device)).clamp(min=0)
            left[refused] = torch.where(rest.sum(-1, keepdim=True) > 0, rest, left[refused])
        pending = draw(left, [s.row for s in spoken])
        logp = scores.log_softmax(-1)  # (B, k + 1, V)
        tokens = torch.cat([x, pending[:, None]], 1).scatter(
            1, torch.tensor(kept, device=x.device)[:, None], pending[:, None]
        )
        said = logp.gather(2, tokens[..., None])[..., 0].tolist()
        alive = []
        for b, (s, n) in enumerate(zip(spoken, kept, strict=True)):
            for i, (t, v) in enumerate(zip(tokens[b, : n + 1].tolist(), said[b][: n + 1], strict=True)):
                goes_on = self._say(s.row, t, v)
                s.figures["accepted"] += i < n  # drafts behind the end of a row are not said, and not counted
                if not goes_on:
                    break
            if goes_on:
                alive.append(b)
        if alive:
            back = torch.tensor([x.shape[1] - n for n in kept], device=x.device)
            for stream in self.streams:
                stream.retract(back)
        return pending, alive

    def _drafts(self, spoken: list[_Spoken], pending: Tensor, room: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """What is read next (B, k + 1): the pending token and the drafts; what they were drawn from; all scores."""
        fed, q, scores = [pending], [], []
        for j in range(max(room) + 1):  # the last draft is read as well: then all models have read the same
            scores.append(self.drafter.feed(fed[-1]))
            if j == max(room):
                break
            q.append(self.probability(scores[-1]))
            token = torch.full_like(pending, self.limits.pad_id)
            drafting = [b for b, most in enumerate(room) if j < most]
            token[drafting] = draw(q[-1][drafting], [spoken[b].row for b in drafting])
            fed.append(token)
        return torch.stack(fed, 1), torch.stack(q, 1) if q else scores[0][:, None].double(), torch.stack(scores, 1)

    def _accept(self, s: _Spoken, drafts: int, p: list[float], q: list[float]) -> int:
        """How many of a row's drafts are kept."""
        n = 0
        while n < drafts and s.row.uniform() * q[n] < p[n]:
            n += 1
        s.figures["drafted"] += drafts
        s.figures["reads"] += 1
        return n
