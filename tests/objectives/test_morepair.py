"""MORepair: two objectives on two continuations of one prompt, weighed as stated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from luthier import data
from luthier.checks._models import PAD, groups, model_of
from luthier.checks.data import vocabulary
from luthier.core import catalog
from luthier.core.batch import Batch, GroupExample, TextExample, collate_groups, collate_text, first_answers
from luthier.core.logprobs import Scorer
from luthier.core.method import LuthierError, RowError

ROWS = list(groups(6))
MOREPAIR: Any = catalog.load("objectives", "morepair")
SFT: Any = catalog.load("objectives", "sft")()


def alone(k: int) -> Batch:
    """The k-th answers as texts of their own."""
    return collate_text(
        [
            TextExample(e.row, e.prompt + e.answers[k], [False] * len(e.prompt) + [True] * len(e.answers[k]))
            for e in ROWS
        ],
        PAD,
    )


def loss(objective: Any, batch: Batch, model: Any = None) -> torch.Tensor:
    said = objective.compute(Scorer(model or model_of("llama")), batch)
    return said.sum / said.weight


def test_no_guidance_is_sft_on_repairs_to_the_last_bit() -> None:
    """One plain forward pass over prompt and repair; what the guided repairs are does not matter."""
    objective = MOREPAIR(guidance=0.0).for_examples(ROWS)
    wanted = loss(SFT, alone(0))
    model, shapes = model_of("llama"), []
    model.register_forward_hook(lambda m, a, k, out: shapes.append(tuple(k["input_ids"].shape)), with_kwargs=True)
    assert torch.equal(loss(objective, collate_groups(ROWS, PAD, share_prompt=False), model), wanted)
    assert shapes[-1] == tuple(alone(0).ids.shape)
    others = [replace(e, answers=[e.answers[0], f.answers[1]]) for e, f in zip(ROWS, ROWS[::-1], strict=True)]
    assert torch.equal(loss(objective, collate_groups(others, PAD, share_prompt=False)), wanted)
    torch.testing.assert_close(loss(objective, collate_groups(ROWS, PAD)), wanted)
    torch.testing.assert_close(loss(objective, collate_groups(ROWS, PAD, "left", share_prompt=False)), wanted)


@pytest.mark.parametrize("guidance", [0.4, 1.0])
def test_losses_and_gradients_are_weighted_means(guidance: float) -> None:
    objective = MOREPAIR(guidance=guidance).for_examples(ROWS)
    model = model_of("llama").double()
    parameters = list(model.parameters())
    parts = [loss(SFT, alone(k), model) for k in (0, 1)]
    whole = loss(objective, collate_groups(ROWS, PAD), model)
    torch.testing.assert_close(whole, (parts[0] + guidance * parts[1]) / (1 + guidance), rtol=1e-10, atol=0)
    first, second, found = (torch.autograd.grad(x, parameters) for x in (*parts, whole))
    for a, b, c in zip(first, second, found, strict=True):
        torch.testing.assert_close(c, (a + guidance * b) / (1 + guidance), rtol=1e-5, atol=1e-6)


def test_swapping_the_answers_changes_nothing_at_guidance_one() -> None:
    """On part of the rows as well, where the tokens of both are counted over all of them."""
    turned = [replace(e, answers=e.answers[::-1]) for e in ROWS]
    one, other = (MOREPAIR().for_examples(rows) for rows in (ROWS, turned))
    for some in (slice(0, 6), slice(1, 3)):
        a, b = loss(one, collate_groups(ROWS[some], PAD)), loss(other, collate_groups(turned[some], PAD))
        torch.testing.assert_close(a, b)


def test_a_long_reason_weighs_no_more_than_a_short_repair() -> None:
    """Where every token costs the same, the tokens of both sides weigh 1 : guidance whatever their numbers."""
    long = [replace(e, answers=[e.answers[0], e.answers[1] * 5]) for e in ROWS]
    objective = MOREPAIR(guidance=1.0).for_examples(long)
    batch = collate_groups(long, PAD)
    repairs = sum(len(e.answers[0]) for e in long)
    assert objective.weight(batch) == pytest.approx(2 * repairs)


def test_rows_must_be_counted() -> None:
    with pytest.raises(LuthierError, match="for_examples"):
        loss(MOREPAIR(), collate_groups(ROWS, PAD))
    with pytest.raises(LuthierError, match="not be negative"):
        MOREPAIR(guidance=-1.0)


def test_first_answers_keep_their_numbers() -> None:
    batch = first_answers(collate_groups(ROWS, PAD), 2)
    assert batch.tokens == sum(len(e.prompt) + len(e.answers[0]) for e in ROWS)
    assert set(batch.owner.tolist()) == set(range(0, 12, 2))
    said = Scorer(model_of("llama")).answer_logp(batch)[::2]
    torch.testing.assert_close(said, Scorer(model_of("llama")).answer_logp(alone(0)), rtol=2e-5, atol=2e-5)


def test_rows() -> None:
    """Three columns; both answers end with a trained end token; a prompt alone is not trained."""
    tokenizer = vocabulary()
    kind: Any = catalog.load("data", "repairs")()
    row = {"prompt": "fix: a - b ->", "repair": " a + b", "guided_repair": " a + b because the sign is wrong"}
    found: GroupExample = kind.encode(row, 0, tokenizer)
    assert [tokenizer.decode(a) for a in found.answers] == [f"{row[k]}<|end|>" for k in ("repair", "guided_repair")]
    assert tokenizer.decode(found.prompt) == row["prompt"]
    for broken in ({**row, "guided_repair": None}, {**row, "guided_repair": row["repair"]}):
        with pytest.raises(RowError):
            kind.encode(broken, 0, tokenizer)


def test_detected_in_a_file(tmp_path: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "fix a ->", "repair": " b", "guided_repair": " b as a is wrong"}\n')
    assert data.prepare(str(file), tokenizer=vocabulary()).source.name == "repairs"
