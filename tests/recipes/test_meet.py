"""MEET: pairs taken apart, what moves in the second stage, what is measured, its modes, and asking under a control."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.checks._models import PAD, WORLDS
from luthier.core.attach import AT, Attached
from luthier.core.batch import GroupExample, TextExample, collate_text
from luthier.core.config import ConfigError, TrainSettings
from luthier.core.logprobs import Scorer, kl
from luthier.core.loop import Collator, Loop
from luthier.core.method import LuthierError
from luthier.decoding.contrast import Contrast
from luthier.recipes._behind import Behind
from luthier.recipes.meet import NONE, balanced, behind_text, listening, taken_apart
from luthier.tuners._controls import choose_control
from luthier.tuners.control_lora import ControlLoRA
from luthier.tuners.control_prompts import ControlPrompts
from luthier.tuners.full import Full
from luthier.verbs.load import load

LLAMA = next(w for w in WORLDS if w.architecture == "llama")
LABELS = ("good", "bad")
TUNERS = [ControlPrompts(tokens=3), ControlLoRA(r=2)]
named = pytest.mark.parametrize("tuner", TUNERS, ids=lambda t: t.name)
EXAMPLES = [replace(e, extras={"label": LABELS[i % 2]}) for i, e in enumerate(LLAMA.examples)]


def attached(tuner: Any) -> Any:
    """Controls that differ, beside a model."""

    def attach(model: Any) -> Attached:
        wrapped = tuner.wrap(model, "causal_lm", 0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, p in sorted((n, p) for n, p in wrapped.named_parameters() if p.requires_grad):
                p += 0.3 * torch.randn(p.shape, generator=generator)
        return Attached(wrapped)

    return attach


# ------------------------------------------------------------------------------------------------------ rows


def test_a_pair_becomes_a_row_for_each_label_and_prompts_are_not_trained() -> None:
    good, bad = taken_apart(GroupExample(7, [5, 6], [[8, 9, 3], [10, 3]], given=[1, 0]), LABELS, "label")
    assert (good.ids, good.counts, good.extras) == ([5, 6, 8, 9, 3], [False] * 3 + [True] * 2, {"label": "good"})
    assert (bad.ids, bad.counts, bad.extras) == ([5, 6, 10, 3], [False] * 2 + [True] * 2, {"label": "bad"})
    assert good.row != bad.row


@pytest.mark.parametrize(("score", "label"), [(1.0, "good"), (0.0, "bad")])
def test_a_judged_answer_has_the_label_of_its_judgement_or_its_own(score: float, label: str) -> None:
    (row,) = taken_apart(GroupExample(0, [5], [[8, 3]], scores=[score]), LABELS, "label")
    assert row.extras["label"] == label
    (row,) = taken_apart(
        GroupExample(0, [5], [[8, 3]], scores=[score], extras={"label": True}), ("true", "false"), "label"
    )
    assert row.extras["label"] == "true"


def test_rarer_labels_are_repeated() -> None:
    labels = ["a", "b", "a", "a", "a", "c", "b"]
    places = balanced(labels)
    assert sorted(set(places)) == list(range(7))
    assert [sum(labels[i] == name for i in places) for name in "abc"] == [4, 4, 4]


def test_text_goes_behind_the_begin_token_and_is_not_trained() -> None:
    shown = behind_text(TextExample(0, [2, 5, 6], [False, False, True]), [8, 9], 2)
    assert (shown.ids, shown.counts) == ([2, 8, 9, 5, 6], [False] * 4 + [True])


# --------------------------------------------------------------------------------------------- second stage


@named
@pytest.mark.parametrize("ratio", [0.0, 5.0])
def test_the_second_stage_moves_the_model_and_the_controls_at_their_rate(tuner: Any, ratio: float) -> None:
    behind = Behind(Full(), attached(tuner), joint=ratio > 0, ratio=ratio)
    model = behind.wrap(LLAMA.base(), "causal_lm", 0)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    settings = TrainSettings(max_steps=2, per_device_train_batch_size=6, learning_rate=1e-3, weight_decay=0.1)
    settings.cache_frozen_layers = False
    loop = Loop(model, behind, LLAMA.objective, EXAMPLES, settings, PAD)
    loop.fit()
    own = {n: p for n, p in model.named_parameters() if n.startswith(f"{AT}.")}
    assert own and all(torch.equal(p, start[n]) == (ratio == 0) for n, p in own.items())
    assert all(not torch.equal(p, start[n]) for n, p in model.named_parameters() if n.endswith("q_proj.weight"))
    if ratio:
        group = next(g for g in loop.optimizer.param_groups if any(p is q for p in g["params"] for q in own.values()))
        assert (group["scale"], group["weight_decay"]) == (ratio, 0.0)
    plain = LLAMA.base()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith(f"{AT}.")})
    with behind.attached.off():
        assert torch.equal(LLAMA.said(model), LLAMA.said(plain))


# ------------------------------------------------------------------------------------------------- listening


@named
@torch.no_grad()
def test_listening_row_by_row(tuner: Any) -> None:
    beside = attached(tuner)(LLAMA.base().double())
    model = beside.model.eval()
    found = listening(model, EXAMPLES, LABELS, "label", Collator(PAD), off=beside.off, size=2)
    nats, tokens = {(a, c): 0.0 for a in LABELS for c in (*LABELS, NONE)}, dict.fromkeys(LABELS, 0)
    apart = 0.0
    for e in EXAMPLES:
        own = e.extras["label"]
        at = torch.tensor([t - 1 for t in range(1, len(e)) if e.counts[t]])
        said = {}
        for name in (*LABELS, NONE):
            choose_control(model, "good" if name == NONE else name)
            one = LLAMA.base().double().eval() if name == NONE else model
            said[name] = one(input_ids=torch.tensor([e.ids])).logits[0, at].log_softmax(-1)
            nats[own, name] -= float(said[name].gather(1, torch.tensor(e.ids)[at + 1][:, None]).sum())
        tokens[own] += len(at)
        apart += float(kl(said[own], said["bad" if own == "good" else "good"]).sum())
    total = sum(tokens.values())
    own_nats = nats["good", "good"] + nats["bad", "bad"]
    assert found["nll"] == pytest.approx(own_nats / total, rel=1e-6)
    assert found["swap_cost"] == pytest.approx((nats["good", "bad"] + nats["bad", "good"] - own_nats) / total, rel=1e-5)
    assert found["reliance"] == pytest.approx(apart / total, rel=1e-6)
    assert found["reliance"] > 0.01
    for (a, c), v in nats.items():
        assert found["nats"][a][c] == pytest.approx(v / tokens[a], rel=1e-6)


@named
def test_equal_controls_are_not_listened_to(tuner: Any) -> None:
    beside = attached(tuner)(LLAMA.base())
    with torch.no_grad():
        for name, p in beside.model.named_parameters():
            if name.endswith(".bad"):
                p.copy_(beside.model.get_parameter(name.removesuffix("bad") + "good"))
    found = listening(beside.model, EXAMPLES, LABELS, "label", Collator(PAD), off=beside.off)
    assert found["swap_cost"] == pytest.approx(0, abs=1e-6)
    assert found["reliance"] == pytest.approx(0, abs=1e-6)


# --------------------------------------------------------------------------------------------------- whole


def told(folder: Path, **procedure: Any) -> dict[str, Any]:
    tuner = {"name": "control_prompts", "tokens": 4, "texts": ["a kind answer", "a rude one"]}
    return {
        "model": "nano-1m",
        "procedure": {"name": "meet", "tuner": tuner, "train": {"max_steps": 2}, **procedure},
        "data": {"train": "sandbox:styles?task=prefer0&n=24", "val_size": 6},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "torch_threads": 1},
        "evaluate": {"drift": False},
        "output_dir": str(folder),
    }  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meet") / "run"
    luthier.run(told(folder, tuner={"name": "control_lora", "r": 2}), quiet=True)
    return folder


def test_folders_of_a_run(tuned: Path) -> None:
    first, last = (load_file(tuned / part / "adapter_model.safetensors") for part in ("stage-1/adapter", "controls"))
    assert first.keys() == last.keys()
    assert {n.rsplit(".", 1)[1] for n in last} == set(LABELS)
    found = json.loads((tuned / "meet.json").read_text())
    assert found["tokens"].keys() == set(LABELS) == found["nats_untuned"].keys()
    assert all(found["nats"][a].keys() == {*LABELS, NONE} for a in LABELS)
    pairs = [r for r in json.loads((tuned / "run.json").read_text())["data"] if r["name"] == "train"]
    assert pairs[0]["rows"] == 2 * 18


def test_asking_under_a_control(tuned: Path) -> None:
    prompt = "Q: Where does Goko live? A:"
    plain, good, bad, half = (
        load(str(tuned / part), control=c).model
        for part, c in (("model", None), ("controls", None), ("controls", "bad"), ("controls", "good=0.5,bad=0.5"))
    )
    subject = load(str(tuned / "controls"), control={"bad": 1}).subject()
    ids = torch.tensor([subject.encode(prompt)])
    with torch.no_grad():
        a, b, c, d = (m.eval()(input_ids=ids).logits for m in (plain, good, bad, half))
        assert len({tuple(x.flatten().tolist()) for x in (a, b, c, d)}) == 4
        assert torch.equal(subject.model.eval()(input_ids=ids).logits, c)
        mixed = Contrast(amateur={"model_name_or_path": str(tuned / "controls"), "control": "bad"}, beta=2.0, alpha=0.0)
        scores = torch.tensor(load(str(tuned / "controls")).subject(mixed).next_token_logp([prompt])[0])
        wanted = (3 * b[0, -1].log_softmax(-1) - 2 * c[0, -1].log_softmax(-1)).log_softmax(-1)
        assert torch.allclose(scores[: len(wanted)], wanted[: len(scores)], atol=1e-4)
    said = [
        luthier.generate(str(tuned / "controls"), [prompt], max_new_tokens=4, control=c) for c in ("bad", {"bad": 1.0})
    ]
    assert said[0] == said[1]
    with pytest.raises(LuthierError, match="has no control 'bad'"):
        load(str(tuned / "model"), control="bad")
    with pytest.raises(LuthierError, match="no control 'ugly'"):
        luthier.generate(str(tuned / "controls"), [prompt], control="ugly")


@pytest.mark.parametrize("mode", ["joint", "text", "controls", "chosen", "pairs"])
def test_what_it_is_compared_with_runs(mode: str, tmp_path: Path) -> None:
    folder = luthier.run(told(tmp_path / "run", mode=mode), quiet=True).folder
    found = json.loads((folder / "meet.json").read_text())
    assert not (folder / "stage-1").exists()
    assert (folder / "controls").exists() == (mode == "joint")
    assert (folder / ("adapter" if mode == "controls" else "model")).exists()
    listens = mode in ("joint", "text", "controls")
    assert (found["reliance"] > 1e-6) == listens
    if mode == "controls":  # the model stands still
        assert [found["nats"][n][NONE] for n in LABELS] == pytest.approx(
            [found["nats_untuned"][n] for n in LABELS], rel=1e-5
        )
    rows = next(r for r in json.loads((folder / "run.json").read_text())["data"] if r["name"] == "train")["rows"]
    assert rows == {"chosen": 18, "pairs": 18}.get(mode, 36)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuner": {"name": "prompt_tuning"}}, "has no controls: use control_prompts or control_lora"),
        ({"tuner": {"name": "control_prompts", "labels": ["good"]}}, "leaves nothing to control"),
        ({"tuner": {"name": "control_prompts"}, "mode": "text"}, "give one for each of good, bad"),
        ({"ratio": -1.0}, "give 0 or more"),
    ],
)
def test_procedures_that_cannot_be_are_told_before_anything_is_trained(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        luthier.run(told(tmp_path / "run", **change), quiet=True)
    assert not (tmp_path / "run" / "run.json").exists()


def test_labels_that_no_row_has(tmp_path: Path) -> None:
    recipe = told(tmp_path / "run", tuner={"name": "control_prompts", "labels": ["good", "bad", "odd"]})
    with pytest.raises(LuthierError, match="labels are good, bad, odd, and the rows have bad, good in 'label'"):
        luthier.run(recipe, quiet=True)


def test_rows_with_a_column_of_their_own_need_no_pairs(tmp_path: Path) -> None:
    recipe = told(
        tmp_path / "run",
        tuner={"name": "control_prompts", "labels": ["0", "2"], "by": "style", "tokens": 3},
        balance=True,
    )
    recipe["data"] = {"train": ["sandbox:styles?task=style0&n=20", "sandbox:styles?task=style2&n=8"], "val_size": 0}
    folder = luthier.run(recipe, quiet=True).folder
    assert json.loads((folder / "meet.json").read_text()) == {}  # no row was held out
    rows = next(r for r in json.loads((folder / "run.json").read_text())["data"] if r["name"] == "train")["rows"]
    assert rows == 40
    model = load(str(folder / "controls")).model.eval()
    batch = collate_text([TextExample(0, [5, 6, 7], [False, True, True], {"style": s}) for s in (0, 2)], 0)
    with torch.no_grad():
        first, second = Scorer(model).token_logp(batch).chunk(2)
    assert not torch.allclose(first, second, atol=1e-4)
