"""FIRST: what its calibrations keep, where its loss is zero, and what it becomes when nothing is left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.checks._models import PAD, model_of, texts
from luthier.core import catalog
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop
from luthier.core.method import LuthierError
from luthier.core.references import References
from luthier.core.teacher import ask

torch.set_num_threads(1)
CALIBRATIONS = [("none", 1.0), ("smoothing", 0.1), ("smoothing", 2.0), ("temperature", 2.0), ("probabilities", 0.3)]
V, TARGET = 30, torch.zeros(8, dtype=torch.long)


def objective(name: str = "first", **options: Any) -> Any:
    return replace(catalog.load("objectives", name).example(), **options)


def logits(seed: int, scale: float = 2.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(8, V, generator=g, dtype=torch.float64)


def top(z: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    found = z.log_softmax(-1).topk(k)
    return found.indices, found.values


def loss(method: Any, student: Tensor, told: tuple[Tensor, Tensor]) -> Tensor:
    return method.distance(student, TARGET, *told)[0]


@pytest.mark.parametrize("k", [V - 1, V])
def test_all_tokens_and_no_calibration_is_forward_kl(k: int) -> None:
    """With all but one token too: the bucket is then that token."""
    student, teacher = logits(1), logits(2)
    (wanted,) = objective("distill").distance(student, teacher, TARGET)
    torch.testing.assert_close(loss(objective(k=k), student, top(teacher, k)), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("calibration", "c"), CALIBRATIONS)
def test_calibrated_numbers_sum_to_what_they_summed_to(calibration: str, c: float) -> None:
    """Order is kept too, and none is above 1: on flat positions a large delta stops where the two largest are equal."""
    logp = torch.cat([top(logits(3, scale))[1] for scale in (0.1, 2.0, 20.0)])
    made = objective(calibration=calibration, c=c).calibrated(logp)
    torch.testing.assert_close(made.exp().sum(-1), logp.exp().sum(-1))
    assert bool((made[:, :-1] >= made[:, 1:] - 1e-9).all())
    assert float(made.max()) <= 1e-9


def test_smoothing_moves_delta() -> None:
    P = torch.tensor([[0.7, 0.1, 0.05, 0.04, 0.03]], dtype=torch.float64)
    made = objective(calibration="smoothing", c=0.2).calibrated(P.log()).exp()
    torch.testing.assert_close(made, P + torch.tensor([[-0.2, 0.05, 0.05, 0.05, 0.05]]))


@pytest.mark.parametrize("calibration", ["temperature", "probabilities"])
def test_limits_of_the_temperature(calibration: str) -> None:
    logp = top(logits(4))[1]
    m = logp.exp().sum(-1, keepdim=True)
    flat = objective(calibration=calibration, c=1e6).calibrated(logp).exp() / m
    torch.testing.assert_close(flat, torch.full_like(flat, 1 / 5), rtol=0, atol=1e-5)
    sharp = objective(calibration=calibration, c=1e-5).calibrated(logp).exp() / m
    torch.testing.assert_close(sharp, torch.eye(5, dtype=torch.float64)[[0] * 8], rtol=0, atol=1e-9)


def test_temperature_one_is_no_calibration() -> None:
    logp = top(logits(5))[1]
    torch.testing.assert_close(objective(calibration="temperature", c=1.0).calibrated(logp), logp)


@pytest.mark.parametrize(("calibration", "c"), CALIBRATIONS)
@pytest.mark.parametrize("support", ["tail", "renorm"])
def test_a_student_that_is_the_calibrated_teacher_has_no_loss_and_no_gradient(
    calibration: str, c: float, support: str
) -> None:
    method, teacher = objective(calibration=calibration, c=c, support=support), logits(6)
    ids, logp = top(teacher)
    student = teacher.log_softmax(-1).scatter(1, ids, method.calibrated(logp)).requires_grad_()
    found = loss(method, student, (ids, logp))
    torch.testing.assert_close(found.detach(), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-9)
    assert float(torch.autograd.grad(found.sum(), student)[0].abs().max()) < 1e-9


@pytest.mark.parametrize("support", ["tail", "renorm", "softmax"])
@pytest.mark.parametrize(("calibration", "c"), CALIBRATIONS)
def test_never_negative_and_the_order_is_no_matter(calibration: str, c: float, support: str) -> None:
    method = objective(calibration=calibration, c=c, support=support)
    ids, logp = top(logits(7))
    turned = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    for seed in range(5):
        student = logits(10 + seed, 5.0)
        found = loss(method, student, (ids, logp))
        assert float(found.min()) >= -1e-12
        torch.testing.assert_close(loss(method, student, (ids[:, turned], logp[:, turned])), found)


def test_only_the_bucket_holds_mass_back() -> None:
    """A student that gives half of its mass to tokens outside has no loss under renorm, and one under tail."""
    teacher = logits(8, 4.0)
    ids, logp = top(teacher)
    inside = torch.zeros_like(teacher, dtype=torch.bool).scatter(1, ids, True)
    leaking = teacher.log_softmax(-1).masked_fill(~inside, -1.0)
    assert float(loss(objective(support="renorm"), leaking, (ids, logp)).abs().max()) < 1e-9
    assert float(loss(objective(), leaking, (ids, logp)).min()) > 0.05


@pytest.mark.parametrize("name", ["distill", "first"])
def test_a_model_comes_to_say_what_its_teacher_says(name: str) -> None:
    """Through the loop; packed and accumulated rows find their own stored tokens: the same losses."""
    examples, losses = list(texts()), []
    teacher, method = model_of("llama", hidden_size=48), objective(name)
    store = ask(teacher, examples, method.k or 5, PAD)
    for packing, size in ((False, 6), (False, 2), (True, 6)):
        settings = TrainSettings(
            max_steps=15, per_device_train_batch_size=size, gradient_accumulation_steps=6 // size, learning_rate=0.02,
            packing=packing, packed_length=40, logging_steps=1,
        )  # fmt: skip
        references = References(model=teacher) if name == "distill" else References(top=store.of(examples))
        tuner = catalog.load("tuners", "full")()
        loop = Loop(
            tuner.wrap(model_of("llama"), "causal_lm", 0), tuner, method, examples, settings, PAD, references=references
        )
        losses.append([row["loss"] for row in loop.fit().log if "loss" in row])
    assert losses[0][-1] < 0.3 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[2] == pytest.approx(losses[0], rel=2e-3)


def test_options_that_mean_nothing_are_refused() -> None:
    for name, options in (
        ("first", {"k": 1}), ("first", {"c": 0.0}), ("first", {"c_student": -1.0}), ("distill", {"beta": 1.0}),
        ("distill", {"temperature": 0.0}),
    ):  # fmt: skip
        with pytest.raises(LuthierError):
            objective(name, **options)
    parts = [{"name": "first", "teacher": "a"}, {"name": "first", "teacher": "b", "label": "other"}]
    with pytest.raises(LuthierError, match="the same one"):
        catalog.load("objectives", "mixed")(parts=tuple(parts))


@pytest.mark.parametrize("name", ["first", "distill"])
def test_a_recipe_without_a_teacher_is_told_before_anything_runs(name: str) -> None:
    with pytest.raises(LuthierError, match=r"objective\.teacher is missing"):
        catalog.load("objectives", name)()
