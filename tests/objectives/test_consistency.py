"""Consistency over wordings: rows as groups, what pulls wordings together, and the measure of their spread."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from luthier import data
from luthier.checks._models import PAD, model_of, wordings
from luthier.checks.data import vocabulary
from luthier.core import catalog
from luthier.core.batch import GroupExample, TextExample, collate_groups, collate_text
from luthier.core.logprobs import Scorer
from luthier.core.method import LuthierError, RowError
from luthier.evaluation._family import items_of

ROWS = list(wordings(5, 3))
CONSISTENCY: Any = catalog.load("objectives", "consistency")
ALIGNS = ("hidden", "output_kl", "similarity_kl")


def computed(objective: Any, rows: list[Any], model: Any = None, share: bool = True) -> Any:
    return objective.compute(Scorer(model or model_of("llama")), collate_groups(rows, PAD, share_prompt=share))


def test_without_alignment_it_is_the_mean_over_wordings() -> None:
    found = computed(CONSISTENCY(alpha=0.0), ROWS)
    total = torch.zeros(())
    for e in ROWS:
        for answer, g in zip(e.answers, e.given, strict=True):
            counts = [t >= len(e.prompt) + g for t in range(len(e.prompt) + len(answer))]
            logp = Scorer(model_of("llama")).token_logp(collate_text([TextExample(0, e.prompt + answer, counts)], PAD))
            total = total - logp.mean().detach() / 3
    torch.testing.assert_close(found.sum.detach(), total, rtol=2e-5, atol=2e-5)
    assert found.weight == 5


@pytest.mark.parametrize("align", ALIGNS)
def test_equal_wordings_agree(align: str) -> None:
    same = [replace(e, answers=[e.answers[0]] * 3, given=[e.given[0]] * 3) for e in ROWS]  # type: ignore[index]
    model = model_of("llama")
    found = computed(CONSISTENCY(alpha=1.0, align=align, stop_gradient=False), same, model)
    assert abs(float(found.sum)) < 1e-5
    found.sum.backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) < 1e-4
    other = computed(CONSISTENCY(alpha=1.0, align=align), ROWS)
    assert float(other.sum) > 1e-3


@pytest.mark.parametrize("align", ALIGNS)
def test_layouts_and_the_order_of_rows(align: str) -> None:
    objective = CONSISTENCY(align=align)
    whole = computed(objective, ROWS).sum.detach()
    for found in (computed(objective, ROWS, share=False), computed(objective, ROWS[::-1])):
        torch.testing.assert_close(found.sum.detach(), whole, rtol=2e-5, atol=2e-5)


def test_neighbourhoods_do_not_turn_or_move() -> None:
    """similarity_kl is the same after rotating and shifting all states."""
    objective = CONSISTENCY(align="similarity_kl")
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(12, 6, generator=rng, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=rng, dtype=torch.float64))[0]
    first, counts = torch.arange(0, 12, 3).repeat_interleave(3), torch.full((4,), 3)
    one = objective.gaps(states, states, first, counts)
    torch.testing.assert_close(objective.gaps(states @ turn + 3.0, states, first, counts), one)
    assert one.view(4, 3)[:, 0].abs().max() == 0
    assert (one.view(4, 3)[:, 1:] > 0).all()
    assert not objective.gaps(states[:3], states[:3], first[:3], counts[:1]).any(), "a row alone has no neighbours"
    with pytest.raises(LuthierError, match="equally many"):
        objective.gaps(states[:5], states[:5], first[:5], torch.tensor([3, 2]))


def test_the_reference_wording_stands_still_where_asked() -> None:
    """With one row of two wordings, the pull on the reference's own words is gone."""
    for stop in (True, False):
        model = model_of("llama")
        row = GroupExample(0, [], [[20, 21, 9], [30, 31, 9]], given=[2, 2])
        computed(CONSISTENCY(alpha=1.0, align="hidden", stop_gradient=stop), [row], model, share=False).sum.backward()
        moved = model.get_input_embeddings().weight.grad.abs().sum(1)
        assert (moved[[20, 21]] > 0).any() == (not stop)
        assert (moved[[30, 31]] > 0).all()


def test_only_a_soft_prompt_moves() -> None:
    from luthier.core.config import TrainSettings
    from luthier.core.loop import Loop
    from luthier.tuners.prompt_tuning import PromptTuning

    model, tuner = model_of("llama"), PromptTuning(tokens=4)
    before = {n: p.clone() for n, p in model.named_parameters()}
    wrapped: Any = tuner.wrap(model, "causal_lm", 0)
    settings = TrainSettings(max_steps=2, per_device_train_batch_size=3, learning_rate=0.05)
    Loop(wrapped, tuner, CONSISTENCY(), ROWS, settings, PAD).fit()
    moving = [p for p in wrapped.parameters() if p.requires_grad]
    assert [tuple(p.shape) for p in moving] == [(4, 32)]
    base = {n.replace("base_layer.", ""): p for n, p in wrapped.get_base_model().named_parameters()}
    assert all(torch.equal(base[n], p) for n, p in before.items())


def test_rows_of_wordings(tmp_path: Any) -> None:
    tokenizer = vocabulary()
    kind: Any = catalog.load("data", "wordings")()
    row = {"prompts": ["Please sort: b a ->", "Please put in order: b a ->"], "completion": " a b"}
    e: GroupExample = kind.encode(row, 0, tokenizer)
    assert [tokenizer.decode(e.prompt + a[:g]) for a, g in zip(e.answers, e.given, strict=True)] == row["prompts"]
    assert {tokenizer.decode(a[g:]) for a, g in zip(e.answers, e.given, strict=True)} == {" a b<|end|>"}
    chat: GroupExample = kind.encode({"prompts": [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]],
                                      "completion": [{"role": "assistant", "content": "c"}]}, 0, tokenizer)  # fmt: skip
    assert [tokenizer.decode(chat.prompt + a) for a in chat.answers] == [
        f"<|user|>{x}<|assistant|>c<|end|>" for x in "ab"
    ]
    for broken in ({"prompts": [], "completion": "a"}, {"prompts": "[", "completion": "a"}, {"completion": "a"}):
        with pytest.raises(RowError):
            kind.encode(broken, 0, tokenizer)
    with pytest.raises(RowError, match="max_length"):
        replace(kind, max_length=4).encode(row, 0, tokenizer)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompts": ["a ->", "b c ->"], "completion": " d"}\n')
    cached = [data.prepare(str(file), tokenizer=tokenizer, cache_dir=tmp_path) for _ in range(2)]
    assert cached[1].report.cache["reused"]
    assert cached[0].examples == cached[1].examples
    assert cached[0].report.trained_tokens == 4
    assert cached[0].source.name == "wordings"


def test_spread_is_exactly_zero_where_instructions_are_not_read() -> None:
    class Deaf:
        def generate(self, prompts: list[str], *more: Any) -> list[str]:
            return [p.split()[-1] if int(p.split()[-1]) % 3 else "?" for p in prompts]

    method = catalog.load("evaluation", "instruction_spread")()
    rows = [{"prompts": [f"{w} {i}" for w in "abcde"], "answer": str(i), "task": str(i % 2)} for i in range(30)]
    answers = method.ask(Deaf(), items_of(rows))
    weights = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(float)
    assert (method.aggregate("spread", answers)(answers.stats, weights) == 0.0).all()
    assert set(method.table(answers)) == {"accuracy", "spread", "worst", "best"}
    rows[3]["prompts"] = ["a 3"]
    with pytest.raises(LuthierError, match="1 to 5 wordings"):
        method.ask(Deaf(), items_of(rows))
