"""Labelled sentences with known semantics (cards 03, 18, 23, 24, 33, 35, 36, 46).

    sentiment      negative or positive, with negation: `the soup was not bad`
    topic          food, work, music, travel or sport, from the nouns
    entailment     does the second sentence follow: yes, no or maybe
    similarity     0 to 4: how many of four slots two sentences share (synonyms count); never in pretraining
    acceptability  good, or bad when the words are out of order or one is doubled
    roles          who did it, to what, and where: a class for each word; never in pretraining

The first five come as prompt and completion (`sentiment`) and as text and label (`sentiment_label`). Synonyms are part of
the grammar, so augmentation has a true synonym map (`SYNONYMS`). Documents use sentences of the train split only.
"""

import random
from collections.abc import Hashable

from luthier.sandbox.world import Item, Row, Task, World, join_lines, weighted

SYNONYMS = {"good": "fine", "bad": "poor", "great": "lovely", "awful": "nasty", "happy": "glad", "sad": "gloomy"}
GOOD = ("good", "great", "happy")
BAD = ("bad", "awful", "sad")
TOPICS = {
    "food": ["soup", "bread", "fish", "cheese", "cake", "rice"],
    "work": ["boss", "desk", "meeting", "office", "report", "team"],
    "music": ["song", "drum", "singer", "concert", "violin", "choir"],
    "travel": ["train", "hotel", "ticket", "map", "ship", "airport"],
    "sport": ["race", "goal", "match", "coach", "ball", "player"],
}
NOUN_TOPIC = {noun: topic for topic, nouns in TOPICS.items() for noun in nouns}
PEOPLE = ["king", "child", "nurse", "baker", "pilot", "monk"]
VERBS = {"saw": "noticed", "bought": "purchased", "lost": "misplaced", "found": "discovered"}
PLACES = ["garden", "market", "house", "harbour"]
DEGREES = ("", "very ", "rather ")
NAMES = ("sentiment", "topic", "entailment", "similarity", "acceptability")
_SEEN: dict[str, tuple[str, ...]] = {n: () if n == "similarity" else ("known",) for n in NAMES}
_CUES = {
    "sentiment": "Mood",
    "topic": "Topic",
    "entailment": "Follows",
    "similarity": "Alike",
    "acceptability": "Order",
}


class Labels(World):
    name = "labels"
    title = "Sentences with labels that follow from a grammar"
    share = 0.04
    catalogue = (
        {n: Task(f"{n} of sentences, as a prompt", pretrained=_SEEN[n]) for n in NAMES}
        | {f"{n}_label": Task(f"{n} of sentences, as text and label", kind="label", pretrained=()) for n in NAMES}
        | {"roles": Task("who did what to what and where, a class for each word", kind="tags", pretrained=())}
    )

    def draw(self, task: str, part: str, rng: random.Random) -> Item:
        task = task.removesuffix("_label")
        if task == "sentiment":
            word = _synonym(rng.choice(GOOD + BAD), rng)
            return (rng.choice(list(NOUN_TOPIC)), rng.choice(PEOPLE), rng.random() < 0.5, rng.choice(DEGREES), word)
        if task == "topic":
            topic = rng.choice(list(TOPICS))
            return (*rng.sample(TOPICS[topic], 2), rng.choice(PEOPLE), rng.choice(_all_verbs()), rng.choice(PLACES))
        one = _event(rng)
        if task == "roles":
            return (one, rng.random() < 0.5, rng.random() < 0.3, rng.random() < 0.5)
        if task == "acceptability":
            return (one, rng.choice(("good", "swap", "double", "good")), rng.randrange(1, 6))
        if task == "entailment":
            return (one, rng.choice(("yes", "no", "maybe")), rng.choice((0, 1, 3)), _event(rng))
        kept = rng.randrange(5)
        return (one, tuple(sorted(rng.sample(range(4), kept))), _event(rng), rng.random() < 0.5)

    def split_key(self, task: str, item: Item) -> Hashable:
        task = task.removesuffix("_label")
        if task in ("sentiment", "topic"):
            return (task, *item)
        return (item[0][0], NOUN_TOPIC[item[0][2]], item[0][2], item[0][3])

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        if task == "roles":
            return _roles(*item)
        name = task.removesuffix("_label")
        text, second, label = _render(name, item)
        if task != name:
            return {"text": text, "label": label} | ({"text_pair": second} if second else {})
        shown = f"{text} / {second}" if second else text
        return {"prompt": f"{shown} {_CUES[name]}:", "completion": f" {label}", "answer": label}

    def labels(self, task: str) -> list[str]:
        """The labels of a task, in order."""
        fixed = {
            "sentiment": ["negative", "positive"],
            "topic": list(TOPICS),
            "entailment": ["yes", "no", "maybe"],
            "similarity": list("01234"),
            "acceptability": ["bad", "good"],
        }
        return fixed[task.removesuffix("_label")]

    def document(self, rng: random.Random) -> str:
        kinds = {"sentiment": 0.5, "topic": 0.12, "entailment": 0.25, "acceptability": 0.13}

        def line() -> str:
            task = weighted(rng, kinds)
            row = self.row(task, "known", self.draw_train(task, "known", rng), rng)
            return row["prompt"] + row["completion"]

        return join_lines(4, line)


def _synonym(word: str, rng: random.Random) -> str:
    return SYNONYMS[word] if rng.random() < 0.4 else word


def _all_verbs() -> list[str]:
    return [*VERBS, *VERBS.values()]


def _event(rng: random.Random) -> tuple[str, str, str, str]:
    return (rng.choice(PEOPLE), rng.choice(list(VERBS)), rng.choice(list(NOUN_TOPIC)), rng.choice(PLACES))


def _sentence(event: tuple[str, str, str, str], synonym: bool = False, negated: bool = False) -> str:
    who, verb, what, where = event
    said = VERBS[verb] if synonym else verb
    return f"the {who} {'never ' if negated else ''}{said} the {what} in the {where}"


def _roles(event: tuple[str, str, str, str], synonym: bool, negated: bool, place_first: bool) -> Row:
    """The words of a sentence and the role of each. The place may come first, so that no role is a matter of the word's place."""
    words = _sentence(event, synonym, negated).split()
    tags = ["B-WHO", "I-WHO", *["O"] * (len(words) - 7), "B-WHAT", "I-WHAT", "B-PLACE", "I-PLACE", "I-PLACE"]
    if place_first:
        words, tags = words[-3:] + words[:-3], tags[-3:] + tags[:-3]
    return {"tokens": words, "ner_tags": tags}


def _other(event: tuple[str, str, str, str], spare: tuple[str, str, str, str], slot: int) -> tuple[str, str, str, str]:
    """The event with one slot changed for certain."""
    pools = (PEOPLE, list(VERBS), list(NOUN_TOPIC), PLACES)
    pool = pools[slot]
    value = spare[slot] if spare[slot] != event[slot] else pool[(pool.index(event[slot]) + 1) % len(pool)]
    return (*event[:slot], value, *event[slot + 1 :])  # type: ignore[return-value]


def _render(name: str, item: Item) -> tuple[str, str, str]:
    """Text, second text or nothing, label."""
    if name == "sentiment":
        what, who, negated, degree, word = item
        base = {s: w for w, s in SYNONYMS.items()}.get(word, word)
        positive = (base in GOOD) != negated
        text = f"the {what} of the {who} was {'not ' if negated else ''}{degree}{word}"
        return text, "", "positive" if positive else "negative"
    if name == "topic":
        first, second, who, verb, where = item
        return f"the {who} {verb} the {first} and the {second} in the {where}", "", NOUN_TOPIC[first]
    event = item[0]
    if name == "acceptability":
        words = _sentence(event).split()
        kind, place = item[1], item[2]
        if kind == "swap":
            words[place], words[place + 1] = words[place + 1], words[place]
        if kind == "double":
            words.insert(place, words[place])
        return " ".join(words), "", "good" if kind == "good" else "bad"
    if name == "entailment":
        label, slot, spare = item[1:]
        if label == "no":
            return _sentence(event), _sentence(event, slot % 2 == 1, negated=True), label
        return _sentence(event), _sentence(_other(event, spare, slot) if label == "maybe" else event, True), label
    kept, spare, synonym = item[1:]
    changed = event
    for slot in range(4):
        changed = changed if slot in kept else _other(changed, spare, slot)
    return _sentence(event), _sentence(changed, synonym), str(len(kept))
