"""lm-evaluation-harness around a subject: public benchmarks for every model and decoder of luthier.

    evaluate_harness(subject, ["arc_easy"], limit=100)      results as `lm_eval.simple_evaluate` gives them
    harness_model(subject)                                  an `lm_eval.api.model.LM`, for lm-eval's own functions
    harness_task(task, folder)                              a task of ours as lm-eval's YAML and a jsonl file

The numbers are those of lm-eval's HFLM on the same weights: prompt and continuation are encoded as one string, blanks
at the end of a prompt move to the continuation, long texts roll through the window, prompts lose their beginning.
Generation goes through the subject's decoder, so that decoding-time methods are measured too; sampling options of a
task's `generation_kwargs` are therefore left to the decoder, and said so.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.evaluation._compare import Task
from luthier.evaluation._family import joined, right_choice, shown

try:
    from lm_eval.api.model import LM
except ModuleNotFoundError as missing:
    raise LuthierError("lm-evaluation-harness is not installed: pip install 'luthier[eval]'") from missing

MAX_NEW_TOKENS = 256


class LuthierLM(LM):
    """A subject as one of lm-eval's models. Batches are the subject's own and do not change a number."""

    def __init__(self, subject: Subject):
        super().__init__()
        self.subject = subject

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-probability, is the greedy continuation) of each (context, continuation)."""
        pairs = [self.subject.encode_pair(*r.args) for r in requests]
        return [(float(logp.sum(dtype="float64")), bool(best.all())) for logp, best in self.subject.pair_logp(pairs)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of each text; a BOS that the tokenizer adds is predicted too, as HFLM does."""
        pairs = [([self.subject.prefix_id], self.subject.encode(r.args[0])) for r in requests]
        return [float(x.sum(dtype="float64")) for x in self.subject.rolling_logp(pairs)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """A text for each (context, options), up to the first of `until`."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, r in enumerate(requests):
            groups.setdefault(_limits(r.args[1]), []).append(i)
        out = [""] * len(requests)
        for (until, most), rows in groups.items():
            texts = self.subject.generate([requests[i].args[0] for i in rows], most, until)
            for i, text in zip(rows, texts, strict=True):
                out[i] = text
        return out

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation."""
        return self.subject.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip

    @property
    def tokenizer_name(self) -> str:
        return str(self.subject.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that is applied, or None."""
        return self.subject.tokenizer.chat_template if chat_template else None


def _limits(options: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Stop strings and length of a request's options."""
    if options.get("do_sample") or options.get("temperature", 0):
        warnings.warn("the task asks for sampling; the subject's decoder decides how tokens are chosen", stacklevel=3)
    until = options.get("until") or ()
    most = options.get("max_gen_toks", options.get("max_new_tokens", MAX_NEW_TOKENS))
    return tuple([until] if isinstance(until, str) else until), int(most)


def harness_model(subject: Subject) -> LuthierLM:
    """The subject as an lm-eval model."""
    return LuthierLM(subject)


def evaluate_harness(
    subject: Subject, tasks: Sequence[str | dict[str, Any]], limit: int | None = None, num_fewshot: int | None = None,
    apply_chat_template: bool = False, include_path: str | Path | None = None, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Run tasks of lm-eval; `include_path` is a folder with task files of one's own."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    own = {p.stem for p in Path(include_path).glob("*.yaml")} if include_path is not None else set()
    manager = TaskManager(
        include_path=None if include_path is None else str(include_path),
        include_defaults=not own.issuperset(t for t in tasks if isinstance(t, str)),
    )
    found = lm_eval.simple_evaluate(
        model=LuthierLM(subject), tasks=list(tasks), limit=limit, num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template, random_seed=seed, bootstrap_iters=0,
        task_manager=manager,
    )  # fmt: skip
    if found is None:
        raise LuthierError("lm-eval returned no results: only the first process of several does")
    return found


# ----------------------------------------------------------------------------------------------- ours for lm-eval

_KINDS: dict[str, dict[str, Any]] = {
    "text": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "choices": {
        "output_type": "multiple_choice", "doc_to_text": "{{prompt}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}", "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "prompt": {
        "output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}],
    },
}  # fmt: skip


def harness_task(task: Task, folder: str | Path) -> Path:
    """Write a task of ours as lm-eval's YAML with its rows beside it; run it with `include_path=folder`."""
    items, folder = task.items(), Path(folder)
    kind = next(k for k in _KINDS if all(getattr(i, k) is not None for i in items))
    rows: list[dict[str, Any]] = []
    for i in items:
        if kind == "text":
            rows.append({"text": shown(i.text)})
        elif kind == "choices":
            choices = [joined(i.prompt, c, " ") for c in i.choices or ()]
            rows.append({"prompt": shown(i.prompt), "choices": choices, "label": right_choice(i)})
        else:
            rows.append({"prompt": shown(i.prompt), "answer": i.reference})
    folder.mkdir(parents=True, exist_ok=True)
    data, path = folder / f"{task.name}.jsonl", folder / f"{task.name}.yaml"
    data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    told = {
        "task": task.name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test", "num_fewshot": 0, "metadata": {"version": task.version or 1}, **_KINDS[kind],
    }  # fmt: skip
    if kind == "prompt":
        options = vars(task.scorer)
        told["generation_kwargs"] = {
            "until": list(options["stop"]),
            "max_gen_toks": options["max_new_tokens"],
            "do_sample": False,
        }
    path.write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
