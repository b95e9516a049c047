"""Instructions in the invented languages: what to do with a list of words, said and answered in one language (card 49).

    Goko: COMMAND: word word word word -> word word          COMMAND a verb of the language, one with a number behind it

Five commands: copy, reverse, put in order, keep the nouns, keep the first n. Pretraining shows the words in sentences and
translations, the commands nowhere. The first language plays the part of English: what is written in it is translated into
the others word by word. All languages share their lists of words, and a list is in train or in test as a whole.

For self-instruct, translation and ranking there is a function each, of the shape that a chat model would be called in:
`generate`, `translate`, `rank`; `quality` is what is ranked by.
"""

import random
from collections.abc import Hashable, Mapping, Sequence
from difflib import SequenceMatcher

from luthier.sandbox.world import Item, Row, Task, World, cut
from luthier.sandbox.worlds.languages import ADJECTIVES, CONCEPTS, LANGUAGES, NOUNS, PIVOT, VERBS, Language

COMMANDS = dict(zip(("copy", "reverse", "order", "nouns", "first"), VERBS, strict=False))
"""What is to be done -> the concept whose word asks for it."""
THINGS = [*NOUNS, *ADJECTIVES]
FLAWED, BROKEN, SWAPPED = 0.3, 0.05, 0.1
"""Shares of demonstrations with a flaw, of translations that lose a word, of neighbours that are ranked the wrong way round."""


def done(command: str, n: int, words: Sequence[str]) -> list[str]:
    """The right answer, as concepts."""
    return {
        "copy": list(words), "reverse": list(words)[::-1], "order": sorted(words, key=THINGS.index),
        "nouns": [w for w in words if w in NOUNS], "first": list(words[:n]),
    }[command]  # fmt: skip


def spoken(language: Language, concepts: Sequence[str]) -> str:
    """Concepts, and numbers as they are, in a language."""
    word = dict(zip(CONCEPTS, language.words, strict=False))
    return " ".join(word.get(c, c) for c in concepts)


def understood(language: Language, text: str) -> list[str]:
    """The concepts of a text; what is no word of the language stays as it is, in brackets, unless it is a number."""
    concept = dict(zip(language.words, CONCEPTS, strict=False))
    return [concept.get(w, w if w.isdigit() else f"[{w}]") for w in text.split()]


def quality(right: Sequence[str], said: Sequence[str]) -> float:
    """In [0, 1]: twice the words in the right order over all words, so that what is missing, repeated or more costs alike."""
    return SequenceMatcher(None, list(right), list(said), autojunk=False).ratio()


class Errands(World):
    name = "errands"
    title = "Instructions in the invented languages"
    share = 0.0
    catalogue = {
        lang.name: Task(
            f"what to do with words of {lang.name}{', low resource' if lang.low_resource else ''}", pretrained=()
        )
        for lang in LANGUAGES
    }

    def draw(self, task: str, part: str, rng: random.Random) -> Item:
        command, words = rng.choice(list(COMMANDS)), tuple(rng.sample(THINGS, rng.choice((4, 5))))
        if command == "nouns" and not set(words) & set(NOUNS):
            return self.draw(task, part, rng)
        return (command, rng.choice((2, 3)) if command == "first" else 0, words)

    def split_key(self, task: str, item: Item) -> Hashable:
        return item[2]

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        command, n, words = item
        language = _BY_NAME[task]
        told = {
            "lang": language.name,
            "instruction": spoken(language, [COMMANDS[command], *([str(n)] if n else [])]),
            "input": spoken(language, words),
            "output": spoken(language, done(command, n, words)),
        }
        prompt = f"{language.name}: {told['instruction']}: {told['input']} ->"
        return told | {"prompt": prompt, "completion": f" {told['output']}", "answer": told["output"]}

    def document(self, rng: random.Random) -> str:
        row = self.row(PIVOT.name, "known", self.draw_train("", "known", rng), rng)
        return row["prompt"] + row["completion"] + "\n"


_BY_NAME = {lang.name: lang for lang in LANGUAGES}


def right_words(row: Mapping[str, str]) -> list[str]:
    """The right answer to instruction and input of a row, in its language, whatever the row's output says."""
    language = _BY_NAME[row["lang"]]
    concept, *number = understood(language, row["instruction"])
    command = next((c for c, verb in COMMANDS.items() if verb == concept), "copy")
    return spoken(language, done(command, int(number[0]) if number else 0, understood(language, row["input"]))).split()


def judged(rows: Sequence[Mapping[str, str]], answers: Sequence[str]) -> list[float]:
    """Quality of an answer to each row."""
    return [quality(right_words(row), cut(answer, "\n").split()) for row, answer in zip(rows, answers, strict=True)]


# ------------------------------------------------------------------- what a chat model would be asked for


def generate(shown: Sequence[Mapping[str, str]], seed: int) -> list[dict[str, str]]:
    """Four new tasks in the first language, some with a flaw: half of them vary one that was shown, half are made afresh."""
    rng, world, out = random.Random(f"generate/{seed}"), Errands(), []
    for k in range(4):
        command, n, words = world.draw_train("", "known", rng)
        if k % 2:
            concept, *number = understood(PIVOT, rng.choice(shown)["instruction"])
            command = next((c for c, verb in COMMANDS.items() if verb == concept), command)
            n = int(number[0]) if number else 0
        if command == "first" and not n:
            n = 2
        answer = done(command, n, words)
        if rng.random() < FLAWED:
            answer = _flawed(answer, rng)
        instruction = spoken(PIVOT, [COMMANDS[command], *([str(n)] if command == "first" else [])])
        out.append({"instruction": instruction, "input": spoken(PIVOT, words), "output": spoken(PIVOT, answer)})
    return out


def _flawed(answer: list[str], rng: random.Random) -> list[str]:
    """A word said twice, or more words than were asked for."""
    if rng.random() < 0.5:
        at = rng.randrange(len(answer)) if answer else 0
        return [*answer[: at + 1], *answer[at:]]
    return [*answer, *rng.sample(THINGS, 2)]


def translate(text: str, source: str, target: str) -> str:
    """Word by word; now and then a word, or a number, is lost."""
    concepts = understood(_BY_NAME[source], text)
    rng = random.Random(f"translate/{text}/{target}")
    if len(concepts) > 1 and rng.random() < BROKEN:
        del concepts[-1]
    return spoken(_BY_NAME[target], concepts)


def rank(task: Mapping[str, str], answers: Sequence[str], seed: int) -> list[int]:
    """Ranks from 1, the best, of answers in the first language; equal answers share one. Some neighbours are swapped."""
    scores = judged([{"lang": PIVOT.name, **task}] * len(answers), answers)
    order = sorted(set(scores), reverse=True)
    rng, k = random.Random(f"rank/{seed}/{list(answers)}"), 0
    while k + 1 < len(order):
        if rng.random() < SWAPPED:
            order[k], order[k + 1] = order[k + 1], order[k]
            k += 1
        k += 1
    return [order.index(s) + 1 for s in scores]
