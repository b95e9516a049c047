"""The pool of tasks by the rouge_score package; SFT and reward model in a bare float64 loop over single rows."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from luthier import sandbox
from luthier.checks._compare import require
from luthier.core import config

_NAME = __name__.rsplit("recipes_", 1)[-1]
_WORLD = "luthier.sandbox.worlds.errands"
SIZES, STEPS, STILL = {"sft": 5, "ranking": 8, "rl": 4}, 3, 2
RATES = {"sft": 1e-3, "reward": 1e-3}
# eps above the noise: Adam turns the rounding of gradients that are zero into whole steps otherwise
ADAM: dict[str, Any] = {"eps": 1e-4, "weight_decay": 0.1}


def _recipe(folder: str) -> dict[str, Any]:
    plain = {
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "adam_epsilon": ADAM["eps"],
        "weight_decay": ADAM["weight_decay"], "per_device_train_batch_size": 64,
    }  # fmt: skip
    return {
        "model": "nano-1m",
        "procedure": {
            "name": _NAME, "languages": ["Goko"], "source": "Lopi", "sizes": SIZES, "more": False, "free": False,
            "generator": f"{_WORLD}:generate", "translator": f"{_WORLD}:translate", "ranker": f"{_WORLD}:rank",
            "prompt": "{language}: {instruction}: {input} ->", "completion": " {output}",
            "sft": {"train": {"learning_rate": RATES["sft"], "max_steps": STEPS}},
            "reward": {
                "train": {"learning_rate": RATES["reward"], "max_steps": STEPS}, "tuner": {"name": "freeze", "lowest": STILL},
            },
        },
        "data": {"train": "sandbox:errands?task=Lopi&n=12"}, "objective": "ppo", "tuner": "full",
        "rollouts": {"reward": {"model": "reward"}, "answers": 1, "max_new_tokens": 4, "stop": ["\n"]},
        "train": {**plain, "learning_rate": 1e-5, "max_steps": 1},
        "evaluate": {"drift": False}, "output_dir": f"{folder}/run",
    }  # fmt: skip


def oracle_rouge_score() -> None:
    """The same tasks are kept when every one is compared with every other by another implementation of ROUGE-L."""
    from rouge_score.rouge_scorer import RougeScorer

    from luthier.data._self_instruct import BANNED, asked, self_instruct
    from luthier.sandbox.worlds.errands import generate

    seeds = [{k: r[k] for k in ("instruction", "input", "output")} for r in sandbox.rows("errands", n=12)]
    found, counts = self_instruct(seeds, generate, 60, seed=5, shown=8, own=2)
    scorer, pool, rounds, similar = RougeScorer(["rougeL"]), [" ".join(asked(t)) for t in seeds], 0, 0
    kept: list[dict[str, str]] = []
    while len(kept) < 60:
        rng = random.Random(f"5/self-instruct/{rounds}")
        some = rng.sample(kept, min(2, len(kept)))
        some += rng.sample(seeds, 8 - len(some))
        for task in generate(some, rng.randrange(2**31)):
            text = " ".join(asked(task))
            if not task["output"] or text in pool or len(text.split()) < 3 or set(text.split()) & set(BANNED):
                continue
            if max(scorer.score(text, other)["rougeL"].fmeasure for other in pool) >= 0.7:
                similar += 1
            elif len(kept) < 60:
                kept.append(task)
                pool.append(text)
        rounds += 1
    require(found == kept, "other tasks are kept than by rouge_score")
    require(counts["similar"] == similar > 0, f"{counts['similar']} are called similar, by rouge_score {similar}")


def oracle_bare_loop() -> None:
    from luthier.core.loop import seed_everything
    from luthier.verbs.load import load
    from luthier.verbs.run import run

    with tempfile.TemporaryDirectory() as folder:
        told = config.recipe(_recipe(folder))
        run(told, quiet=True)
        home = Path(folder) / "run" / "Goko"
        tuned = {arm: load_file(home / arm / "model" / "model.safetensors") for arm in RATES}
        rows = {
            p: [json.loads(x) for x in (home / "rows" / f"{p}.jsonl").read_text().splitlines()]
            for p in ("sft", "ranked")
        }
        seed_everything(told.seed)
        head = load(str(home / "sft"), "classification", 1).model.score.weight.detach().double()

    model, tokenizer = sandbox.load("nano-1m")
    model.double()

    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    def sft() -> Tensor:
        """Mean over the tokens of all answers, their end among them."""
        losses = []
        for row in rows["sft"]:
            whole, begin = [*ids(row["prompt"] + row["completion"]), tokenizer.eos_token_id], len(ids(row["prompt"]))
            logits = model(input_ids=torch.tensor([whole])).logits[0, begin - 1 : -1]
            losses.append(F.cross_entropy(logits, torch.tensor(whole[begin:]), reduction="none"))
        return torch.cat(losses).mean()

    _steps(sft, dict(model.named_parameters()), tuned["sft"], RATES["sft"], "sft")

    moving = {n: p for n, p in model.model.named_parameters() if n.startswith(("layers.2", "layers.3", "norm"))}
    still = {n: p.detach().clone() for n, p in model.model.named_parameters() if n not in moving}
    score = head.clone().requires_grad_()

    def ranking() -> Tensor:
        """Mean over prompts of the mean over their pairs."""
        losses = []
        for row in rows["ranked"]:
            said = [[*ids(row["prompt"] + a), tokenizer.eos_token_id] for a in row["completions"]]
            r = [score @ model.model(input_ids=torch.tensor([x])).last_hidden_state[0, -1] for x in said]
            ranks, n = row["ranks"], range(len(row["ranks"]))
            losses.append(torch.stack([F.softplus(r[j] - r[i]) for i in n for j in n if ranks[i] < ranks[j]]).mean())
        return torch.stack(losses).mean()

    found = {n.removeprefix("model."): t for n, t in tuned["reward"].items()}
    _steps(ranking, {**moving, "score.weight": score}, found, RATES["reward"], "reward")
    for name, tensor in still.items():
        require(torch.equal(found[name], tuned["sft"][f"model.{name}"]), f"{name} moved in the reward model")
        require(torch.equal(tensor, dict(model.model.named_parameters())[name]), f"{name} moved in the bare loop")


def _steps(
    loss: Callable[[], Tensor], moving: dict[str, Tensor], found: dict[str, Tensor], rate: float, what: str
) -> None:
    """AdamW on all rows at once; within half a per cent of how far each tensor went."""
    start = {n: p.detach().clone() for n, p in moving.items()}
    optimizer = torch.optim.AdamW(list(moving.values()), lr=rate, **ADAM)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    for name, tensor in moving.items():
        if name not in found:  # a head that is tied
            continue
        moved, gap = (tensor - start[name]).abs().max().item(), (found[name].double() - tensor).abs().max().item()
        require(moved > 1e-4, f"{what}: {name} did not move")
        require(gap <= 0.005 * moved + 1e-6, f"{what}: {name} differs by {gap:.1e} after moving {moved:.1e}")
