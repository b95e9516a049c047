"""Several models as one: next-token scores as a weighted sum of their log-probabilities.

    z = w_0 z_0 + sum_{i>0} w_i max(log p_i, floor),        p = softmax(z)                  z_i (N, V), p_i = softmax(z_i)

    z_0      logits of the first model, whose weight is positive
    w_i      weights, of any sign and any sum: nothing is renormalised but p
    floor    log-probabilities below it say only "impossible": a ratio of two of them would be noise

Logits or log-probabilities: they differ by a constant over the vocabulary, so p is the same for both; but a floor, a
nucleus and a share of the likeliest token mean something for log-probabilities only. The first model enters by its
logits, so that what adds nothing (weight 0, or a model and its equal with opposite weights) leaves its scores as they
are, to the last bit. A model of weight 0 is not run.

Two options say where the sum counts. Tokens that the first model finds implausible (below `plausible` times its
likeliest token, or outside its `top` likeliest) get no probability. With `trusted = (i, share)` the models after the
first one count only for tokens in the nucleus of model i: elsewhere z = w_0 z_0.

Every model has its own prompt (`Wrap`) and its own device; they share the vocabulary. Scores beyond the last token that
all of them know (rows that pad an embedding table) are cut off.

N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.method import LuthierError

FLOOR = -30.0


@dataclass(frozen=True)
class Other:
    """A model beside the one that is asked, as a decoder gets it: with its tokenizer and the name it was loaded by."""

    model: nn.Module
    tokenizer: Any = None
    name: str = ""


@dataclass(frozen=True)
class Wrap:
    """A prompt of a model's own: ids to stand before and after what the others read. A leading `bos` stays in front."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    bos: int | None = None

    def __call__(self, ids: Sequence[int]) -> list[int]:
        head = list(ids[:1]) if self.before and self.bos is not None and list(ids[:1]) == [self.bos] else []
        return [*head, *self.before, *ids[len(head) :], *self.after]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class Member:
    """One model of the sum."""

    model: nn.Module
    weight: float = 1.0
    wrap: Wrap = Wrap()


class Mixture(nn.Module):
    """The sum as a model. It holds the members as they are: none of their weights is copied or changed.

    size       tokens that all members know; None: as many as the shortest head has scores
    trusted    (index of a member, share) or None
    plausible  share of the first model's likeliest token; 0: all tokens
    top        how many of the first model's likeliest tokens; 0: all
    """

    def __init__(
        self, members: Sequence[Member], *, size: int | None = None, floor: float = FLOOR,
        trusted: tuple[int, float] | None = None, plausible: float = 0.0, top: int = 0,
    ):  # fmt: skip
        super().__init__()
        first = members[0]
        if not first.weight > 0:
            raise LuthierError("the first model of a sum needs a positive weight: the others are measured against it")
        kept = [first, *(m for m in members[1:] if m.weight != 0)]
        common_width([m.model for m in kept], size)
        if trusted is not None and members[trusted[0]] not in kept:
            trusted = None  # it is not run, and what it could hold back adds nothing
        self.trusted = trusted and (kept.index(members[trusted[0]]), trusted[1])
        self.members = kept
        self.models = nn.ModuleList(m.model for m in kept)
        self.size, self.floor, self.plausible, self.top = size, floor, plausible, top

    @property
    def config(self) -> Any:
        return self.models[0].config

    @property
    def generation_config(self) -> Any:
        return getattr(self.models[0], "generation_config", None)

    def get_output_embeddings(self) -> None:
        """None: there is no single head that scores could be cut at."""

    def combine(self, scores: Sequence[Tensor]) -> Tensor:
        """Scores (N, V) of the sum from those of the members, each (N, V of its head), on the first one's device."""
        width = min(self.size or scores[0].shape[-1], *(s.shape[-1] for s in scores)) if scores[1:] else None
        own = scores[0][..., :width]
        z = own if self.members[0].weight == 1 else own * self.members[0].weight
        if scores[1:]:
            offset: Tensor | None = None
            logps = [s.to(own.device)[..., :width].log_softmax(-1) for s in scores[1:]]
            for member, logp in zip(self.members[1:], logps, strict=True):
                part = logp.clamp(min=self.floor) * member.weight
                offset = part if offset is None else offset + part
            assert offset is not None
            if self.trusted is not None:
                at, share = self.trusted
                p = logps[at - 1].exp() if at else own.softmax(-1)
                offset = offset.masked_fill(~in_nucleus(p, share), 0.0)
            z = z + offset
        return z.masked_fill(~self._allowed(own), float("-inf")) if self.plausible or self.top else z

    def _allowed(self, own: Tensor) -> Tensor:
        """Tokens (N, V) that the first model finds plausible; its likeliest one always is."""
        allowed = torch.ones_like(own, dtype=torch.bool)
        if self.plausible:
            allowed &= own.softmax(-1) >= self.plausible * own.softmax(-1).amax(-1, keepdim=True)
        if self.top and self.top < own.shape[-1]:
            allowed &= own >= own.topk(self.top, -1).values[..., -1:]
        return allowed


def common_width(models: Sequence[Any], size: int | None = None) -> int | None:
    """How many scores all models have, None where that is all of each. `size` says how many tokens they share.

    Raises LuthierError where they differ and nobody compared their tokenizers.
    """
    widths = [m.config.vocab_size for m in models]
    if len(set(widths)) == 1:
        return None
    if size is None:
        raise LuthierError(
            f"models of {' and '.join(map(str, dict.fromkeys(widths)))} token scores do not share a vocabulary: only models "
            "with the same tokenizer can be combined"
        )
    return min(size, *widths)


def in_nucleus(p: Tensor, share: float) -> Tensor:
    """The smallest set of likeliest tokens whose mass reaches `share`, as a mask like `p` (..., V)."""
    if share >= 1:
        return torch.ones_like(p, dtype=torch.bool)
    ranked, order = p.sort(-1, descending=True)
    before = ranked.cumsum(-1) - ranked
    return torch.empty_like(p, dtype=torch.bool).scatter_(-1, order, before < share)


def shared_tokens(tokenizers: Sequence[tuple[str, Any]]) -> int:
    """How many tokens all (name, tokenizer) know under the same ids: all but tokens that one of them added at the end.

    Raises LuthierError where two of them differ in any other way.
    """
    (first, ours), *others = tokenizers
    mine = _strings(ours)
    size = len(mine)
    for name, theirs in others:
        found = _strings(theirs)
        odd = next((i for i in sorted(mine.keys() & found.keys()) if mine[i] != found[i]), None)
        if odd is not None:
            raise LuthierError(
                f"'{name}' and '{first}' have different tokenizers (token {odd} is {found[odd]!r} and {mine[odd]!r}): "
                "only models with the same one can be combined"
            )
        shorter = min(len(mine), len(found))
        for extra, whose in ((mine, ours), (found, theirs)):
            added = set(whose.get_added_vocab().values())
            if any(i < shorter or i not in added for i in set(extra) - set(range(shorter))):
                raise LuthierError(
                    f"'{name}' has {len(found)} tokens, '{first}' has {len(mine)}: only models with the same tokenizer "
                    "can be combined"
                )
        size = min(size, shorter)
    return size


def _strings(tokenizer: Any) -> dict[int, str]:
    return {i: token for token, i in tokenizer.get_vocab().items()}
