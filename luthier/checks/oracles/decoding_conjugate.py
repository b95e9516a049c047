"""Renaming signs is renaming rows: a model with permuted embeddings and head says of the plain prompt the same."""

from __future__ import annotations

import copy
from typing import Any

import torch

from luthier.checks._compare import require
from luthier.checks._models import FIRST_WORD, PAD, VOCABULARY
from luthier.checks.decoding import PROMPTS, worlds
from luthier.checks.oracles._decoding import method
from luthier.core.method import Limits
from luthier.sandbox.tokens import word_tokenizer

WORDS = [f"w{i}" for i in range(FIRST_WORD, VOCABULARY)]
ORDER = torch.arange(VOCABULARY)
ORDER[FIRST_WORD:] = FIRST_WORD + torch.randperm(len(WORDS), generator=torch.Generator().manual_seed(0))
PAIRS = {f"w{i}": f"w{int(ORDER[i])}" for i in range(FIRST_WORD, VOCABULARY)}


@torch.no_grad()
def _renamed(model: Any) -> Any:
    """A copy in which token t has the rows of token ORDER[t]."""
    other = copy.deepcopy(model)
    tables = {t.data_ptr(): t for t in (other.get_input_embeddings().weight, other.get_output_embeddings().weight)}
    for table in tables.values():
        table.copy_(table[ORDER].clone())
    return other


def oracle_renamed_rows() -> None:
    tokenizer = word_tokenizer(WORDS)
    decoder = method(__name__, transform={"name": "alphabet_map", "pairs": PAIRS}).for_tokenizer(tokenizer)
    plain = method(__name__)
    for world in worlds(decoder):
        model = world.model()
        limits = Limits(max_new_tokens=7, pad_id=PAD, stop_ids=(tokenizer.eos_token_id,))
        found, wanted = decoder.generate(model, PROMPTS, limits), plain.generate(_renamed(model), PROMPTS, limits)
        for a, b in zip(found, wanted, strict=True):
            require((a.ids, a.stopped) == (b.ids, b.stopped), f"{world.label}: {a.ids}, with renamed rows {b.ids}")
            require(abs(a.logp - b.logp) < 1e-4, f"{world.label}: logp {a.logp}, with renamed rows {b.logp}")
        before = plain.generate(model, PROMPTS, limits)
        moved = any(abs(a.logp - b.logp) > 1e-3 for a, b in zip(found, before, strict=True))
        require(moved, f"{world.label}: the transform changed nothing, so nothing was compared")
