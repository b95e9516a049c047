"""Losses of ranked answers: where they are pairs, what they do not depend on, and how AFT holds the worse ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.checks._models import PAD, model_of
from luthier.core import catalog
from luthier.core.batch import GroupExample, TextExample, collate_groups, collate_text
from luthier.core.logprobs import Scorer
from luthier.objectives._family import Group

ALL = ("rrhf", "pro", "aft")


def objective(name: str, **options: Any) -> Any:
    return replace(catalog.load("objectives", name).example(), **options)


def loss(s: Tensor | list[float], scores: list[float], name: str = "aft", **options: Any) -> Tensor:
    """Of answers of one token."""
    s = torch.as_tensor(s, dtype=torch.float64)
    return objective(name, **({"sft_weight": 0.0} | options)).loss(Group(s, torch.ones_like(s), torch.tensor(scores)))


def slopes(s: list[float], scores: list[float], name: str = "aft", **options: Any) -> list[float]:
    told = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(loss(told, scores, name, **options), told)[0].tolist()


def test_two_answers() -> None:
    """Of one better and one worse answer AFT and PRO are the logistic loss of a pair, RRHF the hinge without a margin."""
    for won, lost in ((-1.0, -2.0), (-2.0, -1.0)):
        logistic = math.log1p(math.exp(lost - won))
        assert float(loss([won, lost], [1, 0], constraint="none")) == pytest.approx(logistic)
        assert float(loss([won, lost], [1, 0], "pro")) == pytest.approx(logistic)
        assert float(loss([won, lost], [1, 0], "rrhf")) == pytest.approx(max(0, lost - won))
        sharp = math.log1p(math.exp(3 * (lost - won)))
        assert float(loss([won, lost], [4, 1], "pro")) == pytest.approx(sharp)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("w", [0.0, 0.7])
def test_answers_of_one_kind_are_imitation_alone(name: str, w: float) -> None:
    for scores in ([1.0], [0.0, 0.0, 0.0], [2.0, 2.0]):
        s = [-1.5, -0.5, -3.0][: len(scores)]
        assert float(loss(s, scores, name, sft_weight=w)) == pytest.approx(w * 1.5)


@pytest.mark.parametrize("name", ALL)
def test_order_of_answers_does_not_matter(name: str) -> None:
    s, scores = [-1.0, -0.4, -2.0, -0.9], [3.0, 1.0, 1.0, 0.0]
    wanted = float(loss(s, scores, name, sft_weight=0.3))
    for order in ([3, 1, 0, 2], [2, 3, 1, 0]):
        turned = loss([s[i] for i in order], [scores[i] for i in order], name, sft_weight=0.3)
        assert float(turned) == pytest.approx(wanted)


def test_a_second_copy_of_a_worse_answer_counts_twice() -> None:
    s = [-1.0, -0.4]
    one, two = loss(s, [1, 0], constraint="none"), loss([*s, -0.4], [1, 0, 0], constraint="none")
    assert float(two.exp() - 1) == pytest.approx(2 * float(one.exp() - 1))


def test_scores_only_order_in_aft() -> None:
    """Two levels of a ranking are right and wrong."""
    s = [-1.0, -0.4, -2.0]
    for constraint in ("none", "detached", "boundary"):
        binary = loss(s, [1, 1, 0], constraint=constraint)
        assert float(loss(s, [9.0, 9.0, -4.0], constraint=constraint)) == pytest.approx(float(binary))


def test_boundary() -> None:
    """No slope on a worse answer at beta under the lowest better one; down above it, up below; nothing through T."""
    beta, right = 0.15, [-0.5, -0.9]
    for offset, sign in ((0.0, 0), (0.2, 1), (-0.2, -1)):
        slope = slopes([*right, -0.9 - beta + offset], [1, 1, 0], beta=beta)[2]
        assert slope == pytest.approx(0, abs=1e-9) if sign == 0 else slope * sign > 1e-3
    s = torch.tensor([-0.5, -0.9, -1.2], dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(loss(s, [1, 1, 0], beta=beta), s)[0]
    z = loss(s.detach(), [1, 1, 0], beta=beta).exp()
    wanted = [-(s[2] - s[p]).exp() / z for p in (0, 1)]  # exp(s_n - s_p) alone depends on s_p
    torch.testing.assert_close(gradient[:2], torch.stack(wanted).detach())
    wide = loss([-0.5, -0.9, -1.2], [1, 1, 0], beta=60.0)
    assert float(wide) == pytest.approx(float(loss([-0.5, -0.9, -1.2], [1, 1, 0], constraint="none")))


YARDSTICKS = {"aft": ({"constraint": "detached"}, {"constraint": "none"}), "rrhf": ({"detached": True}, {}),
              "pro": ({"detached": True}, {})}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_a_yardstick_gets_no_gradient(name: str) -> None:
    s = [-1.0, -2.0, -0.3]
    bound, free = (slopes(s, [1, 1, 0], name, **options) for options in YARDSTICKS[name])
    assert bound[2] == 0 < free[2]
    assert bound[:2] == pytest.approx(free[:2])
    assert min(free[0], free[1]) < 0


def test_detached_negatives_leave_their_own_tokens_alone() -> None:
    """Tokens that occur in worse answers only: their output rows move by the softmax of others, not as targets."""
    model = model_of("llama")
    example = GroupExample(0, [10, 11], [[20, 21], [30, 31]], [1.0, 0.0])
    alone = GroupExample(0, [10, 11], [[20, 21]], [1.0])
    gradients = {}
    for constraint in ("detached", "none"):
        told = objective("aft", constraint=constraint, sft_weight=0.0)
        found = told.compute(Scorer(model), collate_groups([example], PAD)).sum
        gradients[constraint] = torch.autograd.grad(found, model.lm_head.weight)[0]
    positive = Scorer(model).answer_logp(collate_groups([alone], PAD)).sum()
    direction = torch.autograd.grad(positive, model.lm_head.weight)[0]
    for constraint, along in (("detached", True), ("none", False)):
        found = gradients[constraint]
        left = found - direction * (found * direction).sum() / (direction * direction).sum()
        assert (float(left.norm() / found.norm()) < 1e-5) == along  # nothing but a multiple of the better answer's


@pytest.mark.parametrize("name", ALL)
def test_one_answer_is_sft_on_it(name: str) -> None:
    model = model_of("llama")
    example = GroupExample(0, [10, 11, 12], [[20, 21, 22]], [1.0])
    text = collate_text([TextExample(0, [10, 11, 12, 20, 21, 22], [False] * 3 + [True] * 3)], PAD)
    found = objective(name, sft_weight=1.0).compute(Scorer(model), collate_groups([example], PAD))
    wanted = objective("sft").compute(Scorer(model), text)
    torch.testing.assert_close(found.sum / found.weight, wanted.sum / wanted.weight)


def test_a_long_wrong_answer_does_not_look_bad_for_its_length() -> None:
    """s is a mean: an answer twice as long with the same probability a token has the same s."""
    one = Group(torch.tensor([-2.0, -4.0]), torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.0]))
    assert one.means.tolist() == [-1.0, -1.0]
    assert float(objective("aft", constraint="none", sft_weight=0.0).loss(one)) == pytest.approx(math.log(2))


def test_figures_count_ordered_pairs() -> None:
    model = model_of("llama")
    rows = [
        GroupExample(0, [10, 11], [[20, 21], [30], [40]], [1.0, 0.0, 0.0]),
        GroupExample(1, [12], [[5], [6]], [1.0, 1.0]),
    ]
    found = objective("aft").compute(Scorer(model), collate_groups(rows, PAD)).figures
    right, asked = found["assessment/accuracy"]
    s = Scorer(model).answer_logp(collate_groups(rows[:1], PAD)) / torch.tensor([2.0, 1.0, 1.0])
    assert asked == 1  # the second prompt orders nothing
    assert float(right) == pytest.approx(float((s[0] > s[1:]).float().mean()))
    assert found["logps/worse"][1] == 2
