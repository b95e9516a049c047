"""Card 49 on the sandbox: instruction data, reward model and policy in six invented languages; one run of the procedure a seed.

Seed tasks are in the first language. Four languages were a good part of pretraining, two a tenth of that. What is judged are
answers to lists of words that no task has, by the rule that the ranker ranks by.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import luthier
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread

WELL, LOW = ("Kare", "Goko", "Mada", "Pufe"), ("Poni", "Bede")
LANGUAGES = (*WELL, *LOW)
ARMS = ("base", "sft", "more", "free", "rlhf")
WORLD = "luthier.sandbox.worlds.errands"
PROCEDURE: dict[str, Any] = {
    "name": "okapi", "source": "Lopi", "languages": list(LANGUAGES), "classes": {"well": list(WELL), "low": list(LOW)},
    "generator": f"{WORLD}:generate", "translator": f"{WORLD}:translate", "ranker": f"{WORLD}:rank", "judge": f"{WORLD}:judged",
    "prompt": "{language}: {instruction}: {input} ->", "completion": " {output}",
    "held_out": "sandbox:errands?task={language}&split=test&n=100",
}  # fmt: skip


class Languages(Experiment):
    scope: ClassVar[str] = "this size and these languages"
    seeds: ClassVar[int] = 3
    sft_tasks: ClassVar[int] = 160
    ranking_tasks: ClassVar[int] = 640
    rl_tasks: ClassVar[int] = 160
    sft_steps: ClassVar[int] = 100
    sft_rate: ClassVar[float] = 2e-3
    reward_steps: ClassVar[int] = 300
    reward_rate: ClassVar[float] = 3e-4
    rounds: ClassVar[int] = 25
    rate: ClassVar[float] = 5e-4
    kappa: ClassVar[float] = 0.1
    policy_still: ClassVar[int] = 2
    setup = """nano-1m, of whose pretraining Kare, Goko, Mada and Pufe are a part each and Poni and Bede a tenth of that. 30 seed
    tasks in a seventh language, from them 960 by a template, three in ten of whose answers have a flaw (a word twice, words that
    nobody asked for), filtered at ROUGE-L 0.7, translated word by word with one text in twenty broken. Per language SFT on 160 of
    them (100 steps of 16, 2e-3, cosine), four sampled answers to 640 others, ranked by a rule in the seventh language with a tenth
    of neighbours swapped; a reward model, every weight moving (300 steps of 8 lists, 3e-4, warm-up); PPO with two layers
    unfrozen, 25 rounds of 64 answers to 32 prompts, two passes each, AdamW at 5e-4, kappa 0.1 towards 6 nats. `more` is SFT shown
    as many sequences as PPO trains on, passes counted; `free` is PPO with kappa 1e-9. Judged are one sampled and the likeliest
    answer to each of 100 lists of words that no task has; divergence and distinct-2 are those of the last quarter of rounds.
    Pilots with seed 0. Reward model on 320 lists, three layers, 120 steps at 1e-3, Goko and Poni: held-out pairs 0.682 and 0.543;
    rule, sampled, SFT 0.649 and 0.689, RLHF 0.637 and 0.603. On 854 lists of Goko, every weight, 400 steps: 0.537 at 1e-3, 0.625
    at 3e-4, 0.603 at 1e-4; 1,200 steps at 3e-4 learn the lists (loss 0.28) and not the order of others (0.619)."""

    def measure(self, seed: int) -> Row:
        with tempfile.TemporaryDirectory(prefix="luthier-okapi-") as folder:
            done = luthier.run(self.recipe(seed, Path(folder) / "run"), quiet=True)
            told = json.loads((done.folder / "okapi.json").read_text(encoding="utf-8"))
        return self.row(told)

    def recipe(self, seed: int, place: Path) -> dict[str, Any]:
        steady = {"logging_steps": 20, "save_strategy": "no"}
        return {
            "model": "nano-1m", "data": {"train": "sandbox:errands?task=Lopi&n=30"}, "seed": seed,
            "procedure": {
                **PROCEDURE, "sizes": {"sft": self.sft_tasks, "ranking": self.ranking_tasks, "rl": self.rl_tasks},
                "sft": {
                    "train": {"max_steps": self.sft_steps, "per_device_train_batch_size": 16, "learning_rate": self.sft_rate,
                              "lr_scheduler_type": "cosine"},
                },
                "reward": {
                    "train": {"max_steps": self.reward_steps, "per_device_train_batch_size": 8, "warmup_ratio": 0.1,
                              "learning_rate": self.reward_rate, "lr_scheduler_type": "cosine"},
                },
            },
            "tuner": {"name": "freeze", "lowest": self.policy_still},
            "objective": {"name": "ppo", "kappa": self.kappa, "target": 6.0, "horizon": 10000},
            "rollouts": {"reward": {"model": "reward"}, "answers": 2, "max_new_tokens": 12, "stop": ["\n"], "passes": 2,
                         "missing_eos_penalty": 1.0},
            "train": {**steady, "max_steps": 2 * self.rounds, "per_device_train_batch_size": 32, "learning_rate": self.rate,
                      "lr_scheduler_type": "constant"},
            "evaluate": {"drift": False}, "output_dir": str(place),
        }  # fmt: skip

    def row(self, told: dict[str, Any]) -> Row:
        out: Row = {}
        for name in LANGUAGES:
            found = told["languages"][name]
            out[f"pair_accuracy_{name}"] = found["pair_accuracy"]
            for arm in ARMS:
                keys = ("rule", "rule_best", "kl", "distinct_2", "tokens")
                out |= {f"{k}_{arm}_{name}": float(found["arms"][arm][k]) for k in keys if k in found["arms"][arm]}
            first = found["rounds"]["rlhf"][0]
            out[f"distinct_2_sft_{name}"] = first["distinct_2"]
        return out

    def claims(self, rows: list[Row]) -> list[Claim]:
        def of(key: str, name: str) -> float:
            return mean(rows, f"{key}_{name}")

        def each(key: str) -> str:
            return ", ".join(f"{n} {spread(rows, f'{key}_{n}')}" for n in LANGUAGES)

        def arms(key: str, names: tuple[str, ...]) -> str:
            return "; ".join(f"{arm}: {each(f'{key}_{arm}')}" for arm in names)

        gain = {n: of("rule_rlhf", n) - of("rule_sft", n) for n in LANGUAGES}
        accuracy = {n: of("pair_accuracy", n) for n in LANGUAGES}
        least, worst = min(gain, key=lambda n: gain[n]), min(accuracy, key=lambda n: accuracy[n])
        apart = {n: of("kl_free", n) / of("kl_rlhf", n) for n in LANGUAGES}
        return [
            Claim(
                "the reward model puts at least 80 % of held-out pairs in the ranker's order, in each language",
                each("pair_accuracy"),
                min(accuracy.values()) >= 0.8,
            ),
            Claim(
                "RLHF writes better answers than SFT in each of six languages, by the rule",
                arms("rule", ("base", "sft", "rlhf")),
                all(r[f"rule_rlhf_{n}"] > r[f"rule_sft_{n}"] for r in rows for n in LANGUAGES),
            ),
            Claim(
                "at a divergence of at most 10 nats an answer",
                each("kl_rlhf"),
                all(of("kl_rlhf", n) <= 10 for n in LANGUAGES),
            ),
            Claim(
                "without the pull the divergence is several times as large (three at least), and answers are less diverse",
                f"times: {', '.join(f'{n} {apart[n]:.1f}' for n in LANGUAGES)}; distinct-2 "
                + arms("distinct_2", ("sft", "rlhf", "free")),
                min(apart.values()) >= 3 and all(of("distinct_2_free", n) < of("distinct_2_rlhf", n) for n in LANGUAGES),
            ),
            Claim(
                "RLHF also beats SFT that is shown as many sequences",
                arms("rule", ("more", "rlhf")),
                all(of("rule_rlhf", n) > of("rule_more", n) for n in LANGUAGES),
                central=False,
            ),
            Claim(
                "in the likeliest answers RLHF beats SFT as well",
                arms("rule_best", ("sft", "rlhf")),
                all(of("rule_best_rlhf", n) > of("rule_best_sft", n) for n in LANGUAGES),
                central=False,
            ),
            Claim(
                "a low-resource language gains least, or has the worst reward model",
                f"least gain: {least} {gain[least]:.3f}; worst reward model: {worst} {accuracy[worst]:.3f}",
                least in LOW or worst in LOW,
                central=False,
            ),
        ]  # fmt: skip

    def explanation(self, rows: list[Row]) -> str:
        return (
            f"{super().explanation(rows)}. PPO follows reward models that do not know the order of answers: with the rule itself "
            "as reward, the same 25 rounds raise sampled answers in Goko from 0.649 to 0.681 and the likeliest from 0.744 to "
            "0.758 (one seed)"
        )
