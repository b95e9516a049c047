"""Constrained SFT: where an answer begins, what no constraint is, and which way its two forms pull."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from luthier.checks._models import PAD, model_of, texts
from luthier.core import catalog
from luthier.core.batch import TextExample, collate_packed, collate_text
from luthier.core.logprobs import Scorer
from luthier.core.method import LuthierError

ConstrainedSFT: Any = catalog.load("objectives", "constrained_sft")
SFT: Any = catalog.load("objectives", "sft")


def _moved(model: nn.Module, by: float = 0.05) -> nn.Module:
    other, draw = copy.deepcopy(model), torch.Generator().manual_seed(2)
    for parameter in other.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
    return other


@pytest.mark.parametrize("collate", [collate_text, lambda rows, pad: collate_packed([rows], pad)])
def test_every_turn_and_every_row_counts_anew(collate: Any) -> None:
    turns = [False] * 3 + [True] * 4 + [False] * 2 + [True] * 3
    rows = [TextExample(0, list(range(5, 17)), turns), TextExample(1, list(range(3, 9)), [False] + [True] * 5)]
    batch = collate(rows, PAD)
    assert batch.place_in_run.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]


def test_without_a_constraint_it_is_sft_at_any_distance() -> None:
    model, batch = model_of("llama").double(), collate_text(list(texts()), PAD)
    wanted = SFT().compute(Scorer(model), batch)
    for form in ("ratio", "kl"):
        found = ConstrainedSFT(beta=(0.0, 0.0), later=0.0, form=form).compute(
            Scorer(model, beside=_moved(model)), batch
        )
        torch.testing.assert_close(found.sum, wanted.sum, rtol=1e-12, atol=0)
        assert found.weight == wanted.weight


def test_a_token_that_gained_is_pulled_by_twice_the_sigmoid() -> None:
    """d loss / d log pi = -2 sigmoid(-beta x) for each token, never positive: it stops pulling and does not pull back."""
    model, beta = model_of("llama").double(), 3.0
    batch, other = collate_text(list(texts()), PAD), _moved(model)
    logp, ref = (Scorer(m).token_logp(batch) for m in (model, other))
    loss = ConstrainedSFT(beta=(), later=beta).compute(Scorer(model, beside=other), batch)
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    (found,) = torch.autograd.grad(loss.sum, weight)
    share = 2 * torch.sigmoid(-beta * (logp - ref)).detach()
    (wanted,) = torch.autograd.grad(-(share * logp).sum(), weight)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)
    assert float(share.min()) < 0.9 < 1.1 < float(share.max()), "no token is far enough from the reference to tell"


def test_a_negative_strength_is_refused() -> None:
    for options in ({"beta": (1.0, -1.0)}, {"later": -0.1}):
        with pytest.raises(LuthierError, match="cannot be negative"):
            ConstrainedSFT(**options)
