"""Controls: which rows move what, what stays still, what is asked where nothing is said, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from luthier.checks import tuners as battery
from luthier.checks._models import PAD, WORLDS, World
from luthier.core.batch import collate_packed
from luthier.core.config import TrainSettings
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop
from luthier.core.method import LuthierError
from luthier.tuners._controls import choose_control, weights_of
from luthier.tuners.control_lora import ControlLoRA
from luthier.tuners.control_prompts import ControlPrompts

LLAMA, T5 = (next(w for w in WORLDS if w.architecture == name) for name in ("llama", "t5"))
TUNERS = [ControlPrompts(tokens=3), ControlLoRA(r=2)]
named = pytest.mark.parametrize("tuner", TUNERS, ids=lambda t: t.name)


def rows(world: World, labels: list[Any], column: str = "label") -> list[Any]:
    return [replace(e, extras={column: n}) for e, n in zip(world.examples, labels, strict=False)]


def moved(tuner: Any, world: World = LLAMA) -> Any:
    """A wrapped model whose controls are all different."""
    model = tuner.wrap(world.base(), world.task, 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in sorted(battery.trainable(model).items()):
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return model


def fit(tuner: Any, model: Any, examples: list[Any], steps: int = 3, **told: Any) -> Loop:
    settings = {
        "max_steps": steps,
        "per_device_train_batch_size": 3,
        "learning_rate": 0.01,
        "warmup_ratio": 0.0,
        **told,
    }
    loop = Loop(model, tuner, LLAMA.objective, examples, TrainSettings(**settings), PAD)
    loop.fit()
    return loop


def of_label(model: Any, label: str) -> dict[str, torch.Tensor]:
    return {n: p for n, p in battery.trainable(model).items() if n.endswith(f".{label}")}


@named
@pytest.mark.parametrize("world", [LLAMA, T5], ids=lambda w: w.label)
def test_a_mixed_batch_equals_the_rows_one_control_at_a_time(tuner: Any, world: World) -> None:
    model = moved(tuner, world)
    labels = ["good", "bad", "bad", "good", "bad", "good"]
    batch, scorer = world.batch(rows(world, labels)), Scorer(model)
    with torch.no_grad():
        together = scorer.token_logp(batch)
        for label in tuner.labels:
            mine = torch.tensor([n == label for n in labels])[batch.owner]
            uniform = scorer.token_logp(world.batch(rows(world, [label] * 6)))
            assert torch.allclose(together[mine], uniform[mine], atol=1e-5)
            assert not torch.allclose(together[~mine], uniform[~mine], atol=1e-3)
            choose_control(model, label)  # and a model that is asked without a batch
            assert torch.allclose(scorer.token_logp(world.batch()), uniform, atol=1e-6)


@named
def test_labels_that_do_not_occur_stay_still_also_under_weight_decay_and_momentum(tuner: Any) -> None:
    model = moved(tuner)
    start = {n: p.detach().clone() for n, p in battery.trainable(model).items()}
    loop = fit(tuner, model, rows(LLAMA, ["good", "bad"] * 3), weight_decay=0.5)
    between = {n: p.detach().clone() for n, p in battery.trainable(model).items()}
    assert all(not torch.equal(between[n], start[n]) for n in start)
    assert {g["weight_decay"] for g in loop.optimizer.param_groups} == {0.0}
    loop.model.train()
    for _ in range(2):  # the same optimiser goes on, on rows of one label
        loop.optimizer.zero_grad()
        LLAMA.loss(model, LLAMA.batch(rows(LLAMA, ["good"] * 6))).backward()
        assert all(p.grad is None for p in of_label(model, "bad").values())
        loop.optimizer.step()
    assert all(torch.equal(p, between[n]) for n, p in of_label(model, "bad").items())
    assert all(not torch.equal(p, between[n]) for n, p in of_label(model, "good").items())


@named
def test_the_first_stage_leaves_the_base_alone_and_trains_exactly_the_controls(tuner: Any) -> None:
    tuner = replace(tuner, labels=("good", "bad", "odd"))
    model = tuner.wrap(LLAMA.base(), LLAMA.task, 0)
    D, layers, keys = 32, 2, 16  # of the tiny model; two of its four heads have keys and values
    wanted = 3 * D * 3 if tuner.name == "control_prompts" else layers * 2 * ((D + D) + (D + keys)) * 3
    assert sum(p.numel() for p in battery.trainable(model).values()) == wanted == tuner.parameter_count(LLAMA.base())
    fit(tuner, model, rows(LLAMA, ["good", "bad", "odd"] * 2), weight_decay=0.1)
    own = battery.own_names(model)
    for name, tensor in LLAMA.base().named_parameters():
        assert torch.equal(own[name], tensor), name


@named
def test_two_labels_with_the_same_rows_and_start_stay_the_same(tuner: Any) -> None:
    model = tuner.wrap(LLAMA.base(), LLAMA.task, 0)
    with torch.no_grad():
        for name, p in of_label(model, "bad").items():
            p.copy_(model.get_parameter(name.removesuffix("bad") + "good"))
    twice = [replace(e, extras={"label": n}) for e in LLAMA.examples for n in tuner.labels]
    fit(tuner, model, twice, per_device_train_batch_size=len(twice), weight_decay=0.1)
    for name, p in of_label(model, "bad").items():
        assert torch.allclose(p, model.get_parameter(name.removesuffix("bad") + "good"), atol=1e-5), name


def test_lora_controls_start_as_the_base() -> None:
    model, base = ControlLoRA(r=2).wrap(LLAMA.base(), LLAMA.task, 0).eval(), LLAMA.base().eval()
    batch = LLAMA.batch(rows(LLAMA, ["good", "bad"] * 3))
    with torch.no_grad():
        assert torch.equal(Scorer(model).token_logp(batch), Scorer(base).token_logp(batch))


def test_prompts_start_as_their_texts() -> None:
    table = LLAMA.base().get_input_embeddings().weight
    model = ControlPrompts(tokens=3, ids=((5, 6), (7,))).wrap(LLAMA.base(), LLAMA.task, 0)
    (good,), (bad,) = of_label(model, "good").values(), of_label(model, "bad").values()
    assert torch.equal(good, table[[5, 6, 5]]) and torch.equal(bad, table[[7, 7, 7]])


@named
def test_saved_and_loaded_by_name_whatever_the_order(tuner: Any, tmp_path: Path) -> None:
    model = moved(tuner)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(LLAMA.base(), str(tmp_path)).eval()
    for label in ("good", "bad"):
        for one in (model, again):
            choose_control(one, label)
        assert torch.equal(LLAMA.said(again), LLAMA.said(model))


@named
def test_mixing_is_a_straight_line_through_the_controls(tuner: Any) -> None:
    model = moved(tuner)
    choose_control(model, weights_of("good=0.25,bad=0.75"))
    mixed = LLAMA.said(model)
    with torch.no_grad():
        for name, p in of_label(model, "good").items():
            p.mul_(0.25).add_(0.75 * model.get_parameter(name.removesuffix("good") + "bad"))
    choose_control(model, "good")
    assert torch.allclose(LLAMA.said(model), mixed, atol=1e-5)


@named
@pytest.mark.parametrize("control", ["bad", "good=2,bad=-1"])
def test_cached_generation_equals_uncached_under_a_control(tuner: Any, control: str) -> None:
    model = moved(tuner)
    choose_control(model, weights_of(control))
    batch = LLAMA.batch(side="left")
    prompts = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
    (a, x), (b, y) = (battery._greedy(model, prompts, cached) for cached in (True, False))
    assert torch.equal(a, b) and torch.allclose(x, y, atol=1e-4)


@named
def test_gradient_checkpointing_recomputes_with_the_labels_of_the_batch(tuner: Any) -> None:
    found = []
    for checkpointing in (False, True):
        model = moved(tuner).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        LLAMA.loss(model, LLAMA.batch(rows(LLAMA, ["good", "bad", "bad"] * 2))).backward()
        found.append({n: p.grad for n, p in battery.trainable(model).items()})
        with torch.no_grad():
            assert len(model.eval()(input_ids=torch.tensor([[5, 6]])).logits) == 1  # what was said of the batch is over
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, atol=1e-6), name


@named
def test_splitting_a_step_changes_nothing(tuner: Any) -> None:
    examples = rows(LLAMA, ["good", "bad", "bad"] * 2)
    found = []
    for size, parts in ((6, 1), (2, 3)):
        model = moved(tuner)
        fit(tuner, model, examples, 2, per_device_train_batch_size=size, gradient_accumulation_steps=parts)
        found.append(battery.trainable(model))
    for name, p in found[0].items():
        assert torch.allclose(found[1][name], p, atol=1e-4), name


@named
def test_what_is_refused(tuner: Any) -> None:
    model = tuner.wrap(LLAMA.base(), LLAMA.task, 0)
    with pytest.raises(LuthierError, match=r"carry no 'label'.*data\.keep"):
        fit(tuner, model, list(LLAMA.examples))
    with pytest.raises(LuthierError, match="no control 'ugly', only good, bad"):
        fit(tuner, model, rows(LLAMA, ["good", "ugly"] * 3))
    examples = rows(LLAMA, ["good", "bad"] * 3)
    packed = collate_packed([examples[:2], examples[2:]], PAD)
    with pytest.raises(LuthierError, match=r"train\.packing to false"):
        Scorer(model).token_logp(packed)
    with pytest.raises(LuthierError, match="no control 'ugly'"):
        choose_control(model, "ugly")
    with pytest.raises(LuthierError, match="this model has none"):
        choose_control(LLAMA.base(), "good")
    with pytest.raises(LuthierError, match="weights as in"):
        choose_control(model, "good=much")
    with pytest.raises(LuthierError, match="different names"):
        replace(tuner, labels=("a.b", "c")).wrap(LLAMA.base(), LLAMA.task, 0)
    before = LLAMA.said(model)
    with pytest.raises(LuthierError, match="cannot be merged"):
        model.merge_and_unload()
    assert torch.equal(LLAMA.said(model), before)


def test_labels_may_be_json_booleans() -> None:
    tuner = ControlPrompts(tokens=3, labels=("true", "false"))
    model = moved(tuner)
    flags = [random.Random(i).random() < 0.5 for i in range(6)]
    with torch.no_grad():
        a, b = (Scorer(model).token_logp(LLAMA.batch(rows(LLAMA, v))) for v in (flags, [str(f).lower() for f in flags]))
    assert torch.equal(a, b)
