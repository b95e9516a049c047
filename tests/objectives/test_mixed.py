"""Mixtures: which rows and answers a part sees, what it is divided by, and how often the model runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from luthier import data
from luthier.checks._models import PAD, groups, model_of, texts
from luthier.checks.data import vocabulary
from luthier.core import catalog, config
from luthier.core.batch import collate_groups, collate_packed, collate_text
from luthier.core.config import ConfigError, TrainSettings
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop
from luthier.core.method import LuthierError
from luthier.tuners.full import Full

MIXED: Any = catalog.load("objectives", "mixed")
SFT: Any = catalog.load("objectives", "sft")()
THOUGHT = {"name": "masked_thought", "rate": 0.5, "ramp": 0.0, "mask_id": 1, "special": (0, 1), "vocabulary": 96}


def sources() -> list[Any]:
    """Texts of two sources."""
    return [replace(e, extras={"objective": "sft" if e.row < 2 else "masked_thought"}) for e in texts()]


def computed(objective: Any, batch: Any, model: Any = None) -> Any:
    return objective.compute(Scorer(model or model_of("llama")), batch)


def view(objective: Any, batch: Any) -> Any:
    import numpy as np

    return objective.view(batch, 3, 10, np.random.default_rng(0))


def test_rows_go_where_they_say() -> None:
    """Each part sees its own source alone and is divided by its own tokens; rows without a column are in all."""
    objective = MIXED(parts=({"name": "sft"}, {**THOUGHT, "rate": 0.0, "weight": 0.25})).for_examples(sources())
    found = computed(objective, view(objective, collate_text(sources(), PAD)))
    first, rest = (computed(SFT, collate_text(list(rows), PAD)) for rows in (texts()[:2], texts()[2:]))
    wanted = first.sum / first.weight + 0.25 * rest.sum / rest.weight
    torch.testing.assert_close(found.sum / found.weight, wanted)
    assert found.weight == 6
    assert {k: w for k, (_, w) in found.figures.items()} == {"sft": first.weight, "masked_thought": rest.weight}
    both = MIXED(parts=({"name": "sft"}, {"name": "sft", "label": "again"})).for_examples(list(texts()))
    whole = computed(SFT, collate_text(list(texts()), PAD))
    mine = computed(both, collate_text(list(texts()), PAD))
    torch.testing.assert_close(mine.sum / mine.weight, 2 * whole.sum / whole.weight)


def test_holes_stay_in_their_part_and_in_no_layout_move() -> None:
    objective = MIXED(parts=({"name": "sft"}, THOUGHT)).for_examples(sources())
    rows = sources()
    whole = computed(objective, view(objective, collate_text(rows, PAD)))
    alone = [computed(objective, view(objective, collate_text([e], PAD))).sum for e in rows]
    torch.testing.assert_close(torch.stack(alone).sum(), whole.sum, rtol=2e-5, atol=2e-5)
    packed = computed(objective, view(objective, collate_packed([rows[:3], rows[3:]], PAD)))
    torch.testing.assert_close(packed.sum, whole.sum, rtol=2e-5, atol=2e-5)
    plain = MIXED(parts=({"name": "sft"}, {**THOUGHT, "rate": 0.0})).for_examples(rows)
    unchanged = computed(plain, view(plain, collate_text(rows, PAD)))
    assert torch.equal(unchanged.figures["sft"][0], whole.figures["sft"][0])
    assert abs(unchanged.figures["masked_thought"][0] - whole.figures["masked_thought"][0]) > 1e-3


def test_parts_share_one_forward_pass() -> None:
    rows, model, runs = list(groups(6)), model_of("llama"), []
    model.register_forward_hook(lambda *told: runs.append(1))
    batch = collate_groups(rows, PAD)
    batch.reference = torch.zeros(12)
    objective = MIXED(parts=({"name": "sft", "answer": 0}, {"name": "dpo"})).for_examples(rows)
    scorer = Scorer(model).warm()
    runs.clear()
    objective.compute(scorer, batch).sum.backward()
    assert len(runs) == 1
    assert objective.reference
    assert not MIXED(parts=({"name": "sft"},)).reference


def test_through_the_loop_a_split_changes_nothing() -> None:
    found = []
    for size, pieces in ((1, 6), (6, 1)):
        settings = TrainSettings(
            max_steps=2, per_device_train_batch_size=size, gradient_accumulation_steps=pieces, optim="sgd",
            learning_rate=0.05, warmup_ratio=0.0, logging_steps=1,
        )  # fmt: skip
        loop = Loop(model_of("llama"), Full(), MIXED(parts=({"name": "sft"}, THOUGHT)), sources(), settings, PAD)
        found.append([(r["loss"], r["sft"], r["masked_thought"]) for r in loop.fit().log if "loss" in r])
    assert [x for row in found[0] for x in row] == pytest.approx([x for row in found[1] for x in row], rel=1e-5)


def test_rows_carry_their_part_through_the_data(tmp_path: Any) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "q ->", "completion": " r"}\n')
    sources = [
        {"path": str(tmp_path / "a.jsonl"), "template": {"objective": "sft"}},
        {"path": str(tmp_path / "b.jsonl")},
    ]
    for _ in range(2):  # the second time from the cache
        found = data.prepare(sources, tokenizer=vocabulary(), cache_dir=tmp_path / "cache")
        assert [e.extras["objective"] for e in found.examples] == ["sft", None]
    assert collate_text(found.examples, PAD).extras["objective"] == ["sft", None]  # type: ignore[arg-type]


def test_mistakes() -> None:
    with pytest.raises(LuthierError, match="no part"):
        MIXED(parts=({"name": "sft"},)).for_examples(sources())
    told = [replace(e, extras={"objective": "sft"}) for e in groups(6)]
    with pytest.raises(LuthierError, match="no training row is for part 'dpo'"):
        MIXED(parts=({"name": "sft"}, {"name": "dpo"})).for_examples(told)
    with pytest.raises(LuthierError, match="label"):
        MIXED(parts=({"name": "sft"}, {"name": "sft"}))
    with pytest.raises(LuthierError, match="head"):
        MIXED(parts=({"name": "sft"}, {"name": "classification"}))
    with pytest.raises(LuthierError, match="groups of answers share"):
        MIXED(parts=(THOUGHT,)).for_examples(list(groups(6)))


def test_in_a_recipe() -> None:
    def recipe(**part: Any) -> config.Recipe:
        return config.recipe({"model": "nano-1m", "objective": {"name": "mixed", "parts": [part]}})

    told = recipe(name="sft", label_smoothing=0.1, weight=2.0)
    assert told.method("objectives", "objective").objectives[0].label_smoothing == 0.1
    assert told.resolved()["objective"]["parts"][0]["weight"] == 2.0
    wrong = recipe(name="sftt")
    with pytest.raises(ConfigError, match="did you mean 'sft'"):
        wrong.method("objectives", "objective")


def test_a_part_on_ranked_answers_sees_its_own_prompts_alone() -> None:
    """Of prompts with different numbers of answers, the first and the last that are left out among them."""
    ranked = [
        replace(e, scores=[float(k) for k in range(len(e.answers))], extras={"objective": o})
        for e, o in zip(groups(6, 3), ("sft", "rrhf", "sft", "rrhf", "rrhf", "sft"), strict=True)
    ]
    mine = [e for e in ranked if e.extras["objective"] == "rrhf"]
    objective = MIXED(parts=({"name": "sft"}, {"name": "rrhf"})).for_examples(ranked)
    model = model_of("llama")
    found = computed(objective, collate_groups(ranked, PAD), model)
    alone = computed(catalog.load("objectives", "rrhf")(), collate_groups(mine, PAD), model)
    assert found.figures["rrhf"][1] == alone.weight == 3
    torch.testing.assert_close(found.figures["rrhf"][0], alone.sum.detach())


def test_what_belongs_to_whole_steps_is_no_part() -> None:
    with pytest.raises(LuthierError, match="part 'kto' needs a mean over whole steps"):
        MIXED(parts=({"name": "sft"}, {"name": "kto"}))
