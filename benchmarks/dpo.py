"""Preference tuning (DPO) on GSM8K-shaped pairs over one epoch: luthier and trl's DPOTrainer.

    python -m benchmarks.dpo CONTENDER --folder DIR [--steps 16] [--batch 4] [--threads 1] [--equal]

luthier          as shipped: shared prompts, length buckets; the reference is run over all pairs on the clock
luthier-stored   the same when the store holds the reference's log-probabilities (a second run, another learning rate)
trl              DPOTrainer, reference model beside the policy (its default), no gradient checkpointing
trl-precomputed  the same with precompute_ref_log_probs, on the clock
trl-shipped      trl with gradient checkpointing, which it switches on by default

All: float32, AdamW (fused), linear decay without warm-up, clipping at 1, beta 0.1, the same pairs and steps. With
`--equal` everybody sees the same batches in the same order and must report the same loss at every step.
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks import _contender as contender
from benchmarks import _shapes as shapes
from benchmarks._contender import Asked, Clock

CONTENDERS = ("luthier", "luthier-stored", "trl", "trl-precomputed", "trl-shipped")


def main() -> None:
    told, clock = contender.asked(), Clock()
    given = shapes.rows(told.steps * told.batch, pairs=True, small=told.small)
    family, _, variant = told.contender.partition("-")
    if family == "luthier":
        with_luthier(told, clock, given, variant)
    else:
        if told.equal:
            order = contender.plan_order([0] * len(given), told.batch)
            given = [given[i] for i in order]
        with_trl(told, clock, given, variant)
    contender.tell(told, clock, len(given))


def with_luthier(told: Asked, clock: Clock, given: list[shapes.Row], variant: str) -> None:
    from luthier.core.loop import Loop
    from luthier.core.references import reference_logp
    from luthier.objectives.dpo import DPO
    from luthier.tuners.full import Full

    os.environ["LUTHIER_CACHE"] = told.folder
    settings, examples, model, tuner = (
        contender.train_settings(told),
        shapes.group_examples(given),
        shapes.model(told.small),
        Full(),
    )
    if variant == "stored":
        reference_logp(model, examples, shapes.PAD, settings)
    clock.start()
    references, _ = reference_logp(model, examples, shapes.PAD, settings)
    clock.stop()
    Loop(
        tuner.wrap(model, "causal_lm"), tuner, DPO(), examples, settings, shapes.PAD,
        references=references, callbacks=[contender.luthier_callback(clock)],
    ).fit()  # fmt: skip


def with_trl(told: Asked, clock: Clock, given: list[shapes.Row], variant: str) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    table = Dataset.from_dict(
        {
            "prompt": [shapes.words(r.prompt) + " " for r in given],
            "chosen": [shapes.words(r.answer) + " " for r in given],
            "rejected": [shapes.words(r.rejected or []) + " " for r in given],
        }
    )

    class Timed(DPOTrainer):
        """trl runs the reference while the trainer is built: that is on the clock, tokenising is not."""

        def _precompute_ref_logps(self, *given: Any) -> Any:
            clock.start()
            table = super()._precompute_ref_logps(*given)
            clock.stop()
            return table

    trainer = Timed(
        model=shapes.model(told.small),
        ref_model=None if variant == "precomputed" else shapes.model(told.small),
        args=DPOConfig(
            **contender.trainer_arguments(told, grouped=False),
            max_length=None,
            beta=0.1,
            gradient_checkpointing=variant == "shipped",
            precompute_ref_log_probs=variant == "precomputed",
        ),
        train_dataset=table,
        processing_class=shapes.tokenizer(told.small),
        callbacks=[contender.trainer_callback(clock)],
    )
    _same_ids(trainer, given)
    trainer.train()


def _same_ids(trainer: Any, given: list[shapes.Row]) -> None:
    """trl insists on text: what it made of it must be the rows that luthier gets."""
    for row, made in zip(given, trainer.train_dataset, strict=True):
        if (made["prompt_ids"], made["chosen_ids"], made["rejected_ids"]) != (row.prompt, row.answer, row.rejected):
            raise SystemExit("trl tokenised a pair differently: the comparison would not be fair")


if __name__ == "__main__":
    main()
