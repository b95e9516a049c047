"""Card 34 on the sandbox: five ways to ship an adapter of a quantised base, and three ways to answer an exam.

Builds: a map from words to words that the model does not know is learned by LoRA on Q(W), well or hardly; each build is asked
for the same words. Formats: codes alone, solutions, topic and solutions, from the same tasks for the same steps, where the
topic decides the rule and where it does not.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from luthier import data, sandbox
from luthier.core.config import ModelSettings, TrainSettings
from luthier.core.exam import FORMATS
from luthier.core.logprobs import kl
from luthier.core.subject import Subject
from luthier.evaluation._family import items_of
from luthier.evaluation.exam_points import ExamPoints
from luthier.recipes._stages import rounded_copy
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._sequence import tune
from luthier.sandbox.lexicon import LANGUAGE_WORDS
from luthier.tuners.full import Full
from luthier.tuners.lora import LoRA
from luthier.verbs.builds import WAYS, builds
from luthier.verbs.load import Loaded, load

PARTS = ("decided", "constant")
STRENGTHS = ("strong", "weak")


class Exam(Experiment):
    model: ClassVar[str] = "nano-1m"
    rows: ClassVar[int] = 3000
    test_rows: ClassVar[int] = 80
    batch: ClassVar[int] = 16
    steps: ClassVar[int] = 300
    constant_steps: ClassVar[int] = 200
    rate: ClassVar[float] = 2e-3
    words: ClassVar[int] = 60
    rank: ClassVar[int] = 8
    alpha: ClassVar[float] = 16.0
    adapter_steps: ClassVar[int] = 200
    adapter_rate: ClassVar[float] = 3e-3
    setup = """nano-1m. Builds: 60 words, each to follow another of them, LoRA r 8, alpha 16 on all matrices of an NF4 base, all
    words a step, AdamW at 3e-3, constant, 200 steps, or 20 for the weak adapter; KL at the place of the answer; log-probability
    and accuracy of the whole word. Formats: 3,000 matching tasks of train exams, 80 tasks of ten test exams, every weight,
    batch 16, AdamW at 2e-3, linear with a tenth of warm-up; 300 steps where the topic decides, 200 where the rule is constant,
    the same for all formats of a part; no instruction in the prompt, its tokens are not trained. Pilots with seed 0 (share of the
    points): where the topic decides, 150 steps of 32 at 1e-3: letters 0.18, cot 0.40, cot+topic 0.25; 400 steps of 16 at 1e-3:
    cot 0.95; at 2e-3: letters 0.21, cot 0.99, cot+topic 1.00. Constant, 200 steps at 2e-3: letters 0.22, cot 1.00.
    Builds, seed 0, at these settings: KL original 0.092, in place 0.036, reloaded 0.094, 0.90 of the words right."""

    def measure(self, seed: int) -> Row:
        return {**self.shipped(seed), **self.formats(seed)}

    # -------------------------------------------------------------------------------------------------- builds

    def shipped(self, seed: int) -> Row:
        """KL, accuracy and log-probability of every build of a strong adapter and of one with a tenth of its steps."""
        rng = random.Random(seed)
        keys = rng.sample(LANGUAGE_WORDS, self.words)
        rows = [
            {"prompt": f"{k} ->", "completion": f" {v}"} for k, v in zip(keys, rng.sample(keys, len(keys)), strict=True)
        ]
        out: Row = {}
        with tempfile.TemporaryDirectory() as folder:
            told = ModelSettings(model_name_or_path=self.model)
            low = load(str(rounded_copy(told, "nf4", Path(folder) / "base")))
            table = data.RowTable(rows, [f"word {k}" for k in keys], sources=["words"], found=len(rows))
            train = data.prepare(table, tokenizer=low.tokenizer).examples
            out |= {f"untuned_{k}": v for k, v in self.asked(low, rows).items()}
            for name, steps in zip(STRENGTHS, (self.adapter_steps, self.adapter_steps // 10), strict=True):
                settings = TrainSettings(
                    max_steps=steps, per_device_train_batch_size=self.words, learning_rate=self.adapter_rate,
                    lr_scheduler_type="constant", logging_steps=10_000,
                )  # fmt: skip
                tuner = LoRA(r=self.rank, alpha=self.alpha, targets=("all",))
                adapter = Path(folder) / name
                tune(low.model, low.tokenizer, tuner, train, settings, seed).model.save_pretrained(adapter)
                source = ModelSettings(model_name_or_path=self.model, adapter=str(adapter))
                said: list[Tensor] = []

                def measure(made: Loaded, said: list[Tensor] = said) -> Row:
                    said.append(answering(made, rows))
                    return {**self.asked(made, rows), "kl": float(kl(said[0], said[-1]).mean())}

                found = builds(source, "nf4", [r["prompt"] for r in rows], measure)
                for build in found.rows:
                    key = f"{name}_{build.name.replace(' ', '_')}"
                    out |= {f"{key}_prompt_kl": build.kl, f"{key}_difference": build.max_logit_difference}
                    out |= {f"{key}_{k}": v for k, v in build.figures.items()}
                out |= {f"{name}_ratio_low": min(found.ratio.values()), f"{name}_ratio_high": max(found.ratio.values())}
        return out

    @torch.no_grad()
    def asked(self, made: Loaded, rows: list[dict[str, Any]]) -> Row:
        """Mean log-probability of the right words, and the share of which every token is the likeliest."""
        subject = Subject(made.model.eval(), made.tokenizer)
        found = subject.pair_logp([subject.encode_pair(r["prompt"], r["completion"]) for r in rows])
        return {
            "logp": float(np.mean([logp.sum() for logp, _ in found])),
            "right": float(np.mean([best.all() for _, best in found])),
        }

    # ------------------------------------------------------------------------------------------------- formats

    def formats(self, seed: int) -> Row:
        """Share of the points of matching tasks, and of outputs that are no answer."""
        base, tokenizer = sandbox.load(self.model)
        out: Row = {}
        for part, steps in zip(PARTS, (self.steps, self.constant_steps), strict=True):
            settings = TrainSettings(
                max_steps=steps, per_device_train_batch_size=self.batch, learning_rate=self.rate, warmup_ratio=0.1,
                logging_steps=10_000,
            )  # fmt: skip
            source = f"sandbox:exam?task=matching&part={part}"
            items = items_of(data.read(f"{source}&split=test&n={self.test_rows}").rows)
            for form in FORMATS:
                train = data.prepare(
                    f"{source}&n={self.rows}&seed={seed}",
                    tokenizer=tokenizer,
                    options={"target": form, "wording": "bare"},
                ).examples
                done = tune(base, tokenizer, Full(), train, settings, seed)
                scorer = ExamPoints(target=form, wording="bare", max_new_tokens=56)
                answers = scorer.ask(Subject(done.model, tokenizer), items)
                every = np.ones((1, len(answers)))
                for metric in ("share", "unparsed"):
                    out[key_of(part, form, metric)] = float(scorer.aggregate(metric, answers)(answers.stats, every)[0])
        return out

    def explanation(self, rows: list[Row]) -> str:
        told = ", ".join(f"{f} {mean(rows, key_of('constant', f)):.2f}" for f in FORMATS)
        return (
            f"{super().explanation(rows)}. Shares of the points with a constant rule: {told}. Where codes alone fall behind there "
            "too, what they lack is not the topic: to apply a rule to four statements and find each result among the options "
            "takes steps of its own, whatever the rule"
        )

    def claims(self, rows: list[Row]) -> list[Claim]:
        names = [n.replace(" ", "_") for n in WAYS]
        strong = {n: mean(rows, f"strong_{n}_kl") for n in names}
        share = {p: {f: mean(rows, key_of(p, f)) for f in FORMATS} for p in PARTS}

        def told(strength: str, what: str) -> str:
            return ", ".join(f"{n.replace('_', ' ')} {mean(rows, f'{strength}_{n}_{what}'):.2g}" for n in names)

        def shares(part: str) -> str:
            return ", ".join(f"{f} {spread(rows, key_of(part, f))}" for f in FORMATS)

        def gain(build: str) -> float:
            """Of the weak adapter's gain, what the build keeps."""
            start = mean(rows, "untuned_logp")
            return (mean(rows, f"weak_{build}_logp") - start) / (mean(rows, "weak_served_logp") - start)

        near = max(strong["original"], strong["in_place"]) <= 2 * min(strong["original"], strong["in_place"])
        ratios = {s: f"{mean(rows, f'{s}_ratio_low'):.2f} to {mean(rows, f'{s}_ratio_high'):.2f}" for s in STRENGTHS}
        kept = ", ".join(f"{n.replace('_', ' ')} {gain(n):.2f}" for n in names)
        return [
            Claim(
                "KL to what training saw: kept is 0, original and in place are above it and within a factor of two, reloaded is "
                "above both",
                f"{told('strong', 'kl')}; |D| / |W - Q(W)| {ratios['strong']}",
                abs(strong["kept"]) < 1e-6 and near
                and strong["kept"] < min(strong["original"], strong["in_place"])
                and max(strong["original"], strong["in_place"]) < strong["reloaded"],
            ),
            Claim(
                "where the adapter is strong, the greedy answer tells no build from another (within 0.05)",
                told("strong", "right"),
                all(abs(mean(rows, f"strong_{n}_right") - mean(rows, "strong_served_right")) <= 0.05 for n in names),
            ),
            Claim(
                "where it is weak, with some |D| / |W - Q(W)| below 1, both builds that are quantised again lose part of the gain",
                f"kept of the gain: {kept}; ratio {ratios['weak']}",
                mean(rows, "weak_ratio_low") < 1 and max(gain("reloaded"), gain("in_place")) < 0.95,
            ),
            Claim(
                "solutions gain more of the matching points than codes alone where the topic decides",
                shares("decided"),
                share["decided"]["cot"] > share["decided"]["letters"],
            ),
            Claim(
                "writing the topic first is not worse where it decides (by 0.02 at most)",
                shares("decided"),
                share["decided"]["cot+topic"] >= share["decided"]["cot"] - 0.02,
            ),
            Claim(
                "where the rule is constant all three are equal (within 0.1)",
                shares("constant"),
                max(share["constant"].values()) - min(share["constant"].values()) <= 0.1,
            ),
        ]  # fmt: skip


@torch.no_grad()
def answering(made: Loaded, rows: list[dict[str, Any]]) -> Tensor:
    """(words, V) log-probabilities of what follows each word."""
    subject = made.subject()
    ids = [subject.encode(r["prompt"]) for r in rows]
    return torch.stack([made.model(input_ids=torch.tensor([i])).logits[0, -1].double().log_softmax(-1) for i in ids])


def key_of(part: str, form: str, metric: str = "share") -> str:
    return f"{part}_{form.replace('+', '_')}_{metric}"
