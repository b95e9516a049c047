"""ProMoT: what stands still and what moves in each stage, serving with and without the prompt, mixed batches, its variants."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import luthier
from luthier.checks._models import PAD, WORLDS, World
from luthier.core.attach import AT, Attached, length_ratio
from luthier.core.batch import TextExample
from luthier.core.config import ConfigError, TrainSettings
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop
from luthier.core.method import LuthierError
from luthier.recipes._behind import Behind, EachItsPrompt
from luthier.recipes.promot import demonstrated
from luthier.tuners.full import Full
from luthier.tuners.hft import HFT
from luthier.tuners.lora import LoRA
from luthier.tuners.prompt_tuning import PromptTuning
from luthier.verbs.load import load

WRITERS = [w for w in WORLDS if w.kind != "encoder"]


def attach(model: nn.Module, tokens: int = 3, names: tuple[str, ...] = ("default",), tuner: Any = None) -> Attached:
    """Drawn adapters beside a model, each drawn by its own seed."""
    tuner = tuner or PromptTuning(tokens=tokens)
    task = "seq2seq_lm" if model.config.is_encoder_decoder else "causal_lm"
    wrapped = tuner.wrap(model, task, 0)
    for seed, name in enumerate(names[1:], 1):
        torch.manual_seed(seed)
        wrapped.add_adapter(name, tuner.peft_config(wrapped.get_base_model(), task))
    return Attached(wrapped)


def fit(tuner: Any, world: World, steps: int = 3, objective: Any = None, examples: Any = None, **told: Any) -> Any:
    model = tuner.wrap(world.base(), world.task, 0)
    rows = examples or world.examples
    settings = {
        "max_steps": steps,
        "per_device_train_batch_size": 3,
        "learning_rate": 0.01,
        "warmup_ratio": 0.0,
        **told,
    }
    settings["cache_frozen_layers"] = False
    Loop(model, tuner, objective or world.objective, rows, TrainSettings(**settings), PAD).fit()
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("world", WRITERS, ids=lambda w: w.label)
def test_attached_equals_wrapped_and_taken_off_equals_plain(world: World) -> None:
    for tuner in (PromptTuning(tokens=3), LoRA(r=2)):
        wrapped = tuner.wrap(world.base(), world.task, 0)
        world.train(wrapped, 2)
        wanted, plain = world.said(wrapped), world.said(world.base())
        attached = Attached(wrapped)
        model = attached.model
        assert [n for n, _ in model.named_parameters() if not n.startswith(f"{AT}.")] == [
            n for n, _ in world.base().named_parameters()
        ]
        assert torch.equal(world.said(model), wanted)
        assert torch.equal(world.said(copy.deepcopy(model)), wanted)  # a copy leads through its own copy
        assert not torch.allclose(wanted, plain, atol=1e-3)
        with attached.off():
            assert torch.equal(world.said(model), plain)
        with attached.as_peft() as peft_model:
            assert torch.equal(world.said(peft_model), wanted)
        assert torch.equal(world.said(model), wanted)
        attached.remove()
        assert state(model).keys() == state(world.base()).keys()
        assert torch.equal(world.said(model), plain)


@pytest.mark.parametrize("world", WRITERS, ids=lambda w: w.label)
def test_first_stage_moves_the_prompt_alone(world: World) -> None:
    model = fit(PromptTuning(tokens=3), world)
    moved = {n for n, p in model.named_parameters() if "luthier_" in n}
    own = {n.replace("base_layer.", "").removeprefix("base_model.model."): p for n, p in model.named_parameters()}
    for name, tensor in world.base().named_parameters():
        assert torch.equal(own[name], tensor), name
    assert moved


@pytest.mark.parametrize("world", WRITERS, ids=lambda w: w.label)
@pytest.mark.parametrize("inner", [Full(), HFT()], ids=lambda t: t.name)
def test_second_stage_leaves_the_prompt_alone(world: World, inner: Any) -> None:
    tuner = Behind(inner, attach)
    model = fit(tuner, world, weight_decay=0.1)
    (rows,) = model.get_submodule(AT).parameters()
    (drawn,) = attach(world.base()).model.get_submodule(AT).parameters()
    assert torch.equal(rows, drawn)
    assert rows.grad is None
    assert not rows.requires_grad
    before = state(world.base())
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


@pytest.mark.parametrize("world", WRITERS, ids=lambda w: w.label)
def test_taking_the_prompt_off_gives_the_plain_forward_of_the_tuned_model(world: World) -> None:
    tuner = Behind(Full(), attach)
    model = fit(tuner, world)
    plain = world.base()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith(f"{AT}.")})
    with_prompt = world.said(model)
    tuner.attached.remove()
    assert torch.equal(world.said(model), world.said(plain))
    assert not torch.allclose(with_prompt, world.said(plain), atol=1e-3)


@pytest.mark.parametrize("world", WRITERS, ids=lambda w: w.label)
def test_a_prompt_without_vectors_is_plain_fine_tuning(world: World) -> None:
    plain, behind = fit(Full(), world), fit(Behind(Full(), lambda m: attach(m, tokens=0)), world)
    for name, tensor in state(plain).items():
        assert torch.allclose(behind.get_parameter(name), tensor, atol=1e-6), name


def test_both_can_move_together_at_two_rates() -> None:
    world = WRITERS[0]
    tuner = Behind(Full(), attach, joint=True, ratio=10.0)
    model = tuner.wrap(world.base(), world.task, 0)
    loop = Loop(model, tuner, world.objective, world.examples, TrainSettings(max_steps=2, learning_rate=1e-3), PAD)
    loop.fit()
    (rows,) = model.get_submodule(AT).parameters()
    assert next(g for g in loop.optimizer.param_groups if any(p is rows for p in g["params"]))["scale"] == 10.0
    (drawn,) = attach(world.base()).model.get_submodule(AT).parameters()
    assert not torch.equal(rows, drawn)


@pytest.mark.parametrize("world", WRITERS, ids=lambda w: w.label)
def test_mixed_batches_equal_rows_one_by_one(world: World) -> None:
    attached = attach(world.base(), names=("default", "b", "c"))
    scorer, names = Scorer(attached.model).warm(), ["default", "c", "b", "c", "default", "b"]
    batch = world.batch()
    with torch.no_grad():
        with attached.chosen(names):
            together = scorer.token_logp(batch)
        alone = []
        for example, name in zip(world.examples, names, strict=True):
            with attached.chosen([name]):
                alone.append(scorer.token_logp(world.batch([example])))
        same = scorer.token_logp(batch)
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(together, same, atol=1e-3)


def test_rows_name_their_prompt_in_training() -> None:
    world = WRITERS[0]
    rows = [TextExample(e.row, e.ids, e.counts, {"task": ("default", "b")[e.row % 2]}) for e in world.examples]
    tuner = Behind(Full(), lambda m: attach(m, names=("default", "b")))
    assert fit(tuner, world, objective=EachItsPrompt(world.objective, tuner, "task"), examples=rows) is not None
    tuner = Behind(Full(), lambda m: attach(m, names=("default", "b")))
    with pytest.raises(LuthierError, match="packing"):
        fit(
            tuner,
            world,
            objective=EachItsPrompt(world.objective, tuner, "task"),
            examples=rows,
            packing=True,
            packed_length=64,
        )


def test_length_ratio() -> None:
    model = WRITERS[0].base()
    attached = attach(model, tokens=64)
    (part,) = attached.prompts.values()
    assert length_ratio(model, part) == pytest.approx(1.0, abs=0.1)  # rows of the vocabulary
    with torch.no_grad():
        part.rows.mul_(3)
    assert length_ratio(model, part) == pytest.approx(3.0, abs=0.3)


class _Words:
    bos_token_id, eos_token_id = 1, 2


def test_demonstrations() -> None:
    """One BOS, the demonstration's end replaced by the separator, and none of its tokens trained."""
    row, other = (
        TextExample(0, [1, 5, 6, 2], [False, False, True, True]),
        TextExample(1, [1, 7, 8, 2], [False] * 2 + [True] * 2),
    )
    found = demonstrated(row, other, [9], _Words)
    assert isinstance(found, TextExample)
    assert found.ids == [1, 7, 8, 9, 5, 6, 2]
    assert found.counts == [False] * 5 + [True] * 2
    assert demonstrated(row, other, [], _Words).ids == [1, 7, 8, 2, 5, 6, 2]  # a chat's own end of turn stays


@pytest.fixture
def small(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    member = "sandbox:sequence?task=member&part=neutral&n=40"
    return {
        "name": "small",
        "model": str(tiny),
        "procedure": {"name": "promot", "tuner": {"name": "prompt_tuning", "tokens": 3}, "train": {"max_steps": 2}},
        "data": {"train": member},
        "train": {"max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 3e-3},
        "evaluate": {
            "drift": False,
            "tasks": [
                {"name": "member", "scorer": "exact_match", "data": member, "limit": 4, "max_new_tokens": 3},
                {"task": "in_context_recall", "limit": 4},
            ],
        },
        "output_dir": str(tmp_path / "run"),
    }


def test_a_run_serves_with_and_without(small: dict[str, Any], tmp_path: Path) -> None:
    """The folder is the model without its prompt, RUN/prompt with it; each task is measured as it is served."""
    done = luthier.run(small, quiet=True)
    told = json.loads((done.folder / "promot.json").read_text())
    assert 0.5 < told["length_ratio"]["default"] < 2
    assert told["warnings"] == []
    manifest = json.loads((done.folder / "run.json").read_text())
    assert manifest["recipe"]["procedure"]["tuner"] == {"name": "prompt_tuning", "tokens": 3}
    assert manifest["method"]["procedure"] == "promot"
    first = load_file(done.folder / "stage-1" / "adapter" / "adapter_model.safetensors")
    kept = load_file(done.folder / "prompt" / "adapter_model.safetensors")
    assert first.keys() == kept.keys()
    assert all(torch.equal(t, kept[k]) for k, t in first.items())  # to the last bit as stage 1 left it
    moved = tmp_path / "moved"
    done.folder.rename(moved)  # a folder that was copied from elsewhere
    tasks = small["evaluate"]["tasks"]
    rows = {p["task"]: [] for p in map(json.loads, (moved / "generated_predictions.jsonl").read_text().splitlines())}
    for p in map(json.loads, (moved / "generated_predictions.jsonl").read_text().splitlines()):
        rows[p["task"]].append((p["prompt"], p["predict"]))
    with_prompt, without = load(str(moved / "prompt")), load(str(moved))
    prompts = [p for p, _ in rows["member"]]
    assert with_prompt.subject().generate(prompts, 3) == [said for _, said in rows["member"]]
    assert not hasattr(without.model, AT)
    assert not hasattr(done.loaded.model, AT)
    values = luthier.evaluate(str(moved), tasks)
    assert values["in_context_recall"]["score"]["value"] == done.results["tuned"]["in_context_recall"]["score"]["value"]


@pytest.mark.parametrize("mode", ["joint", "fixed"])
def test_comparisons_without_a_first_stage(small: dict[str, Any], mode: str) -> None:
    small["procedure"]["mode"] = mode
    done = luthier.run(small, quiet=True)
    assert not (done.folder / "stage-1").exists()
    drawn = load_file(done.folder / "start" / "default" / "adapter_model.safetensors")
    kept = load_file(done.folder / "prompt" / "adapter_model.safetensors")
    assert all(torch.equal(t, kept[k]) for k, t in drawn.items()) is (mode == "fixed")


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ({"name": "memmber", "scorer": "exact_match", "data": "sandbox:sequence?n=2"}, ConfigError,
         "^evaluate.tasks: 'memmber' .* call it one of copy, member, or give it group"),
        ("memmber", LuthierError, "no task 'memmber'.* known: .*in_context_recall"),
    ],
)  # fmt: skip
def test_a_task_that_nothing_answers_to_is_told_before_the_first_stage(
    small: dict[str, Any], tmp_path: Path, task: Any, error: type[Exception], message: str
) -> None:
    small["data"] = {"train": [f"sandbox:sequence?task={t}&part=neutral&n=8" for t in ("member", "copy")]}
    small["procedure"]["by"] = "task"
    small["evaluate"]["tasks"] = [task]
    with pytest.raises(error, match=message) as raised:
        luthier.run({**small, "output_dir": str(tmp_path / "early")}, quiet=True)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "early").exists()


def test_several_tasks_each_with_its_prompt(small: dict[str, Any]) -> None:
    sources = [f"sandbox:sequence?task={t}&part=neutral&n=24" for t in ("member", "copy")]
    small["data"] = {"train": sources, "val_size": 0.25}
    small["procedure"] |= {"by": "task", "demonstration": True}
    small["evaluate"]["tasks"].append({"name": "copy", "scorer": "skills", "task": "copy", "part": "neutral", "n": 3})
    done = luthier.run(small, quiet=True)
    assert {p.name for p in done.folder.glob("prompt-*")} == {"prompt-member", "prompt-copy"}
    found = [load_file(done.folder / f"prompt-{t}" / "adapter_model.safetensors") for t in ("member", "copy")]
    for name, one in zip(("member", "copy"), found, strict=True):
        first = load_file(done.folder / "stage-1" / name / "adapter" / "adapter_model.safetensors")
        assert [t.tolist() for t in first.values()] == [t.tolist() for t in one.values()]
    assert load(str(done.folder / "prompt-copy")).subject().generate(["<|any|>: a b ->"], 2)


def test_task_after_task_and_lora_in_the_first_stage(small: dict[str, Any], tmp_path: Path) -> None:
    small["procedure"]["tuner"] = {"name": "lora", "r": 2}
    first = luthier.run(small, quiet=True)
    assert json.loads((first.folder / "promot.json").read_text())["length_ratio"] == {}
    assert load(str(first.folder / "prompt")).model.peft_config["default"].r == 2
    second = luthier.run({**small, "model": str(first.folder), "output_dir": str(tmp_path / "second")}, quiet=True)
    base = json.loads((second.folder / "run.json").read_text())["base"]["name"]
    assert base == str(first.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuner": "lora"}, "use full, hft, freeze"),
        ({"procedure.tuner": {"name": "full"}}, "is no adapter"),
        ({"objective": "classification"}, "promot needs one"),
        ({"train.cache_frozen_layers": True}, "cache_frozen_layers"),
        ({"procedure.by": "colour"}, "no column 'colour'"),
    ],
)
def test_what_does_not_fit_is_an_error(small: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises((LuthierError, ConfigError), match=message):
        luthier.run(small, overrides=change, quiet=True)


def test_a_prompt_that_grew_too_long_is_told(small: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    small["procedure"]["train"] = {"max_steps": 3, "learning_rate": 1.0}
    done = luthier.run(small)
    assert "lower procedure.train.learning_rate" in json.loads((done.folder / "promot.json").read_text())["warnings"][0]
    assert "WARNING" in capsys.readouterr().err


def test_resuming_by_another_recipe_is_refused(small: dict[str, Any]) -> None:
    luthier.run(small, quiet=True)
    small["procedure"]["train"] = {"max_steps": 4}
    with pytest.raises(LuthierError, match="not that of the run to resume"):
        luthier.run(small, quiet=True, resume=True)
