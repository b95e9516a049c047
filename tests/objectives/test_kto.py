"""KTO: its reference point is the whole step's, whatever the step is split into; single and paired answers agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from luthier.checks._models import PAD, groups, model_of
from luthier.core import catalog
from luthier.core.batch import GroupExample, collate_groups
from luthier.core.config import TrainSettings
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop
from luthier.core.method import LuthierError
from luthier.core.references import References
from luthier.objectives._family import PointLogp

torch.set_num_threads(1)


def objective(**options: Any) -> Any:
    return replace(catalog.load("objectives", "kto").example(), **options)


def losses(gain: list[float], good: list[bool], z: float, **options: Any) -> torch.Tensor:
    logp = torch.tensor(gain, dtype=torch.float64)
    return objective(**options).loss(PointLogp(logp, torch.zeros_like(logp), torch.tensor(good), torch.tensor([z])))


def test_reference_point_is_never_negative() -> None:
    assert losses([1.0, 2.0], [True, False], -5.0).tolist() == losses([1.0, 2.0], [True, False], 0.0).tolist()
    assert losses([1.0], [True], 3.0) > losses([1.0], [True], 0.0)
    assert losses([1.0], [False], 3.0) < losses([1.0], [False], 0.0)


def test_weights_and_start() -> None:
    found = losses([0.0, 0.0], [True, False], 0.0, desirable_weight=1.5, undesirable_weight=0.5)
    assert found.tolist() == [0.75, 0.25]


def test_one_kind_alone_is_finite() -> None:
    for good in (True, False):
        assert torch.isfinite(losses([1000.0, -1000.0], [good, good], 2.0)).all()


def test_mismatched_answers_are_of_other_prompts_and_of_the_row_alone() -> None:
    rows = [GroupExample(i, [10 + i % 3], [[20 + i, 21 + i][: 1 + i % 2]], [1.0]) for i in range(9)]
    found = objective().companions(rows)
    of = {tuple(a): e.prompt for e in rows for a in e.answers}
    for e, c in zip(rows, found, strict=True):
        assert (c.row, c.prompt, len(c.answers)) == (e.row, e.prompt, 1)
        assert of.get(tuple(c.answers[0]), [0]) != e.prompt
    assert objective().companions(rows) == found
    long = [GroupExample(0, list(range(5, 15)), [[1, 2]]), GroupExample(1, [3], [[4] * 9])]
    assert [len(e.prompt) + len(e.answers[0]) for e in objective().companions(long)] == [12, 3]
    with pytest.raises(LuthierError, match="same prompt"):
        objective().companions([GroupExample(i, [7], [[i]]) for i in range(4)])


def fit(examples: list[GroupExample], size: int, pieces: int, steps: int = 3) -> tuple[list[float], torch.Tensor]:
    method, tuner = objective(beta=0.5), catalog.load("tuners", "full")()
    settings = TrainSettings(
        max_steps=steps, per_device_train_batch_size=size, gradient_accumulation_steps=pieces, optim="sgd", learning_rate=0.5,
        warmup_ratio=0.0, lr_scheduler_type="constant", logging_steps=1, max_grad_norm=0.0,
    )  # fmt: skip
    model = model_of("llama")
    with torch.no_grad():
        logp = [
            [Scorer(model).answer_logp(collate_groups([e], PAD)) - 3 for e in rows]  # a reference that expects less
            for rows in (examples, objective().companions(examples))
        ]
    loop = Loop(tuner.wrap(model, "causal_lm", 0), tuner, method, examples, settings, PAD, references=References(*logp))
    log = loop.fit().log
    return [r["loss"] for r in log if "loss" in r], model.lm_head.weight.detach()


def test_a_step_may_be_split_in_any_way() -> None:
    """With a reference point that is at work, one micro-batch of six and six of one give the same steps."""
    examples = list(groups(6))
    (one, a), (six, b), (three, c) = fit(examples, 6, 1), fit(examples, 1, 6), fit(examples, 2, 3)
    assert one == pytest.approx(six, rel=1e-5)
    assert one == pytest.approx(three, rel=1e-5)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-6)
    assert one[0] == pytest.approx(0.5, abs=1e-5), "gain and reference point are both 3"


def test_a_pair_is_its_two_answers_apart() -> None:
    """With the same reference point, pairs and single rows give the same sum: no order of scores is lost or added."""
    pairs = [replace(e, scores=[7.0, 5.0]) for e in groups(4)]
    apart = [GroupExample(2 * e.row + k, e.prompt, [a], [1.0 - k]) for e in pairs for k, a in enumerate(e.answers)]
    model, found = model_of("llama"), []
    for rows in (pairs, apart):
        batch = collate_groups(rows, PAD)
        batch.reference = torch.linspace(-20, -8, 8)
        batch.shared = torch.tensor([1.5])
        loss = objective().compute(Scorer(model), batch)
        assert loss.weight == 8
        found.append(float(loss.sum.detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
