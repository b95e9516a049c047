"""Supervised tuning on GSM8K-shaped rows: luthier, transformers' Trainer and trl's SFTTrainer.

    python -m benchmarks.sft CONTENDER --folder DIR [--steps 24] [--threads 1] [--equal]

luthier               as shipped: length buckets, the head at trained positions only
transformers          Trainer, dynamic padding, rows in random order (its default)
transformers-grouped  the same with train_sampling_strategy=group_by_length
trl                   SFTTrainer, completion-only labels, no gradient checkpointing, random order
trl-grouped           the same with train_sampling_strategy=group_by_length
trl-shipped           trl with gradient checkpointing, which it switches on by default

All: float32, batch 8, AdamW (fused), linear decay without warm-up, clipping at 1, a log line at every step, the same
rows and number of steps. trl would run bfloat16 by default: it is switched off. Its packing and padding-free modes
need FlashAttention and stay off. Rows are tokenised beforehand for everyone. The clock runs from the first step to
the last: loading a model and preparing a data set are nobody's cost.

With `--equal` everybody sees the same batches in the same order and must report the same loss at every step.
"""

from __future__ import annotations

from typing import Any

from benchmarks import _contender as contender
from benchmarks import _shapes as shapes
from benchmarks._contender import Asked, Clock

CONTENDERS = ("luthier", "transformers", "transformers-grouped", "trl", "trl-grouped", "trl-shipped")


def main() -> None:
    told, clock = contender.asked(), Clock()
    given = shapes.rows(told.steps * told.batch, small=told.small)
    family, _, variant = told.contender.partition("-")
    if family == "luthier":
        with_luthier(told, clock, given)
    else:
        if told.equal:
            order = contender.plan_order([len(r.prompt) + len(r.answer) for r in given], told.batch)
            given = [given[i] for i in order]
        (with_transformers if family == "transformers" else with_trl)(told, clock, given, variant)
    contender.tell(told, clock, len(given))


def with_luthier(told: Asked, clock: Clock, given: list[shapes.Row]) -> None:
    from luthier.core.loop import Loop
    from luthier.objectives.sft import SFT
    from luthier.tuners.full import Full

    tuner = Full()
    Loop(
        tuner.wrap(shapes.model(told.small), "causal_lm"), tuner, SFT(), shapes.text_examples(given),
        contender.train_settings(told), shapes.PAD, callbacks=[contender.luthier_callback(clock)],
    ).fit()  # fmt: skip


def _table(given: list[shapes.Row]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "input_ids": [r.prompt + r.answer for r in given],
            "labels": [[-100] * len(r.prompt) + r.answer for r in given],
        }
    )


def with_transformers(told: Asked, clock: Clock, given: list[shapes.Row], variant: str) -> None:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = shapes.tokenizer(told.small)
    Trainer(
        model=shapes.model(told.small),
        args=TrainingArguments(**contender.trainer_arguments(told, variant == "grouped")),
        train_dataset=_table(given),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=[contender.trainer_callback(clock)],
    ).train()


def with_trl(told: Asked, clock: Clock, given: list[shapes.Row], variant: str) -> None:
    from trl import SFTConfig, SFTTrainer

    arguments = contender.trainer_arguments(told, variant == "grouped")
    SFTTrainer(
        model=shapes.model(told.small),
        args=SFTConfig(
            **arguments,
            max_length=None,
            gradient_checkpointing=variant == "shipped",
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=_table(given),
        processing_class=shapes.tokenizer(told.small),
        callbacks=[contender.trainer_callback(clock)],
    ).train()


if __name__ == "__main__":
    main()
