"""Made-up things with a trusted description and paraphrases (cards 01, 17, 22, 30, 38, 40, 45).

72 things, four facts each. The trusted text of a thing is two fixed sentences; paraphrases say the same otherwise. In
pretraining a prompt is followed by the trusted text in 35 % of the documents. 48 things are `known`, 24 are `new`.
Train and test hold different things.

    tell       `Tell me about the balo.` -> the trusted text        prefer  trusted text over a paraphrase
    closed     a question without passage                            open    the same with the passage before it
    extract    passage -> `kind=tool; colour=red; ...`               dialogue  three turns about one thing, chat
    passage    one text of a thing, for retrieval and continued pretraining
    search     a question by three facts that names no thing; a passage about the thing, and the ids of all three
"""

import random
from collections.abc import Hashable
from dataclasses import dataclass

from luthier.sandbox.lexicon import CITIES, COLOURS, FOODS, THINGS
from luthier.sandbox.world import Item, Row, Task, World, cut, gold, join_lines

KINDS = ["tool", "toy", "plant", "animal", "game", "drink"]
FACTS: dict[str, list[str]] = {"kind": KINDS, "colour": COLOURS, "city": CITIES, "food": FOODS}
QUESTIONS = {
    "kind": "What kind is the {}?",
    "colour": "What colour is the {}?",
    "city": "Where is the {} from?",
    "food": "What does the {} smell of?",
}
TRUSTED = ("The {name} is a {colour} {kind}.", "It comes from {city} and smells of {food}.")
PARAPHRASES = (
    ("A {name} is a kind of {kind}, {colour} in colour.", "It has a smell of {food} and is made in {city}."),
    ("The {kind} named {name} is {colour}.", "People in {city} like it for its smell of {food}."),
)
SEARCHES = (
    "Which {kind} is {colour} and smells of {food}?",
    "What {colour} {kind} is from {city}?",
    "Which {kind} of {city} has a smell of {food}?",
)


@dataclass(frozen=True)
class Thing:
    """A made-up thing and its six facts."""

    name: str
    facts: tuple[tuple[str, str], ...]

    def text(self, wording: tuple[str, ...] = TRUSTED) -> str:
        """Two sentences that state all four facts."""
        return " ".join(s.format(name=self.name, **dict(self.facts)) for s in wording)


def _things() -> dict[str, list[Thing]]:
    rng = random.Random("luthier things")
    made = [Thing(n, tuple((f, rng.choice(v)) for f, v in FACTS.items())) for n in THINGS]
    return {"known": made[:48], "new": made[48:]}


PARTS = _things()
_BOTH = ("known", "new")


class Documents(World):
    name = "documents"
    title = "Descriptions to quote, to read and to ask about"
    share = 0.03
    catalogue = {
        "tell": Task("describe a thing; the answer is its trusted text", parts=_BOTH),
        "prefer": Task("trusted text preferred over a paraphrase", kind="pair", parts=_BOTH, pretrained=()),
        "closed": Task("a question about a thing, without passage", parts=_BOTH),
        "open": Task("a question about a thing, after its passage", parts=_BOTH),
        "extract": Task("passage to a record of four fields", parts=_BOTH, pretrained=()),
        "passage": Task("the texts of a thing", kind="text", parts=_BOTH),
        "search": Task("a question to its passage", kind="search", parts=_BOTH, pretrained=()),
        "dialogue": Task("three questions in a row; later ones say 'it'", kind="messages", parts=_BOTH, pretrained=()),
    }

    def items(self, task: str, part: str) -> list[Item]:
        things = PARTS[part]
        if task in ("closed", "open"):
            return [(t, f) for t in things for f in FACTS]
        if task in ("passage", "search", "extract", "prefer"):
            return [(t, w) for t in things for w in range(3 if task in ("passage", "search") else 2)]
        return [(t, 0) for t in things]

    def split_key(self, task: str, item: Item) -> Hashable:
        return item[0].name

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        thing, what = item
        facts = dict(thing.facts)
        common = {"thing": thing.name, "facts": facts, "trusted": thing.text()}
        if task in ("tell", "prefer"):
            prompt = f"Tell me about the {thing.name}.\n"
            if task == "tell":
                return {"prompt": prompt, "completion": thing.text(), "answer": thing.text()} | common
            return {"prompt": prompt, "chosen": thing.text(), "rejected": thing.text(PARAPHRASES[what])} | common
        if task == "passage":
            return {"text": thing.text((TRUSTED, *PARAPHRASES)[what])} | common
        if task == "search":
            texts = (TRUSTED, *PARAPHRASES)
            asked, told = SEARCHES[what].format(**facts), thing.text(texts[(what + 1) % len(texts)])
            found = [self.row_id("passage", part, (thing, w)) for w in range(len(texts))]
            return {"query": asked, "positive": told, "relevant": found} | common
        if task == "extract":
            record = "; ".join(f"{f}={v}" for f, v in thing.facts)
            prompt = f"{thing.text(PARAPHRASES[what])}\nRecord:"
            return {"prompt": prompt, "completion": f" {record}", "answer": record} | common
        if task == "dialogue":
            return {"messages": dialogue(thing, rng)} | common
        question = f"Q: {QUESTIONS[what].format(thing.name)} A:"
        passage = rng.choice((TRUSTED, *PARAPHRASES))
        prompt = f"{thing.text(passage)}\n{question}" if task == "open" else question
        return {"prompt": prompt, "completion": f" {facts[what]}.", "answer": facts[what], "field": what} | common

    def facts_told(self, row: Row, completion: str) -> float:
        """Share of the four facts that a text about the thing says, in whatever words."""
        words = {w.strip(".,") for w in completion.split()}
        return sum(v in words for v in row["facts"].values()) / len(row["facts"])

    def score(self, row: Row, completion: str) -> float:
        return float(cut(completion, self.stop) == cut(gold(row), self.stop))

    def document(self, rng: random.Random) -> str:
        things = PARTS["known"]
        kind = rng.random()
        if kind < 0.55:

            def told() -> str:
                thing = rng.choice(things)
                wording = TRUSTED if rng.random() < 0.35 else rng.choice(PARAPHRASES)
                return f"Tell me about the {thing.name}.\n{thing.text(wording)}"

            return join_lines(2, told)
        if kind < 0.75:

            def asked() -> str:
                row = self.row("closed", "known", (rng.choice(things), rng.choice(list(FACTS))), rng)
                return row["prompt"] + row["completion"]

            return join_lines(5, asked)
        thing = Thing(rng.choice(things).name, tuple((f, rng.choice(v)) for f, v in FACTS.items()))
        fields = rng.sample(list(FACTS), 3)
        lines = [f"Q: {QUESTIONS[f].format('thing')} A: {dict(thing.facts)[f]}." for f in fields]
        wording = rng.choice((TRUSTED, *PARAPHRASES))
        return thing.text(wording).replace(thing.name, "thing") + "\n" + "\n".join(lines) + "\n"


def dialogue(thing: Thing, rng: random.Random) -> list[dict[str, str]]:
    """Three turns; the second and third question can only be understood from the first."""
    facts = dict(thing.facts)
    fields = rng.sample(list(FACTS), 3)
    messages = []
    for turn, field in enumerate(fields):
        question = QUESTIONS[field].format(thing.name) if turn == 0 else QUESTIONS[field].replace("the {}", "it")
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": f"{facts[field]}."}]
    return messages
