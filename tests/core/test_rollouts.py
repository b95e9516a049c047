"""Rollouts: rounds of the plan, answers that end once, references that begin equal, and resuming in the middle of a round."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier import sandbox
from luthier.core.batch import Plan
from luthier.core.config import ConfigError, RolloutSettings
from luthier.core.loop import Interrupted, LoopCallback
from luthier.core.method import LuthierError
from luthier.core.rollouts import Rollouts
from luthier.verbs.rewards import reward_of


def length(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
    """A reward that a random model has some of: how many different letters an answer has."""
    assert all("prompt" in r and "id" in r for r in rows)
    return [len(set(a)) / 10 for a in answers]


def broken(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
    return [float("nan")] * len(answers)


@pytest.fixture
def online(recipe: dict[str, Any]) -> dict[str, Any]:
    recipe["data"]["train"] = "sandbox:sequence?task=copy&n=20"
    recipe["objective"] = {"name": "grpo", "beta": 0.05}
    recipe["rollouts"] = {
        "reward": f"{__file__}:length", "answers": 4, "max_new_tokens": 6, "steps": 2, "passes": 2,
        "missing_eos_penalty": 0.5,
    }  # fmt: skip
    recipe["train"] |= {"per_device_train_batch_size": 4, "max_steps": 7}
    return recipe


class _Watch(LoopCallback):
    """Keeps what each round wrote, and stops where it is told to."""

    def __init__(self, stop: int = 0):
        self.stop, self.rounds = stop, {}
        self.base: dict[str, torch.Tensor] = {}

    def start(self, loop: Any) -> None:
        self.base = {n: p.detach().clone() for n, p in loop.model.named_parameters()}

    def step(self, loop: Any) -> None:
        self.rounds[loop.rollouts.begun] = dict(loop.rollouts.answered)
        self.loop = loop
        if loop.step_index == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)


def rounds(folder: Path) -> list[dict[str, Any]]:
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "reward" in r]


# ------------------------------------------------------------------------------------------------- plan


def test_a_round_walks_its_steps_several_times_and_ends_with_the_epoch() -> None:
    plain, plan = (Plan([3] * 10, 2, seed=5, **more) for more in ({}, {"round": 2, "passes": 3}))
    assert plan.steps_per_epoch == 15
    a = plain.epoch(0)
    assert plan.epoch(0) == [*a[:2] * 3, *a[2:4] * 3, *a[4:] * 3]
    assert [plan.step(i) for i in range(15, 30)] == plan.epoch(1)
    assert [plan.of_round(i) for i in (0, 5, 6, 12, 14, 15)] == [
        range(6), range(6), range(6, 12), range(12, 15), range(12, 15), range(15, 21)
    ]  # fmt: skip
    assert {i for s in plan.of_round(13) for i in plan.step(s)} == set(a[4])


# --------------------------------------------------------------------------------------------- answers


def test_nothing_is_after_the_first_end_and_what_has_none_is_charged(online: dict[str, Any], tiny: Path) -> None:
    from transformers import AutoTokenizer

    eos = AutoTokenizer.from_pretrained(tiny).eos_token_id
    told: list[float] = []

    def judge(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
        told.extend(length(rows, answers))
        return told[-len(answers) :]

    watch = _Watch()
    original = Rollouts.__init__

    def with_judge(self: Rollouts, settings: Any, decoder: Any, tokenizer: Any, reward: Any) -> None:
        original(self, settings, decoder, tokenizer, judge)

    online["train"]["max_steps"] = 1
    online["rollouts"]["max_new_tokens"] = 40
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rollouts, "__init__", with_judge)
        luthier.run(online, quiet=True, callbacks=[watch])
    answers = [(a, s) for e in watch.rounds[0].values() for a, s in zip(e.answers, e.scores, strict=True)]
    assert all(eos not in a[:-1] and 1 <= len(a) <= 40 for a, _ in answers)
    ended = [a[-1] == eos for a, _ in answers]
    assert any(ended)
    assert not all(ended)
    assert [s for _, s in answers] == pytest.approx([t - (0 if e else 0.5) for t, e in zip(told, ended, strict=True)])


@pytest.mark.parametrize(
    "tuner", [{"name": "full"}, {"name": "lora", "r": 4}, {"name": "freeze", "lowest": 2}], ids=lambda t: t["name"]
)
@pytest.mark.parametrize("objective", ["grpo", "rloo", "ppo"])
def test_reference_is_the_policy_at_the_start(online: dict[str, Any], tuner: dict[str, Any], objective: str) -> None:
    """Exactly: to the last bit. What does not move keeps its bits, and the first pass clips nothing."""
    online |= {"tuner": tuner, "objective": {"name": objective}}
    if objective == "grpo":
        online["objective"]["beta"] = 0.05
    online["rollouts"]["passes"] = 1
    online["train"]["max_steps"] = 3
    watch = _Watch()
    done = luthier.run(online, quiet=True, callbacks=[watch])
    found = rounds(done.folder)
    assert found[0]["kl"] == 0.0
    assert found[1]["kl"] != 0.0
    log = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert next(r["clip_ratio"] for r in log if "loss" in r) == 0.0
    moved = {n for n, p in watch.loop.model.named_parameters() if not torch.equal(p.detach(), watch.base[n])}
    assert moved
    if tuner["name"] == "freeze":
        assert not [n for n in moved if n.startswith(("model.layers.0.", "model.layers.1.", "model.embed"))]
    saved = load_file(next(done.folder.glob("*/*model.safetensors")))
    assert not [n for n in saved if "own_head" in n]


@pytest.mark.parametrize("lowest", [0, 1, 2])
def test_the_reference_begins_at_the_first_layer_that_moves(
    online: dict[str, Any], monkeypatch: pytest.MonkeyPatch, lowest: int
) -> None:
    """What stands still is held once and run once, and the numbers are those of a whole copy to the last bit."""
    online |= {"tuner": {"name": "freeze", "lowest": lowest}, "objective": {"name": "ppo", "kappa": 0.1}}
    online["train"]["max_steps"] = 6
    watch, ran = _Watch(), []
    original = Rollouts._recalled

    def recalled(self: Rollouts, examples: Any, batch: Any, objective: Any, scorer: Any) -> Any:
        copy, handles = scorer.beside.plain, []
        for i, layer in enumerate(copy.model.layers):
            handles.append(layer.mlp.register_forward_hook(lambda *a, i=i: ran.append(i)))
        try:
            found = original(self, examples, batch, objective, scorer)
        finally:
            for handle in handles:
                handle.remove()
        with torch.no_grad():
            whole = scorer.beside.token_logp(batch)
        assert torch.equal(torch.cat([e.extras["ref"] for e in found]), whole)
        shared = {
            n for n, p in copy.named_parameters() if p.data_ptr() == dict(scorer.plain.named_parameters())[n].data_ptr()
        }
        assert shared == {n for n, p in scorer.plain.named_parameters() if not p.requires_grad}
        return found

    monkeypatch.setattr(Rollouts, "_recalled", recalled)
    luthier.run(online, quiet=True, callbacks=[watch])
    assert set(ran) == set(range(lowest, len(watch.loop.model.model.layers)))
    assert len(watch.rounds) > 1


def test_answers_do_not_depend_on_how_a_step_is_split(online: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for size, pieces in ((4, 1), (1, 4)):
        watch = _Watch()
        online["train"] |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": pieces, "max_steps": 2}
        luthier.run(online, quiet=True, callbacks=[watch], overrides={"output_dir": str(tmp_path / str(size))})
        found.append(watch.rounds[0])
    assert found[0].keys() == found[1].keys()
    for i, e in found[0].items():
        assert e.answers == found[1][i].answers
        assert torch.allclose(e.extras["old"], found[1][i].extras["old"], atol=1e-5)


@pytest.mark.parametrize("objective", [{"name": "grpo", "beta": 0.05}, {"name": "ppo", "target": 0.1, "horizon": 50}])
def test_resumed_in_the_middle_of_a_round_to_the_same_bits(
    online: dict[str, Any], tmp_path: Path, objective: dict[str, Any]
) -> None:
    online["objective"] = objective
    online["rollouts"]["standardise"] = "world"
    whole, part = _Watch(), _Watch(stop=3)  # rounds of four steps
    one = luthier.run(online, quiet=True, callbacks=[whole], overrides={"output_dir": str(tmp_path / "whole")})
    with pytest.raises(Interrupted):
        luthier.run(online, quiet=True, callbacks=[part])
    two = luthier.run(online, quiet=True, resume=True)
    a, b = (load_file(r.folder / "model" / "model.safetensors") for r in (one, two))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert rounds(one.folder) == rounds(two.folder)


def test_rewards_of_each_kind_are_standardised_by_all_so_far() -> None:
    """Two kinds a hundred times apart end on one scale; later rounds count the earlier ones."""
    rollouts = Rollouts(RolloutSettings(reward="a:b", standardise="lang"), None, None, None)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(0)
    told = {"a": [], "b": []}
    for _ in range(3):
        drawn = torch.randn(8, generator=rng).tolist()
        scores, kinds = [*drawn[:4], *(100 * x + 7 for x in drawn[4:])], ["a"] * 4 + ["b"] * 4
        found = rollouts._standardised(scores, kinds)
        for k in ("a", "b"):
            told[k] += [s for s, kind in zip(scores, kinds, strict=True) if kind == k]
            mine = torch.tensor([f for f, kind in zip(found, kinds, strict=True) if kind == k]).double()
            all_of = torch.tensor(told[k]).double()
            wanted = (all_of[-4:] - all_of.mean()) / all_of.std(correction=0)
            assert torch.allclose(mine, wanted, atol=1e-5)


def test_standardising_needs_its_column(online: dict[str, Any]) -> None:
    online["rollouts"]["standardise"] = "lang"
    with pytest.raises(LuthierError, match="no column 'lang'"):
        luthier.run(online, quiet=True)


# ------------------------------------------------------------------------------------- rewards and errors


def test_rewards_by_name() -> None:
    rows = [{"prompt": "q", "answer": "7", "completion": " 7"}, {"prompt": "q", "answer": "12", "completion": " 12"}]
    said = ["so the answer is 7", "the answer is 5"]
    assert reward_of({"scorer": "answer"})(rows, said) == [1.0, 0.0]
    assert reward_of({"scorer": "answer", "metric": "answered", "weight": 0.5})(rows, said) == [0.5, 0.5]
    both = reward_of([{"scorer": "answer"}, {"function": f"{__file__}:length2", "weight": -0.1}])
    assert both(rows, said) == pytest.approx([1 - 0.1 * len(said[0]), -0.1 * len(said[1])])
    world = sandbox.rows("sequence", task="copy", n=2)
    assert reward_of({"world": "sequence"})(world, [world[0]["completion"], "x"]) == [1.0, 0.0]


def length2(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
    return [float(len(a)) for a in answers]


def test_a_reward_model_is_a_reward(recipe: dict[str, Any]) -> None:
    recipe |= {"objective": "reward", "data": {"train": "sandbox:styles?task=prefer0&n=16"}}
    recipe["train"] |= {"max_steps": 2}
    done = luthier.run(recipe, quiet=True)
    reward = reward_of({"model": str(done.folder)})
    rows = [{"prompt": "the colour of"}, {"prompt": "the colour of"}]
    one, other = reward(rows, [" a", " b c"])
    assert reward(rows[:1], [" b c"]) == pytest.approx([other], abs=1e-5)
    assert one != other


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"world": "sequense"}, "nearest: 'sequence'"),
        ({"scorer": "perplexity"}, "one answer at a time"),
        ({"scorer": "answer", "metric": "f1"}, "no metric 'f1'"),
        ({"judge": 1}, "one of function, world, scorer, model"),
        ("length", "module:function"),
        ("no.such.module:f", "cannot be loaded"),
        ([], "empty list"),
    ],
)
def test_rewards_that_cannot_be(told: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        reward_of(told)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollouts": None}, "add a section rollouts"),
        ({"objective": {"name": "sft"}}, "remove rollouts"),
        ({"rollouts.reward": f"{__file__}:broken"}, "one finite number"),
        ({"rollouts.max_new_tokens": 255}, "nothing to train on|exceed the window|rejected"),
        ({"tuner": {"name": "child_tuning", "variant": "task_driven", "rows": 4}}, "chooses by gradients"),
        ({"train.cache_frozen_layers": True}, "new in every round"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(online: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises((LuthierError, ConfigError), match=message) as error:
        luthier.run(online, quiet=True, overrides=change)
    assert "\n" not in str(error.value)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        RolloutSettings(reward="a:b", answers=0)
