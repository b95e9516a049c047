"""Losses of judged answers that trl has as well, over one and three epochs: luthier and trl's trainers on the same pairs.

    python -m benchmarks.preferences --folder DIR [--steps 6] [--batch 4] [--threads 1] [--small]

dpo, ipo        trl's DPOTrainer, its reference model beside the policy (its default)
kto             trl's KTOTrainer; each pair is two answers, and both take mismatched ones for the reference point
cpo, simpo      trl's CPOTrainer (experimental);  orpo  trl's ORPOTrainer (experimental): neither needs a reference

`--steps` steps of `--batch` pairs are an epoch. Ours asks the reference once, on the clock, before the first step; `stored` is
what epochs take when a run before it has asked. The table also sets each loss beside trl's DPO on the same pairs and epochs.
That both compute the same loss is what `luthier check` tells, where trl's trainers are the oracles.
Both take turns in one process after a step of each that is not timed. float32, AdamW (fused), clipping at 1, the same pairs, no
gradient checkpointing.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

from benchmarks import _contender as contender
from benchmarks import _shapes as shapes
from benchmarks._contender import Asked, Steps

EPOCHS = {"dpo": 3, "ipo": 3, "simpo": 1, "cpo": 1, "orpo": 1, "kto": 3}
TURNS = 1


def main() -> None:
    told = contender.asked()
    now = time.process_time if told.threads == 1 else time.perf_counter
    given, out = shapes.rows(told.steps * told.batch, pairs=True, small=told.small), []
    for name, epochs in EPOCHS.items():
        for run in (ours, theirs):
            run(replace(told, steps=1, batch=2), name, given[:2], 1, Steps(now))
        turns = [
            (ours(told, name, given, epochs, Steps(now)), theirs(told, name, given, epochs, Steps(now)))
            for _ in range(TURNS)
        ]
        row: dict[str, Any] = {"loss": name}
        for n in range(1, epochs + 1, 2):
            last = n * told.steps - 1
            trl = [t.ends[last] for _, t in turns]
            row[f"epochs_{n}"] = _ratios([o.before + o.ends[last] for o, _ in turns], trl)
            if any(o.before for o, _ in turns):
                row[f"epochs_{n}_stored"] = _ratios([o.ends[last] for o, _ in turns], trl)
        out.append(row)
        contender.note(row)
    contender.say({"contender": "preferences", "pairs": len(given), "load": os.getloadavg()[0], "rows": out})


def _ratios(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    found = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "speedup": [statistics.median(found), min(found), max(found)],
        "seconds": statistics.median(ours),
        "trl_seconds": statistics.median(theirs),
    }


def ours(told: Asked, name: str, given: list[shapes.Row], epochs: int, clock: Steps) -> Steps:
    from luthier.core import catalog
    from luthier.core.loop import Loop
    from luthier.core.references import references
    from luthier.tuners.full import Full

    objective, tuner, model = catalog.load("objectives", name)(), Full(), shapes.model(told.small)
    settings = contender.train_settings(replace(told, steps=epochs * told.steps))
    examples = [replace(e, scores=[1.0, 0.0]) for e in shapes.group_examples(given)]
    with tempfile.TemporaryDirectory() as store:
        os.environ["LUTHIER_CACHE"] = store
        begun = clock.now()
        asked = references(model, tuner, objective, examples, shapes.PAD, settings)
        clock.before = clock.now() - begun if asked is not None else 0.0
        Loop(
            tuner.wrap(model, "causal_lm"), tuner, objective, examples, settings, shapes.PAD, references=asked,
            callbacks=[contender.luthier_steps(clock)],
        ).fit()  # fmt: skip
    return clock


def theirs(told: Asked, name: str, given: list[shapes.Row], epochs: int, clock: Steps) -> Steps:
    from datasets import Dataset
    from transformers import TrainerCallback

    class Timed(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            clock.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            clock.step()

    trainer, config, options, reference = _trainer(name)
    answers = 2 if name == "kto" else 1
    told = replace(told, steps=epochs * told.steps, batch=answers * told.batch)
    settings = {**contender.trainer_arguments(told, grouped=False), "gradient_checkpointing": False, **options}
    found = trainer(
        model=shapes.model(told.small),
        args=config(**settings),
        train_dataset=Dataset.from_list(_texts(name, given)),
        processing_class=shapes.tokenizer(told.small),
        callbacks=[Timed()],
        **({"ref_model": shapes.model(told.small)} if reference else {}),
    )
    _same_ids(name, found.train_dataset, given)
    found.train()
    return clock


def _trainer(name: str) -> tuple[Any, Any, dict[str, Any], bool]:
    """trl's trainer and configuration of a loss, its settings, and whether it takes a reference model."""
    if name in ("dpo", "ipo"):
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer, DPOConfig, {"loss_type": "sigmoid" if name == "dpo" else "ipo", "max_length": None}, True
    if name == "kto":
        from trl import KTOConfig, KTOTrainer

        return KTOTrainer, KTOConfig, {"max_length": None, "train_sampling_strategy": "sequential"}, True
    if name == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig, {"max_length": 1024}, False
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    options = {"loss_type": "simpo", "cpo_alpha": 0.0} if name == "simpo" else {}
    return CPOTrainer, CPOConfig, {"max_length": 1024, **options}, False


def _texts(name: str, given: list[shapes.Row]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for r in given:
        prompt, chosen, rejected = (shapes.words(ids) + " " for ids in (r.prompt, r.answer, r.rejected or []))
        if name == "kto":
            out += [{"prompt": prompt, "completion": t, "label": t is chosen} for t in (chosen, rejected)]
        else:
            out.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return out


def _same_ids(name: str, made: Any, given: list[shapes.Row]) -> None:
    """trl insists on text: what it made of it must be the rows that luthier gets."""
    wanted = [(r.prompt, a) for r in given for a in (r.answer, r.rejected)]
    if name == "kto":
        found = [(m["prompt_ids"], m["completion_ids"]) for m in made]
    elif name in ("dpo", "ipo"):
        found = [(m["prompt_ids"], m[f"{side}_ids"]) for m in made for side in ("chosen", "rejected")]
    else:
        whole = [m[f"{side}_input_ids"] for m in made for side in ("chosen", "rejected")]
        found = [(w[: len(p)], w[len(p) :]) for w, (p, _) in zip(whole, wanted, strict=True)]
    if sorted(map(str, found)) != sorted(map(str, wanted)):
        raise SystemExit(f"trl tokenised a row of {name} differently: the comparison would not be fair")


if __name__ == "__main__":
    main()
