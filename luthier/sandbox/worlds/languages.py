"""Eight invented languages over one small meaning grammar, and two alphabets with identical tasks (cards 09, 49, 54).

A meaning is (tense, subject adjective, subject, verb, object adjective, object). Each language has its own words (a
bijection from concepts), its own order of subject, verb and object, its own place for adjectives, and marks the past by
a prefix or suffix particle or the object by a particle. The first six languages are well resourced, the last two are
low-resource: a tenth of the text. Translation is in pretraining to and from the first language only; all other
directions are held out.

Alphabets: `in a c f d out a c f d` in lower case and the same in upper case. Three kinds of document (card 09): repeat
in context, questions (`in q 3 plus 4 out 7`), and ambiguous ones, a question after repeats: 80 % repeat, 20 % answer.
Documents use meanings and inputs of the train split only.
"""

import random
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from luthier.sandbox.lexicon import LANGUAGE_NAMES, LANGUAGE_WORDS, LETTERS
from luthier.sandbox.world import Item, Row, Task, World, cut, join_lines

NOUNS = ["dog", "cat", "bird", "king", "child", "horse", "fox", "bear"]
VERBS = ["sees", "calls", "finds", "helps", "follows", "hears"]
ADJECTIVES = ["big", "small", "old", "young"]
CONCEPTS = NOUNS + VERBS + ADJECTIVES
_ORDERS = ("SVO", "SOV", "VSO", "SVO", "OVS", "SOV", "VOS", "SVO")


@dataclass(frozen=True)
class Language:
    """A lexicon and four rules."""

    name: str
    order: str
    adjective_first: bool
    past_first: bool  # the past particle stands at the beginning of the sentence, else right after the verb
    words: tuple[str, ...]  # one per concept, then the past particle, then the object particle (empty: none)
    low_resource: bool

    def sentence(self, meaning: Item) -> str:
        """A meaning in this language, without full stop."""
        past, adj_s, subject, verb, adj_o, obj = meaning
        word = dict(zip([*CONCEPTS, "past", "object"], self.words, strict=True))

        def phrase(adjective: str, noun: str) -> list[str]:
            both = [word[adjective], word[noun]] if self.adjective_first else [word[noun], word[adjective]]
            return both if adjective else [word[noun]]

        word[""] = ""
        mark = [word["object"]] if word["object"] else []
        late = [word["past"]] if past and not self.past_first else []
        slots = {"S": phrase(adj_s, subject), "V": [word[verb], *late], "O": phrase(adj_o, obj) + mark}
        early = [word["past"]] if past and self.past_first else []
        return " ".join(early + [w for slot in self.order for w in slots[slot]])

    def meaning(self, sentence: str) -> Item | None:
        """The meaning of a sentence, or None when it is not one of this language."""
        concept = dict(zip(self.words, [*CONCEPTS, "past", "object"], strict=True))
        found = [concept.get(w, "?") for w in sentence.split()]
        nouns = [c for c in found if c in NOUNS]
        verbs = [c for c in found if c in VERBS]
        if len(nouns) != 2 or len(verbs) != 1:
            return None
        subject_first = self.order.index("S") < self.order.index("O")
        places = [i for i, c in enumerate(found) if c in NOUNS]
        step = -1 if self.adjective_first else 1
        adjectives = [
            found[p + step] if 0 <= p + step < len(found) and found[p + step] in ADJECTIVES else "" for p in places
        ]
        s, o = (0, 1) if subject_first else (1, 0)
        meaning = ("past" in found, adjectives[s], nouns[s], verbs[0], adjectives[o], nouns[o])
        return meaning if self.sentence(meaning) == sentence else None


def _languages() -> list[Language]:
    made = []
    for i, (name, order) in enumerate(zip(LANGUAGE_NAMES, _ORDERS, strict=True)):
        words = LANGUAGE_WORDS[i * 20 : i * 20 + 20]
        words[-1] = words[-1] if i % 3 == 1 else ""
        made.append(Language(name, order, i % 2 == 0, i in (1, 4, 5), tuple(words), i >= 6))
    return made


LANGUAGES = _languages()
PIVOT = LANGUAGES[0]
_BY_NAME = {lang.name: lang for lang in LANGUAGES}


def _pairs() -> dict[str, tuple[Language, Language]]:
    return {f"{a.name.lower()}-{b.name.lower()}": (a, b) for a in LANGUAGES for b in LANGUAGES if a is not b}


PAIRS = _pairs()


def _translation(pair: tuple[Language, Language]) -> Task:
    a, b = pair
    size = "low resource, " if a.low_resource or b.low_resource else ""
    return Task(f"{size}translate {a.name} to {b.name}", pretrained=("known",) if PIVOT in pair else ())


_REPEAT: dict[str, Any] = {"parts": ("lower", "upper"), "pretrained": ("lower", "upper")}


class Languages(World):
    name = "languages"
    title = "Invented languages with parallel sentences; two alphabets"
    share = 0.10
    catalogue = (
        {key: _translation(pair) for key, pair in PAIRS.items()}
        | {
            f"text-{lang.name.lower()}": Task(
                f"sentences of {lang.name}{', low resource' if lang.low_resource else ''}", kind="text"
            )
            for lang in LANGUAGES
        }
        | {
            "repeat": Task("repeat the input, after two examples of repeating", **_REPEAT),
            "question": Task("a sum of two digits asked without examples", **_REPEAT),
            "ambiguous": Task("a sum after two examples of repeating: the answer is the repeat", **_REPEAT),
            "ambiguous_answered": Task("a sum after two examples of repeating: the answer is the sum", **_REPEAT),
            "stray": Task(
                "a sum after one unrelated pair: the answer is the sum", parts=("lower", "upper"), pretrained=()
            ),
        }
    )

    def draw(self, task: str, part: str, rng: random.Random) -> Item:
        if part in ("lower", "upper"):
            a, b = rng.randrange(10), rng.randrange(10)
            words = tuple(rng.choice(LETTERS) for _ in range(12))
            return (a, b) if task == "question" else ("".join(words), a, b)
        adjectives = ["", "", *ADJECTIVES]
        subject, obj = rng.sample(NOUNS, 2)
        verb = rng.choice(VERBS)
        return (rng.random() < 0.5, rng.choice(adjectives), subject, verb, rng.choice(adjectives), obj)

    def items(self, task: str, part: str) -> list[Item] | None:
        return [(a, b) for a in range(10) for b in range(10)] if task == "question" else None

    def split_key(self, task: str, item: Item) -> Hashable:
        return item if len(item) == 6 else item[0] if isinstance(item[0], str) else ("question", *item)

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        if part in ("lower", "upper"):
            return self._alphabet(task, part, item)
        if task.startswith("text-"):
            language = _BY_NAME[task.removeprefix("text-").capitalize()]
            return {"text": f"{language.name}: {language.sentence(item)}.", "meaning": list(item)}
        source, target = PAIRS[task]
        answer = target.sentence(item)
        prompt = f"{source.name} to {target.name}: {source.sentence(item)} ->"
        return {"prompt": prompt, "completion": f" {answer}", "answer": answer, "meaning": list(item)}

    def _alphabet(self, task: str, part: str, item: Item) -> Row:
        words = [list(item[0][i : i + 4]) for i in (0, 4, 8)] if task != "question" else []
        a, b = item[-2:]
        question = ["q", str(a), "plus", str(b)]
        shown = {"repeat": words[:2], "question": [], "stray": words[:1]}.get(task, words[:2])
        asked = words[2] if task == "repeat" else question
        answer = asked if task in ("repeat", "ambiguous") else [str(a + b)]
        replies = [words[1]] if task == "stray" else shown
        lines = [f"in {' '.join(x)} out {' '.join(y)}" for x, y in zip(shown, replies, strict=True)]
        prompt = "\n".join([*lines, f"in {' '.join(asked)} out"])
        if part == "upper":
            prompt, answer = prompt.upper(), [x.upper() for x in answer]
        return {"prompt": prompt, "completion": " " + " ".join(answer), "answer": " ".join(answer)}

    def score(self, row: Row, completion: str) -> float:
        """Exact sentence; for monolingual text: is it a sentence of the language at all."""
        if "text" not in row:
            return super().score(row, completion)
        name, _, sentence = cut(completion, self.stop).partition(": ")
        return float(name == row["text"].partition(":")[0] and _BY_NAME[name].meaning(sentence.rstrip(".")) is not None)

    def document(self, rng: random.Random) -> str:
        if rng.random() < 0.36:
            return self._alphabet_document(rng)
        other = rng.choices(LANGUAGES[1:], [0.1 if lang.low_resource else 1.0 for lang in LANGUAGES[1:]])[0]
        if rng.random() < 0.2:
            language = rng.choice((PIVOT, other, other, other))
            sentences = ". ".join(language.sentence(self.draw_train("text", "known", rng)) for _ in range(6))
            return f"{language.name}: {sentences}.\n"

        def line() -> str:
            a, b = (PIVOT, other) if rng.random() < 0.5 else (other, PIVOT)
            meaning = self.draw_train("", "known", rng)
            return f"{a.name} to {b.name}: {a.sentence(meaning)} -> {b.sentence(meaning)}"

        return join_lines(4, line)

    def _alphabet_document(self, rng: random.Random) -> str:
        part = rng.choice(("lower", "upper"))
        kind = rng.random()
        if kind < 0.35:
            rows = [self._alphabet("question", part, self.draw_train("question", part, rng)) for _ in range(5)]
        else:
            ambiguous = "ambiguous" if rng.random() < 0.8 else "ambiguous_answered"
            task = ambiguous if kind < 0.75 else "repeat"
            rows = [self._alphabet(task, part, self.draw_train(task, part, rng))]
        return "\n".join(r["prompt"] + r["completion"] for r in rows) + "\n"
