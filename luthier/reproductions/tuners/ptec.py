"""Card 24 on the sandbox: several labels of a text, by a head or as a generated list.

A head on frozen states (CH), PTEC, prompt tuning that writes the labels (PT), the same constrained to the label set by a
trie, and nearest neighbours in the frozen embeddings, all on the same rows. Labels share words, and five of them are the
beginning of four others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForSequenceClassification

from luthier import data, sandbox
from luthier.core.batch import LabelledExample, collate_labelled
from luthier.core.config import TrainSettings
from luthier.core.logprobs import Scorer
from luthier.core.loop import Loop, collator
from luthier.core.method import Objective, Tuner
from luthier.core.subject import Subject
from luthier.data import RowTable
from luthier.decoding.greedy import Greedy
from luthier.decoding.trie import Trie
from luthier.evaluation._family import items_of
from luthier.evaluation._labels import Answers, LabelSets
from luthier.evaluation.multilabel import Multilabel
from luthier.evaluation.neighbours import Neighbours
from luthier.objectives.classification import Classification
from luthier.objectives.sft import SFT
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions.tuners._sectors import LABELS, rows
from luthier.tuners.freeze import Freeze
from luthier.tuners.ptec import PTEC

LIST_TOKENS = 24


class PromptTunedEmbeddingClassification(Experiment):
    scope: ClassVar[str] = "this size and rates"
    seeds: ClassVar[int] = 3
    model: ClassVar[str] = "nano-1m"
    train_rows: ClassVar[int] = 1000
    test_rows: ClassVar[int] = 300
    tokens: ClassVar[int] = 10
    epochs: ClassVar[int] = 10
    batch: ClassVar[int] = 32
    head_rate: ClassVar[float] = 2e-2
    prompt_rate: ClassVar[float] = 5e-2
    list_rate: ClassVar[float] = 1e-1
    k: ClassVar[int] = 7
    setup = """nano-1m, frozen; 1,000 texts of one to three sentences with 25 labels of one or two words by Zipf frequencies,
    300 test texts; 10 epochs of 32 rows, prompt of 10 vectors, macro-F1 at threshold 0.5. One rate each, the same for all
    seeds: head 2e-2 with and without prompt, PTEC's prompt 5e-2, prompt tuning that writes lists 1e-1."""

    def measure(self, seed: int) -> Row:
        words = sandbox.tokenizer()
        train, test = rows(self.train_rows, seed), rows(self.test_rows, 10_000 + seed)
        out: Row = {}
        for name, tuner, rate in (
            ("head", Freeze(train=("^score",)), self.head_rate),
            ("ptec", self._ptec(), self.prompt_rate),
        ):
            model, tuned = self._head(tuner, rate, train, seed, words)
            found = self._score(Multilabel(), Subject(model, words, task="classification"), test)
            out |= {f"{name}_{k}": v for k, v in found.items()}
        out |= self._order(train[: self.batch], words, tuned)
        out["ptec_flops"] = _flops(lambda: model(**_padded(words, test[:16])))
        out |= self._lists(train, test, seed, words)
        base = Subject(sandbox.load(self.model)[0], words)
        nearest = Neighbours(train=train, k=self.k, weights="distance", distance="cosine")
        out["neighbours_macro_f1"] = self._score(nearest, base, test)["macro_f1"]
        return out

    def _ptec(self) -> PTEC:
        return PTEC(tokens=self.tokens, head_rate=self.head_rate / self.prompt_rate)

    def _fit(
        self, model: Any, tuner: Tuner, objective: Objective, examples: Sequence[Any], rate: float, seed: int
    ) -> None:
        told = TrainSettings(
            num_train_epochs=self.epochs, per_device_train_batch_size=self.batch, learning_rate=rate
        )  # fmt: skip
        Loop(model, tuner, objective, examples, told, sandbox.tokenizer().pad_token_id, seed).fit()
        model.eval()

    def _head(
        self, tuner: Tuner, rate: float, train: list[dict[str, Any]], seed: int, words: Any
    ) -> tuple[Any, Objective]:
        """A classifier and the objective it was trained with."""
        torch.manual_seed(seed)  # of the new head
        base = LlamaForSequenceClassification.from_pretrained(
            sandbox.model_path(self.model), num_labels=len(LABELS), problem_type="multi_label_classification",
            id2label=dict(enumerate(LABELS)), dtype=torch.float32,
        )  # fmt: skip
        model = tuner.for_data(words, LABELS).wrap(base, "classification", seed)
        examples = _labelled(train, words)
        objective = Classification(pos_weight="frequency").for_examples(examples)
        self._fit(model, tuner, objective, examples, rate, seed)
        return model, objective

    def _score(self, scorer: LabelSets, subject: Subject, test: list[dict[str, Any]]) -> dict[str, float]:
        answers = scorer.ask(subject, items_of(test))
        return {
            "macro_f1": _value(scorer, answers),
            **{k: float(answers.stats[k].sum()) for k in ("beyond", "predicted")},
        }

    def _order(self, train: list[dict[str, Any]], words: Any, objective: Objective) -> Row:
        """How far the loss of a fixed model moves when the labels of each row are listed in another order."""
        turned = [{**r, "labels": r["labels"][::-1]} for r in train]
        base, _ = sandbox.load(self.model)
        head = LlamaForSequenceClassification.from_pretrained(
            sandbox.model_path(self.model), num_labels=len(LABELS), dtype=torch.float32
        ).eval()  # fmt: skip
        found: dict[str, list[float]] = {"head": [], "list": []}
        with torch.no_grad():
            for told in (train, turned):
                batch = collate_labelled(_labelled(told, words), words.pad_token_id)
                found["head"].append(float(objective.compute(Scorer(head), batch).sum))
                examples = _texts(told, words, lambda labels: labels)
                batch = collator(base, words.pad_token_id, examples, TrainSettings())(examples)
                found["list"].append(float(SFT().compute(Scorer(base), batch).sum))
        return {f"{k}_loss_moved_by_order": abs(a - b) for k, (a, b) in found.items()}

    def _lists(self, train: list[dict[str, Any]], test: list[dict[str, Any]], seed: int, words: Any) -> Row:
        """Prompt tuning with the language head: labels as a list, frequent ones first."""
        counts = Counter(label for r in train for label in r["labels"])
        examples = _texts(train, words, lambda labels: sorted(labels, key=lambda n: (-counts[n], n)))
        base, _ = sandbox.load(self.model)
        tuner = PTEC(tokens=self.tokens).for_data(words, LABELS)
        model = tuner.wrap(base, "causal_lm", seed)
        trie = Trie(labels=LABELS)
        asked = [{**r, "prompt": _prompt(r)} for r in test]
        scorer = Multilabel(labels=LABELS, max_new_tokens=LIST_TOKENS, stop=())
        untrained = self._score(scorer, Subject(model.eval(), words, decoder=trie), asked)
        self._fit(model, tuner, SFT(), examples, self.list_rate, seed)
        out: Row = {"trie_untrained_invalid": untrained["beyond"]}
        for name, decoder in (("list", Greedy()), ("trie", trie)):
            subject = Subject(model, words, decoder=decoder)
            found = self._score(scorer, subject, asked)
            said = subject.generate([r["prompt"] for r in asked], LIST_TOKENS)
            parts = [[p.strip() for p in text.split(scorer.separator)] for text in said]
            out |= {
                f"{name}_macro_f1": found["macro_f1"], f"{name}_invalid": found["beyond"],
                f"{name}_repeated": float(sum(len(p) - len(set(p)) for p in parts)),
            }  # fmt: skip
        prompts = [r["prompt"] for r in asked[:16]]
        out["list_flops"] = _flops(lambda: Subject(model, words, decoder=Greedy()).generate(prompts, LIST_TOKENS))
        return out

    def claims(self, found: list[Row]) -> list[Claim]:
        def f1(*names: str) -> str:
            return ", ".join(f"{n} {spread(found, f'{n}_macro_f1')}" for n in names)

        head, ptec, free, trie = (mean(found, f"{n}_macro_f1") for n in ("head", "ptec", "list", "trie"))
        wrong = [sum(r[k] for r in found) for k in ("trie_invalid", "trie_repeated", "trie_untrained_invalid")]
        moved = {k: [r[f"{k}_loss_moved_by_order"] for r in found] for k in ("head", "list")}
        return [
            Claim("PTEC is at least as good as a head on frozen states", f"macro-F1: {f1('ptec', 'head')}", ptec >= head),
            Claim("PTEC beats writing the labels by 0.1 macro-F1", f"macro-F1: {f1('ptec', 'list')}", ptec >= free + 0.1),
            Claim(
                "with the trie no label is invented and none is said twice, trained or not",
                f"invalid {wrong[0]:.0f}, repeated {wrong[1]:.0f}, invalid before training {wrong[2]:.0f}; "
                f"without it invalid {spread(found, 'list_invalid')}, repeated {spread(found, 'list_repeated')}",
                not any(wrong),
            ),
            Claim("the trie costs no quality (within 0.01)", f"macro-F1: {f1('trie', 'list')}", trie >= free - 0.01),
            Claim(
                "classifying takes fewer operations than writing a list",
                f"16 texts: PTEC {spread(found, 'ptec_flops')}, list {spread(found, 'list_flops')} operations",
                all(r["ptec_flops"] < r["list_flops"] for r in found),
            ),
            Claim(
                "the order of the labels in the data changes the loss of lists and not the loss of the head",
                f"moved by {max(moved['head']):.3g} (head) and at least {min(moved['list']):.3g} (list)",
                max(moved["head"]) == 0 and min(moved["list"]) > 0,
            ),
            Claim(
                "PTEC beats nearest neighbours in frozen embeddings", f"macro-F1: {f1('ptec', 'neighbours')}",
                ptec > mean(found, "neighbours_macro_f1"), central=False,
            ),
        ]  # fmt: skip


def _prompt(row: dict[str, Any]) -> str:
    return f"{row['text']} Topics:"


def _table(found: list[dict[str, Any]]) -> RowTable:
    return RowTable(found, [f"sectors[{i}]" for i in range(len(found))], found=len(found))


def _labelled(found: list[dict[str, Any]], words: Any) -> list[LabelledExample]:
    told = data.prepare(_table(found), tokenizer=words, type="labelled", options={"label_names": LABELS})
    return told.examples  # type: ignore[return-value]


def _texts(found: list[dict[str, Any]], words: Any, order: Any) -> list[Any]:
    pairs = [{"prompt": _prompt(r), "completion": " " + "; ".join(order(r["labels"]))} for r in found]
    return list(data.prepare(_table(pairs), tokenizer=words).examples)


def _padded(words: Any, found: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return dict(words([r["text"] for r in found], padding=True, return_tensors="pt"))


def _value(scorer: LabelSets, answers: Answers) -> float:
    import numpy as np

    return float(scorer.aggregate("macro_f1", answers)(answers.stats, np.ones((1, len(answers))))[0])


@torch.no_grad()
def _flops(run: Any) -> float:
    with FlopCounterMode(display=False) as counted:
        run()
    return float(counted.get_total_flops())
