"""What decoding with several models costs beside its parts, and what drafts save.

    python -m benchmarks.decoding --folder DIR [--steps 48] [--batch 16] [--threads 1] [--small]

nano-5m steered by two models of the size of nano-1m, greedy, against the sum of the three times that the same loop takes
for each of them alone (`share`: 1 is nothing lost, the target is 0.9). Then nano-1m drafting four tokens at a time for
nano-5m against nano-5m alone, greedy and drawn from the distribution itself: `speedup`, the share of drafts accepted, and
tokens for each forward of the large model. Both with one row and with `--batch` rows, prompts from documents of the
sandbox, `--steps` new tokens a row, no stops. All take turns in one process; figures are medians over rounds, and each
ratio is taken within a round. `--small` takes few tokens and one round.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import _contender as contender

ROUNDS, PROMPT, DRAFTS = 5, 24, 4


def main() -> None:
    told = contender.asked()
    from luthier import sandbox
    from luthier.core.method import Limits
    from luthier.decoding.greedy import Greedy
    from luthier.decoding.nucleus import Nucleus
    from luthier.decoding.proxy_tuning import ProxyTuning
    from luthier.decoding.speculative import Speculative

    clock = time.process_time if told.threads == 1 else time.perf_counter
    large, tokenizer = sandbox.load("nano-5m")
    expert, _ = sandbox.load("nano-1m")
    anti = copy.deepcopy(expert)
    texts = (text for _, text in sandbox.corpus(1000, seed=1))
    ids = list(
        itertools.islice(
            (i[:PROMPT] for i in (tokenizer(t)["input_ids"] for t in texts) if len(i) >= PROMPT), told.batch
        )
    )
    limits = Limits(min(told.steps, 8) if told.small else told.steps, (), tokenizer.pad_token_id)
    rounds = 1 if told.small else ROUNDS

    def timed(decoder: Any, model: Any, rows: list[list[int]]) -> Callable[[], tuple[float, Any]]:
        def once() -> tuple[float, Any]:
            begun = clock()
            found = decoder.generate(model, rows, limits)
            return clock() - begun, found

        return once

    out = []
    for n in (1, told.batch):
        rows = ids[:n]
        runs = {
            "large": timed(Greedy(), large, rows), "expert": timed(Greedy(), expert, rows),
            "anti_expert": timed(Greedy(), anti, rows),
            "mixed": timed(ProxyTuning(expert=expert, anti_expert=anti), large, rows),
            "greedy_drafts": timed(Speculative(draft=expert, tokens=DRAFTS, temperature=0.0), large, rows),
            "drawn": timed(Nucleus(top_p=1.0), large, rows),
            "drawn_drafts": timed(Speculative(draft=expert, tokens=DRAFTS), large, rows),
        }  # fmt: skip
        for run in runs.values():
            run()
        took: list[dict[str, float]] = []
        for _ in range(rounds):
            last = {name: run() for name, run in runs.items()}
            took.append({name: seconds for name, (seconds, _) in last.items()})
        tokens = n * limits.max_new_tokens

        def median(of: Callable[[dict[str, float]], float], took: list[dict[str, float]] = took) -> float:
            return statistics.median(of(t) for t in took)

        row = {
            "rows": n,
            "tokens_per_second": {name: tokens / median(lambda t, name=name: t[name]) for name in runs},
            "share": median(lambda t: (t["large"] + t["expert"] + t["anti_expert"]) / t["mixed"]),
        }
        for kind, plain in (("greedy", "large"), ("drawn", "drawn")):
            found = last[f"{kind}_drafts"][1]
            count = {k: sum(g.figures[k] for g in found) for k in ("drafted", "accepted", "reads")}
            row[kind] = {
                "speedup": median(lambda t, a=plain, b=f"{kind}_drafts": t[a] / t[b]),
                "accepted": count["accepted"] / count["drafted"],
                "tokens_per_read": (tokens - n) / count["reads"],
            }
        if [g.ids for g in last["large"][1]] != [g.ids for g in last["greedy_drafts"][1]]:
            raise SystemExit("drafts changed a greedy token: the comparison would not be fair")
        out.append(row)
    contender.say({"contender": "decoding", "rows": out})


if __name__ == "__main__":
    main()
