"""Card 14 on the sandbox: four methods from three starts on three numbers of pairs, one grid a seed.

Five string tasks that nano-1m knows are asked for in a form that it does not know, with the answer in brackets. Pairs are
written by rule: the right answer against another task's answer on the same symbols, or against the right one said twice. The
starts: nano-1m tuned on rows of that form; nano-1m; nano-1m tuned on the same tasks as chat instructions, answers in brackets.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import luthier
from luthier import sandbox
from luthier.reproductions._family import Claim, Experiment, Row, mean
from luthier.sandbox.worlds.sequence import FUNCTIONS

SEEN, NEW = ("copy", "reverse", "sort", "rotate", "swap"), "interleave"
METHODS, STARTS = ("dpo", "ipo", "kto", "cpo"), ("sft", "base", "instruct")
SIZES = (64, 256, 1024)
FORM = r"^\s*\[ ([b-l ]+) \]\s*$"
"""A whole answer: symbols in brackets. The symbol a is left out, which counting words takes for an article."""


class Grid(Experiment):
    scope: ClassVar[str] = "this size"
    model: ClassVar[str] = "nano-1m"
    taught: ClassVar[int] = 240
    held: ClassVar[int] = 60
    asked: ClassVar[int] = 60
    batch: ClassVar[int] = 16
    setup = """nano-1m; starts tuned whole on 240 rows, 45 steps of 16 at 1e-3; cells by LoRA (r 8, all matrices), one epoch in
    batches of 16 pairs, cosine with 10 % warm-up; two trials a method (rates 5e-4 and 2e-3, beta 0.1) on 256 pairs, chosen by
    60 held-out pairs; 64, 256 and 1,024 pairs, a seed each; 60 questions a group: the five tasks, a sixth that neither starts
    nor pairs have, sums modulo 10 and facts of pretraining. Pairs are written by rule and not sampled, and facts stand in place
    of the card's probe of truthfulness, to keep a grid within minutes. Nothing was piloted."""

    def measure(self, seed: int) -> Row:
        with tempfile.TemporaryDirectory(prefix="luthier-grid-") as folder:
            done: Any = luthier.run(self.recipe(seed, Path(folder)), quiet=True)
            out: Row = {}
            for line in done.told["grid"]["lines"]:
                name = f"{line['start']}_{line['method']}_{line['size']}"
                out |= {f"{name}_{group}": told["value"] for group, told in line["groups"].items()}
                out |= {f"{name}_{k}": v for k, v in line["figures"].items()}
                runs = [
                    c for c in done.told["cells"] if c["method"] == f"{line['start']}: {line['method']}-{line['size']}"
                ]
                form = [c["results"]["tuned"]["seen"]["answered"]["value"] for c in runs if c["status"] == "done"]
                out |= {f"{name}_form": statistics.fmean(form)} if form else {}
            for start, zero in done.told["grid"]["zero"].items():
                out |= {f"{start}_{k}": v for k, v in zero.items()}
            out["lines"] = float(sum(not line["why"] for line in done.told["grid"]["lines"]))
        return out

    def rows(self, tasks: tuple[str, ...], split: str, n: int, seed: int) -> list[dict[str, Any]]:
        """Different questions of all tasks in turn, without the symbol a."""
        found: dict[str, dict[str, Any]] = {}
        rng = random.Random(f"{seed}/{split}")
        drawn = [(t, r) for t in tasks for r in sandbox.rows("sequence", task=t, split=split, n=2 * n, seed=seed)]
        rng.shuffle(drawn)
        for name, row in drawn:
            symbols = row["prompt"].split(":")[1].removesuffix("->").split()
            right = FUNCTIONS[name](symbols)
            wrong = [x for x in (FUNCTIONS[t](symbols) for t in SEEN) if x != right]
            if "a" in symbols or not wrong:
                continue
            said, ask = f"[ {' '.join(right)} ]", f"do {name} with {' '.join(symbols)}"
            other = f"[ {' '.join(rng.choice(wrong))} ]" if rng.random() < 2 / 3 else f"{said} {said}"
            found[ask] = {"ask": ask, "said": said, "other": other}
        return list(found.values())[:n]

    def recipe(self, seed: int, place: Path) -> dict[str, Any]:
        pool = self.rows(SEEN, "train", 2 * self.taught + SIZES[-1] + self.held, seed)
        plain, chat, held = pool[: self.taught], pool[self.taught : 2 * self.taught], pool[-self.held :]
        pairs = pool[2 * self.taught : -self.held]

        def written(name: str, rows: list[dict[str, str]]) -> str:
            file = place / f"{name}.jsonl"
            file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
            return str(file)

        def asked(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
            file = written(name, [{"prompt": f"{r['ask']} :", "answer": r["said"]} for r in rows])
            return {
                "name": name,
                "scorer": "answer",
                "pattern": FORM,
                "data": file,
                "max_new_tokens": 20,
                "stop": ["\n"],
            }

        def told(name: str, rows: list[dict[str, Any]]) -> str:
            return written(
                name,
                [{"prompt": f"{r['ask']} :", "chosen": f" {r['said']}", "rejected": f" {r['other']}"} for r in rows],
            )

        def skill(name: str, **more: Any) -> dict[str, Any]:
            return {"name": name, "scorer": "skills", "n": self.asked, "max_new_tokens": 24, **more}

        teach = {"max_steps": 45, "per_device_train_batch_size": 16, "learning_rate": 1e-3}
        sft = written("plain", [{"prompt": f"{r['ask']} :", "completion": f" {r['said']}"} for r in plain])
        instruct = written(
            "chat", [{"prompt": f"<|user|>{r['ask']}<|assistant|>", "completion": r["said"]} for r in chat]
        )
        return {
            "model": self.model, "seed": seed, "data": {"train": told("pairs", pairs), "eval": told("held", held)},
            "tuner": {"name": "lora", "r": 8, "targets": ["all"]}, "output_dir": str(place / "grid"),
            "procedure": {
                "name": "alignment_grid", "methods": list(METHODS), "sizes": list(SIZES), "rates": [5e-4, 2e-3],
                "strengths": [0.1], "seeds": 1, "fresh": False, "max_new_tokens": 24, "stop": ["\n"],
                "starts": {"sft": {"data": sft, "train": teach}, "base": {}, "instruct": {"data": instruct, "train": teach}},
                "groups": {
                    "seen": [asked("seen", self.rows(SEEN, "test", self.asked, seed))],
                    "new": [asked("new", self.rows((NEW,), "test", self.asked, seed))],
                    "sums": [skill("sums", world="arithmetic", task="sum10", part="short")],
                    "facts": [skill("facts", world="facts", task="rephrased", part="known")],
                },
            },
            "train": {
                "num_train_epochs": 1, "per_device_train_batch_size": self.batch, "logging_steps": 2, "save_strategy": "no",
                "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "torch_threads": 1,
            },
            "evaluate": {"drift": False},
        }  # fmt: skip

    def claims(self, rows: list[Row]) -> list[Claim]:
        cells = [(s, m) for s in STARTS for m in METHODS]
        most = SIZES[-1]

        def at(start: str, method: str, key: str, size: int = most) -> float:
            return mean(rows, f"{start}_{method}_{size}_{key}")

        def told(key: str, starts: tuple[str, ...] = STARTS) -> str:
            return "; ".join(f"{s}: " + ", ".join(f"{m} {at(s, m, key):.3f}" for m in METHODS) for s in starts)

        def trails(method: str) -> bool:
            return at("base", method, "form") < at("sft", method, "form") - 0.05

        seen = [statistics.fmean(at(s, m, "seen", n) for s, m in cells) for n in SIZES]
        counted = mean(rows, "lines")
        losses = "; ".join(f"{s} {m} {at(s, m, 'first_loss'):.3g} to {at(s, m, 'last_loss'):.3g}" for s, m in cells)
        return [
            Claim(
                "every cell of the table is filled",
                f"{counted:.0f} of {len(cells) * len(SIZES)} lines",
                counted == len(cells) * len(SIZES),
            ),
            Claim(
                "the loss of all four methods falls from every start",
                losses,
                all(at(s, m, "last_loss") < at(s, m, "first_loss") for s, m in cells),
            ),
            Claim(
                "0.8 of held-out pairs are ordered right from sft and instruct, by every method",
                told("held-out pairs"),
                all(at(s, m, "held-out pairs") >= 0.8 for s in ("sft", "instruct") for m in METHODS),
            ),
            Claim(
                "from base DPO and IPO trail in the form of their answers by more than 0.05 of those from sft",
                f"answers in brackets: {told('form')}",
                trails("dpo") and trails("ipo"),
            ),
            Claim("CPO does not", f"answers in brackets: {told('form', ('sft', 'base'))}", not trails("cpo")),
            Claim(
                "nor does KTO, as is usual",
                f"answers in brackets: {told('form', ('sft', 'base'))}",
                not trails("kto"),
                central=False,
            ),
            Claim(
                "four times as many pairs bring less the second time",
                f"right answers on {', '.join(map(str, SIZES))} pairs, mean of all: {', '.join(f'{x:.3f}' for x in seen)}",
                seen[2] - seen[1] < seen[1] - seen[0],
            ),
        ]
