"""Card 43 on random small models: two styles of answer that overlap, so that a label is visible only over many tokens.

A prompt is five random symbols. A good answer has symbols of one half of the alphabet with probability 0.65 and 6 to 11 of them, a
bad one with 0.4 and 9 to 16. The model first learns the mixture without labels; every arm then has the same number of steps.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.core.attach import Attached
from luthier.core.batch import TextExample
from luthier.core.config import TrainSettings
from luthier.core.loop import Collator, Loop
from luthier.core.method import Limits, Tuner
from luthier.decoding.nucleus import Nucleus
from luthier.recipes._behind import Behind, from_folders
from luthier.recipes.meet import NONE, listening
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.tuners._controls import ControlTuner, choose_control
from luthier.tuners.control_lora import ControlLoRA
from luthier.tuners.control_prompts import ControlPrompts
from luthier.tuners.full import Full

PAD, BEGIN, ASKED, END, FIRST_SYMBOL = range(5)
STYLES = {"good": (0.65, 6, 11), "bad": (0.4, 9, 16)}
ARMS = ("meet", "meet_lora", "one_rate", "two_rates", "special_token")
"""Ways to tune controls and model: two stages with prompts or LoRA; together at one rate, at two, and one vector at one rate."""


def labelled_rows(n: int, symbols: int, rng: np.random.Generator) -> list[TextExample]:
    """Rows of both styles in turn."""
    out = []
    for row in range(n):
        label = list(STYLES)[row % 2]
        share, least, most = STYLES[label]
        length = int(rng.integers(least, most + 1))
        half = np.where(rng.random(length) < share, 0, symbols // 2)
        answer = FIRST_SYMBOL + half + rng.integers(0, symbols // 2, length)
        prompt = [BEGIN, *(FIRST_SYMBOL + rng.integers(0, symbols, 5)).tolist(), ASKED]
        counts = [False] * len(prompt) + [True] * (length + 1)
        out.append(TextExample(row, [*prompt, *answer.tolist(), END], counts, {"label": label}))
    return out


class MEET(Experiment):
    seeds: ClassVar[int] = 3
    scope: ClassVar[str] = "this size"
    symbols: ClassVar[int] = 20
    width: ClassVar[int] = 64
    layers: ClassVar[int] = 2
    rows: ClassVar[int] = 3000
    held_out: ClassVar[int] = 600
    asked: ClassVar[int] = 300
    batch: ClassVar[int] = 48
    base_steps: ClassVar[int] = 250
    base_rate: ClassVar[float] = 3e-3
    steps: ClassVar[int] = 240
    first_steps: ClassVar[int] = 80
    vectors: ClassVar[int] = 4
    prompt_rate: ClassVar[float] = 2e-2
    lora_rate: ClassVar[float] = 3e-3
    model_rate: ClassVar[float] = 1e-4
    ratio: ClassVar[float] = 10.0
    two_rates_ratio: ClassVar[float] = 100.0
    setup = """Random Llama models, 2 layers of width 64 (0.1M). 20 symbols, prompts of 5; a good answer has symbols of the first
    half with probability 0.65 and 6 to 11 of them, a bad one 0.4 and 9 to 16. 3000 labelled rows, 600 held out; base: 250 steps on
    the rows without labels at 3e-3. Every arm 240 steps of 48 rows, AdamW, constant: MEET 80 on 4 vectors a label at 2e-2 (LoRA of
    rank 8 on q and v at 3e-3), then 160 on the model at 1e-4 and the controls at 1e-3; together: both at 1e-4, or controls at
    1e-2; special token: one vector at 1e-4. Answers to 300 prompts are drawn at temperature 1. Steps and rates are the card's;
    the card names no rate for LoRA or the base."""

    def measure(self, seed: int) -> Row:
        rng = np.random.default_rng([seed, 0])
        train, held = (labelled_rows(n, self.symbols, rng) for n in (self.rows, self.held_out))
        base = self._base(train, seed)
        prompts, special = ControlPrompts(tokens=self.vectors), ControlPrompts(tokens=1)
        out: Row = {"bad_untuned": listening(base, held, list(STYLES), "label", Collator(PAD))["nats"]["bad"][NONE]}

        def tell(name: str, model: Any, attached: Attached | None = None) -> None:
            off = attached.off if attached is not None else getattr(model, "disable_adapter", nullcontext)
            found = listening(model, held, list(STYLES), "label", Collator(PAD), off=off)
            out.update({f"{name}_{k}": found[k] for k in ("nll", "swap_cost", "reliance")})
            out.update({f"{name}_bad_{c}": found["nats"]["bad"][c] for c in (*STYLES, NONE)})
            said = {label: self._said(model, label, held, seed) for label in STYLES}
            for i, what in enumerate(("share", "length")):
                out[f"{name}_{what}_gap"] = said["good"][i] - said["bad"][i]

        def under(name: str, attach: Callable[[Any], Attached], steps: int, ratio: float) -> None:
            tuner = Behind(Full(), attach, joint=True, ratio=ratio)
            tell(name, self._tuned(tuner, base, train, steps, self.model_rate, seed), tuner.attached)

        def drawn(tuner: ControlTuner) -> Callable[[Any], Attached]:
            return lambda model: Attached(tuner.wrap(model, "causal_lm", seed))

        for name, tuner, rate in (("meet", prompts, self.prompt_rate), ("meet_lora", ControlLoRA(), self.lora_rate)):
            with tempfile.TemporaryDirectory() as folder:
                first = self._tuned(tuner, base, train, self.first_steps, rate, seed)
                tell(f"{name}_first_stage", first)
                first.save_pretrained(folder)
                learned = from_folders({"default": Path(folder)})
                under(name, learned, self.steps - self.first_steps, self.ratio)
        under("one_rate", drawn(prompts), self.steps, 1.0)
        under("two_rates", drawn(prompts), self.steps, self.two_rates_ratio)
        under("special_token", drawn(special), self.steps, 1.0)
        return out

    def _base(self, rows: Sequence[TextExample], seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=FIRST_SYMBOL + self.symbols, hidden_size=self.width, intermediate_size=5 * self.width // 2,
                num_hidden_layers=self.layers, num_attention_heads=4, max_position_embeddings=64, tie_word_embeddings=True,
                pad_token_id=PAD, bos_token_id=BEGIN, eos_token_id=END,
            )  # fmt: skip
            model = LlamaForCausalLM(config)
        return self._tuned(Full(), model, rows, self.base_steps, self.base_rate, seed)

    def _tuned(self, tuner: Tuner, base: Any, rows: Sequence[TextExample], steps: int, rate: float, seed: int) -> Any:
        from luthier.objectives.sft import SFT

        settings = TrainSettings(
            max_steps=steps, per_device_train_batch_size=self.batch, learning_rate=rate, lr_scheduler_type="constant",
            logging_steps=10_000, cache_frozen_layers=False,
        )  # fmt: skip
        model = tuner.wrap(copy.deepcopy(base), "causal_lm", seed)
        Loop(model, tuner, SFT(), rows, settings, PAD, seed).fit()
        return model.eval()

    def _said(self, model: Any, label: str, held: Sequence[TextExample], seed: int) -> tuple[float, float]:
        """Share of the first half's symbols in drawn answers under a control, and their mean length."""
        choose_control(model, label)
        prompts = [e.ids[: e.counts.index(True)] for e in held[: self.asked]]
        limits = Limits(max_new_tokens=24, stop_ids=(END,), pad_id=PAD, seed=seed)
        said = [g.ids for g in Nucleus(temperature=1.0, top_p=1.0).generate(model, prompts, limits)]
        symbols = np.concatenate([np.array(ids) for ids in said]) - FIRST_SYMBOL
        choose_control(model, "good")
        return float(((symbols >= 0) & (symbols < self.symbols // 2)).mean()), len(symbols) / len(said)

    def claims(self, rows: list[Row]) -> list[Claim]:
        def told(name: str) -> str:
            found = " / ".join(spread(rows, f"{name}_{k}") for k in ("nll", "swap_cost", "reliance"))
            return f"{name.replace('_', ' ')} {found}"

        def above(one: str, other: str, key: str) -> bool:
            return all(r[f"{one}_{key}"] > r[f"{other}_{key}"] for r in rows)

        bad = {c: mean(rows, f"meet_bad_{c}") for c in (*STYLES, NONE)}
        return [
            Claim(
                "controls alone, the model untouched, are listened to: exchanging them costs likelihood",
                f"swap cost {spread(rows, 'meet_first_stage_swap_cost')}; with LoRA "
                f"{spread(rows, 'meet_lora_first_stage_swap_cost')}",
                all(r[f"{name}_first_stage_swap_cost"] > 0 for r in rows for name in ("meet", "meet_lora")),
            ),
            Claim(
                "at equal steps swap cost and reliance are above those of controls and model tuned together at one rate",
                f"nats / swap cost / reliance: {'; '.join(map(told, ARMS))}",
                all(above("meet", "one_rate", key) for key in ("swap_cost", "reliance")),
            ),
            Claim(
                "exchanging the control flips the style: more of the first half's symbols and shorter answers under good",
                f"gap of the share {spread(rows, 'meet_share_gap')}, of the length {spread(rows, 'meet_length_gap')}; of the data "
                "0.25 and -4",
                all(r["meet_share_gap"] > 0 and r["meet_length_gap"] < 0 for r in rows),
            ),
            Claim(
                "two rates without a first stage reach MEET's nats, swap cost and reliance: the order's benefit is one of rates",
                f"{told('two_rates')}; {told('meet')}",
                mean(rows, "two_rates_nll") <= mean(rows, "meet_nll")
                and all(mean(rows, f"two_rates_{k}") >= mean(rows, f"meet_{k}") for k in ("swap_cost", "reliance")),
                central=False,
            ),
            Claim(
                "bad answers do not become likelier without a control, nor under the good one, though they were trained on",
                f"nats a token of bad answers: untuned {spread(rows, 'bad_untuned')}; MEET without a control {bad[NONE]:.3f}, "
                f"under good {bad['good']:.3f}, under bad {bad['bad']:.3f}",
                min(bad[NONE], bad["good"]) >= mean(rows, "bad_untuned"),
                central=False,
            ),
        ]  # fmt: skip
