"""A teacher that is asked once and stored, against one that is asked at every step: seconds of one and of three epochs.

    python -m benchmarks.distillation --folder DIR [--steps 3] [--batch 8] [--threads 1] [--small]

The student is the Llama of 15 million parameters, the teacher one of 65 million, both random, on `steps * batch` rows with the
lengths of GSM8K. `stored` is objective `first` on the teacher's 5 likeliest tokens: asking and writing them is on the clock, and
`kept` is what it takes when the store is there already (another rate, another method). `live` is objective `distill`, the
forward divergence over the whole vocabulary. They are not the same loss: a store of 5 tokens is what makes the difference
possible. Runs take turns in one process after a step of each that is not timed; what `held_mb` tells is the teacher's weights,
which `live` keeps in memory. float32, AdamW (fused), clipping at 1.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import _contender as contender
from benchmarks import _shapes as shapes
from benchmarks._contender import Asked, Steps

K, EPOCHS, TURNS = 5, 3, 2


def main() -> None:
    told = contender.asked()
    now = time.process_time if told.threads == 1 else time.perf_counter
    given = shapes.text_examples(shapes.rows(told.steps * told.batch, small=told.small))
    teacher = big(told.small).eval().requires_grad_(False)
    for run in (stored, live):
        run(replace(told, steps=1, batch=2), given[:2], teacher, Steps(now), 1)
    turns = [[run(told, given, teacher, Steps(now), EPOCHS) for run in (stored, live)] for _ in range(TURNS)]
    rows = []
    for n in (1, EPOCHS):
        last = n * told.steps - 1
        asking = [t.ends[last] / (s.before + s.ends[last]) for s, t in turns]
        kept = [t.ends[last] / s.ends[last] for s, t in turns]
        rows.append(
            {
                "epochs": n,
                "speedup": [statistics.median(asking), min(asking), max(asking)],
                "kept": [statistics.median(kept), min(kept), max(kept)],
            }
        )
    held = sum(p.numel() * p.element_size() for p in teacher.parameters()) / 2**20
    contender.say(
        {"contender": "distillation", "rows": rows, "k": K, "held_mb": held, "load": os.getloadavg()[0], "texts": len(given)}
    )  # fmt: skip


def big(small: bool) -> Any:
    """A random Llama of 65 million parameters over the student's vocabulary; `small`: of two million."""
    return shapes.llama(*((128, 4, 4) if small else (576, 12, 4)), small, seed=1)


def stored(told: Asked, given: list[Any], teacher: Any, clock: Steps, epochs: int) -> Steps:
    from luthier.core.references import References
    from luthier.core.teacher import TeacherStore, ask
    from luthier.objectives.first import FIRST

    with tempfile.TemporaryDirectory() as folder:
        begun, file = clock.now(), Path(folder) / "teacher.safetensors"
        ask(teacher, given, K, shapes.PAD).save(file)
        top = TeacherStore.load(file).of(given)
        clock.before = clock.now() - begun
    return _fit(told, given, FIRST(teacher="here", k=K), References(top=top), clock, epochs)


def live(told: Asked, given: list[Any], teacher: Any, clock: Steps, epochs: int) -> Steps:
    from luthier.core.references import References
    from luthier.objectives.distill import Distill

    return _fit(told, given, Distill(teacher="here"), References(model=teacher), clock, epochs)


def _fit(told: Asked, given: list[Any], objective: Any, asked: Any, clock: Steps, epochs: int) -> Steps:
    from luthier.core.loop import Loop
    from luthier.tuners.full import Full

    settings, tuner = contender.train_settings(replace(told, steps=epochs * told.steps)), Full()
    Loop(
        tuner.wrap(shapes.model(told.small), "causal_lm"), tuner, objective, given, settings, shapes.PAD, references=asked,
        callbacks=[contender.luthier_steps(clock)],
    ).fit()  # fmt: skip
    return clock


if __name__ == "__main__":
    main()
