"""Rounds of GRPO, from prompts to the updated model: answers a second of luthier and of trl's GRPOTrainer.

    python -m benchmarks.rollouts --folder DIR [--steps 2] [--batch 4] [--threads 1] [--small]

`--steps` rounds, each of 8 answers of 48 tokens to `--batch` prompts with the lengths of GSM8K's, drawn from the distribution of
a random model of 15 million parameters, which hardly ever says its end token: both write as many tokens. One reward judges
both. One step on the answers of each round, no pull towards the untuned model (both defaults); that losses and advantages are
the same is what `luthier check objectives/grpo` tells. Both take turns in one process after a round of each that is not timed.
trl writes by transformers' own `generate`, as it does without vLLM.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks import _contender as contender
from benchmarks import _shapes as shapes
from benchmarks._contender import Asked, Steps

ANSWERS, TOKENS, TURNS = 8, 48, 2


def reward(texts: Sequence[str]) -> list[float]:
    return [sum(w[-1] in "02468" for w in t.split()) / max(1, len(t.split())) for t in texts]


def main() -> None:
    told = contender.asked()
    now = time.process_time if told.threads == 1 else time.perf_counter
    prompts = [r.prompt for r in shapes.rows(told.steps * told.batch, small=told.small)]
    for run in (ours, theirs):
        run(replace(told, steps=1, batch=1), prompts[:1], Steps(now))
    turns = [(ours(told, prompts, Steps(now)), theirs(told, prompts, Steps(now))) for _ in range(TURNS)]
    ratios = [t.ends[-1] / o.ends[-1] for o, t in turns]
    answers = told.steps * told.batch * ANSWERS
    contender.say(
        {
            "contender": "rollouts", "answers": answers, "tokens": TOKENS, "load": os.getloadavg()[0],
            "speedup": [statistics.median(ratios), min(ratios), max(ratios)],
            "per_second": statistics.median(answers / o.ends[-1] for o, _ in turns),
            "trl_per_second": statistics.median(answers / t.ends[-1] for _, t in turns),
        }
    )  # fmt: skip


def ours(told: Asked, prompts: list[list[int]], clock: Steps) -> Steps:
    from luthier.core.batch import TextExample
    from luthier.core.config import RolloutSettings
    from luthier.core.loop import Loop
    from luthier.core.rollouts import Rollouts
    from luthier.decoding.nucleus import Nucleus
    from luthier.objectives.grpo import GRPO
    from luthier.tuners.full import Full

    settings, tuner = RolloutSettings(reward="here", answers=ANSWERS, max_new_tokens=TOKENS), Full()
    rollouts = Rollouts(settings, Nucleus(top_p=1.0), shapes.tokenizer(told.small), lambda rows, texts: reward(texts))
    examples = [TextExample(i, p, [False] * len(p), extras={"row": {}}) for i, p in enumerate(prompts)]
    Loop(
        tuner.wrap(shapes.model(told.small), "causal_lm"), tuner, GRPO(), examples, contender.train_settings(told), shapes.PAD,
        callbacks=[contender.luthier_steps(clock)], rollouts=rollouts,
    ).fit()  # fmt: skip
    return clock


def theirs(told: Asked, prompts: list[list[int]], clock: Steps) -> Steps:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Timed(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            clock.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            clock.step()

    settings = contender.trainer_arguments(replace(told, batch=told.batch * ANSWERS), grouped=False)
    settings.pop("train_sampling_strategy")
    GRPOTrainer(
        model=shapes.model(told.small),
        reward_funcs=lambda completions, **more: reward(completions),
        args=GRPOConfig(
            **settings,
            gradient_checkpointing=False,
            num_generations=ANSWERS,
            max_completion_length=TOKENS,
        ),
        train_dataset=Dataset.from_dict({"prompt": [shapes.words(p) for p in prompts]}),
        processing_class=shapes.tokenizer(told.small),
        callbacks=[Timed()],
    ).train()
    return clock


if __name__ == "__main__":
    main()
