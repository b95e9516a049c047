"""What a teacher says, stored: its k likeliest tokens at every position that is trained on, asked once and kept on disk.

    ids    (N, k) int32     the k likeliest tokens at each scored position, likeliest first
    logp   (N, k) float16   their log-probabilities under the whole distribution, not below FLOOR
    predicts (N,) int32     place, in its own sequence, of the token that the row is about: the teacher read what is before it
    starts (E + 1,) int64   rows starts[e] .. starts[e + 1] are those of example e
    keys   (E,) int64       hash of each example's tokens and of which of them count: template and truncation are part of it

6 k bytes a position, against 2 V for a whole distribution in half precision. Padding is never a row. Rows are found again by
an example's hash, so one file serves any order, any part of its examples and every epoch.

E examples, N scored positions, k tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from luthier.core.batch import Example, SourceTargetExample, TextExample, collate_source_target, collate_text
from luthier.core.logprobs import Columns, Scorer
from luthier.core.method import LuthierError
from luthier.core.mixture import FLOOR, shared_tokens
from luthier.core.runs import hash_tensors, write_whole
from luthier.core.sources import cache_folder
from luthier.core.subject import at_rest

SUFFIX = ".safetensors"
TENSORS = ("ids", "logp", "predicts", "starts", "keys")
Top = tuple[Tensor, Tensor]
"""Tokens (n, k) long and their log-probabilities (n, k) float32 at the n scored positions of an example."""


@dataclass(frozen=True)
class TeacherStore:
    """The stored answers. `about` tells the hashes of teacher, data and vocabulary, and how many tokens there are."""

    ids: Tensor
    logp: Tensor
    predicts: Tensor
    starts: Tensor
    keys: Tensor
    about: dict[str, str]

    @classmethod
    def load(cls, path: str | Path) -> TeacherStore:
        """Raises LuthierError for a file that is none."""
        try:
            with safe_open(str(path), "pt") as held:
                ids, logp, predicts, starts, keys = (held.get_tensor(n) for n in TENSORS)
                return cls(ids, logp, predicts, starts, keys, held.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise LuthierError(f"{path}: no teacher store: {str(error).splitlines()[0]}") from error

    def save(self, path: Path) -> None:
        """A whole file or none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(self, name).contiguous() for name in TENSORS}
        write_whole(path, lambda part: save_file(tensors, part, self.about))

    @cached_property
    def _at(self) -> dict[int, int]:
        return {key: e for e, key in enumerate(self.keys.tolist())}

    def of(self, examples: Sequence[Example]) -> list[Top]:
        """What the teacher said of each example. Raises LuthierError for one that it was not asked about."""
        out = []
        for example in examples:
            e = self._at.get(example_key(example))
            if e is None:
                raise LuthierError(
                    f"the teacher was not asked about row {example.row}: its store is of other rows, another template or "
                    "another max_length; make it anew"
                )
            rows = slice(int(self.starts[e]), int(self.starts[e + 1]))
            out.append((self.ids[rows].long(), self.logp[rows].float()))
        return out

    def cut(self, k: int) -> TeacherStore:
        """The first k tokens of each row. Raises LuthierError where fewer were stored."""
        if k > (stored := self.ids.shape[1]) and stored < int(self.about.get("tokens", stored)):
            raise LuthierError(
                f"the teacher's store holds {stored} tokens a position, not {k}: make it anew, or lower k"
            )
        return replace(self, ids=self.ids[:, :k], logp=self.logp[:, :k])

    def captured(self) -> dict[str, float]:
        """How much of the teacher's probability its k tokens hold, over positions."""
        mass = self.logp.float().logsumexp(-1).exp().clamp(max=1).double().numpy()
        low = float((mass < 0.9).mean())
        return {"mean": float(mass.mean()), "fifth_percentile": float(np.percentile(mass, 5)), "share_below_0.9": low}


def example_key(example: Example) -> int:
    """64 bits of a hash of what the teacher reads and is asked about."""
    if isinstance(example, TextExample):
        parts: tuple[Any, ...] = (example.ids, predicted(example))
    elif isinstance(example, SourceTargetExample):
        parts = (example.ids, example.target)
    else:
        raise LuthierError(f"a teacher's tokens are stored for texts, not for a {type(example).__name__}")
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(4, "little") + np.asarray(part, dtype=np.int32).tobytes())
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


def predicted(example: Example) -> list[int]:
    """Places of the tokens that count, each in its own sequence: what the scored positions of a batch predict, in order."""
    if isinstance(example, SourceTargetExample):
        return list(range(len(example.target)))
    assert isinstance(example, TextExample)
    return [t for t, counts in enumerate(example.counts) if counts and t > 0]


def vocabulary_hash(tokenizer: Any) -> str:
    """sha256 over tokens and their ids."""
    rows = sorted((i, token) for token, i in tokenizer.get_vocab().items())
    return hashlib.sha256("\n".join(f"{i}\t{token}" for i, token in rows).encode()).hexdigest()


def tokens_in_common(ours: tuple[str, Any], theirs: tuple[str, Any]) -> int:
    """How many token ids two (name, tokenizer) share. Raises LuthierError, naming the first token that differs."""
    if vocabulary_hash(ours[1]) == vocabulary_hash(theirs[1]):
        return len(ours[1])
    return shared_tokens([ours, theirs])


@torch.no_grad()
def ask(teacher: Any, examples: Sequence[Example], k: int, pad: int, vocabulary: str = "", tokens: int = 0,
        size: int = 16) -> TeacherStore:  # fmt: skip
    """The teacher's k likeliest tokens at every scored position of the examples.

    tokens  only tokens below this id are listed (rows that pad an embedding table are no tokens); 0: all
    size    examples a batch
    """
    V: int = tokens or teacher.config.vocab_size
    k = min(k, V)
    scorer, start = Scorer(teacher), getattr(teacher.config, "decoder_start_token_id", None) or 0
    unique = list({example_key(e): e for e in examples}.values())
    order = sorted(range(len(unique)), key=lambda i: (len(unique[i]), i))
    found: list[Tensor] = [torch.empty(0)] * len(unique)

    def top(logits: Tensor, target: Tensor) -> Columns:
        logp, ids = logits.log_softmax(-1)[:, :V].topk(k)
        return (*ids.to(logp).unbind(-1), *logp.unbind(-1))  # a float32 holds every id below 2^24

    with at_rest(teacher):
        for at in range(0, len(order), size):
            rows = order[at : at + size]
            some: list[Any] = [unique[i] for i in rows]
            text = isinstance(some[0], TextExample)
            batch = (collate_text(some, pad) if text else collate_source_target(some, pad, start)).to(scorer.device)
            columns = torch.stack(scorer.read(batch, top), -1).cpu()  # (n, 2k)
            for i, part in zip(rows, columns.split([len(predicted(e)) for e in some]), strict=True):
                found[i] = part
    both = torch.cat(found)
    counts = [len(part) for part in found]
    about = {
        "teacher": hash_tensors(teacher.state_dict().items()), "data": _data_hash(unique), "vocabulary": vocabulary,
        "tokens": str(V),
    }  # fmt: skip
    return TeacherStore(
        both[:, :k].int(), both[:, k:].clamp(min=FLOOR).half(),
        torch.tensor([t for e in unique for t in predicted(e)], dtype=torch.int32),
        torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64),
        torch.tensor([example_key(e) for e in unique], dtype=torch.int64), about,
    )  # fmt: skip


def asked(teacher: Any, examples: Sequence[Example], k: int, pad: int, vocabulary: str = "", tokens: int = 0,
          size: int = 16) -> tuple[TeacherStore, bool]:  # fmt: skip
    """`ask` by way of the cache, and whether it was there already: by the hash of teacher, data, vocabulary and k."""
    parts = (hash_tensors(teacher.state_dict().items()), _data_hash(examples), vocabulary, str(k), str(tokens))
    file = cache_folder() / "teachers" / f"{hashlib.sha256('/'.join(parts).encode()).hexdigest()}{SUFFIX}"
    if file.exists():
        return TeacherStore.load(file), True
    store = ask(teacher, examples, k, pad, vocabulary, tokens, size)
    store.save(file)
    return store, False


def _data_hash(examples: Sequence[Example]) -> str:
    keys = np.unique(np.array([example_key(e) for e in examples], dtype=np.int64))
    return hashlib.sha256(keys.tobytes()).hexdigest()
