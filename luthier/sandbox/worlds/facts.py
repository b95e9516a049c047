"""Facts about made-up people: stated in documents, asked in several wordings (cards 05, 08, 16, 25, 45).

600 people with two-part names, four attributes each; the values are drawn independently of the names. 200 are `known`,
200 `rare` (in pretraining a third as often), 200 `new` (same forms, never in pretraining). The gap is learnable, as card 25
needs: nine tenths of the people of pretraining, and one tenth of the new ones, carry a first name of the known list. Train
and test hold different people.
"""

import itertools
import random
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from luthier.sandbox.lexicon import CITIES, FIRST_KNOWN, FIRST_NEW, FOODS, JOBS, LAST
from luthier.sandbox.world import Item, Row, Task, World, cut, is_test, join_lines, weighted

VALUES: dict[str, list[str]] = {"city": CITIES, "job": JOBS, "food": FOODS, "age": [str(a) for a in range(20, 60)]}
VERBATIM = {
    "city": "Where does {} live?",
    "job": "What is the job of {}?",
    "food": "What does {} like?",
    "age": "What is the age of {}?",
}
REPHRASED = {
    "city": "In which city is the home of {}?",
    "job": "Tell me the work that {} does.",
    "food": "Which food is the best for {}?",
    "age": "How old is {}?",
}
DERIVED = {"city": "Does {} live in {}?", "job": "Is {} a {}?", "food": "Does {} like {}?", "age": "Is {} over {}?"}
CLAUSES = {"city": "lives in {}", "job": "is a {}", "food": "likes {}", "age": "is {} years old"}


@dataclass(frozen=True)
class Person:
    """One made-up person: a name and a value for each attribute."""

    name: str
    city: str
    job: str
    food: str
    age: str


def _people() -> dict[str, list[Person]]:
    rng = random.Random("luthier people")
    parts: dict[str, list[Person]] = {"known": [], "rare": [], "new": []}
    common, uncommon = {"known": 180, "rare": 180, "new": 20}, {"known": 20, "rare": 20, "new": 180}
    for firsts, quota in ((FIRST_KNOWN, common), (FIRST_NEW, uncommon)):
        names = [f"{first} {last}" for first in firsts for last in LAST]
        rng.shuffle(names)
        for part, count in quota.items():
            for _ in range(count):
                parts[part].append(Person(names.pop(), *(rng.choice(VALUES[a]) for a in VALUES)))
    return parts


PEOPLE = _people()
RARE_WEIGHT = 1 / 3
_KNOWN, _RARE = PEOPLE["known"], PEOPLE["rare"]
_FORMS: dict[str, Any] = {"parts": ("known", "rare", "new", "all"), "pretrained": ("known", "rare")}


class Facts(World):
    name = "facts"
    title = "People and their attributes, known and new"
    share = 0.15
    catalogue = {
        "verbatim": Task("an attribute asked in the wording that pretraining uses most", **_FORMS),
        "rephrased": Task("the same fact asked in another wording", **_FORMS),
        "derived": Task("the same fact as a yes-no question", **_FORMS),
        "compare": Task("which of two people is older", parts=_FORMS["parts"], pretrained=()),
        "statement": Task("all attributes of a person in one sentence", kind="text", **_FORMS),
    }

    def __init__(self) -> None:
        self.known = {p.name for p in _KNOWN + _RARE}

    def people(self, part: str) -> list[Person]:
        """The people of a part; `all` is all three, each row then says which are known."""
        return [p for people in PEOPLE.values() for p in people] if part == "all" else PEOPLE[part]

    def items(self, task: str, part: str) -> list[Item] | None:
        if task == "compare":
            return None
        if task == "statement":
            return [(p, "all") for p in self.people(part)]
        return [(p, a) for p in self.people(part) for a in VALUES]

    def draw(self, task: str, part: str, rng: random.Random) -> Item:
        while True:
            a = rng.choice(self.people(part))
            b = rng.choice(self.people(part))
            if a.age != b.age and _is_test(a) == _is_test(b):
                return (a, b)

    def split_key(self, task: str, item: Item) -> Hashable:
        return item[0].name

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        person = item[0]
        common = {"name": person.name, "known": person.name in self.known}
        if task == "statement":
            return {"text": f"People: {statement(person, rng)}"} | common
        if task == "compare":
            older = max(item, key=lambda p: int(p.age)).name
            question = f"Who is older, {person.name} or {item[1].name}?"
            return _qa(question, older) | common | {"item": f"facts/{person.name}/age"}
        attribute = item[1]
        value = getattr(person, attribute)
        common |= {"item": f"facts/{person.name}/{attribute}", "attribute": attribute, "value": value}
        if task == "derived":
            return _qa(*derived(person, attribute, rng)) | common
        wording = VERBATIM if task == "verbatim" else REPHRASED
        return _qa(wording[attribute].format(person.name), value) | common

    def document(self, rng: random.Random) -> str:
        if rng.random() < 0.45:
            return f"People: {' '.join(statement(any_known(rng), rng) for _ in range(4))}\n"
        forms = {"verbatim": 0.58, "rephrased": 0.28, "derived": 0.14}

        def line() -> str:
            row = self.row(weighted(rng, forms), "known", (any_known(rng), rng.choice(list(VALUES))), rng)
            return row["prompt"] + row["completion"]

        return join_lines(6, line)

    def score(self, row: Row, completion: str) -> float:
        """1.0 when the answer is the only value, name or yes-no word of its kind in the first line, in any style."""
        if "text" in row:
            return super().score(row, completion)
        said = [w.strip(".,!?:") for w in cut(completion, self.stop).split()]
        rivals = _rivals(row)
        if " " in row["answer"]:
            said = [f"{first} {last}" for first, last in itertools.pairwise(said)]
        return float(row["answer"] in said and not [w for w in said if w in rivals and w != row["answer"]])


def _rivals(row: Row) -> set[str]:
    """Answers of the same kind: naming two of them is not an answer."""
    if row["task"] == "compare":
        return {p.name for part in PEOPLE.values() for p in part}
    return {"Yes", "No"} if row["task"] == "derived" else set(VALUES[row["attribute"]])


def any_known(rng: random.Random) -> Person:
    """A person of pretraining: known ones three times as often as rare ones."""
    return rng.choice(_RARE if rng.random() < RARE_WEIGHT / (1 + RARE_WEIGHT) else _KNOWN)


def _is_test(person: Person) -> bool:
    return is_test(person.name)


def _qa(question: str, answer: str) -> Row:
    return {"prompt": f"Q: {question} A:", "completion": f" {answer}.", "answer": answer}


def statement(person: Person, rng: random.Random) -> str:
    """One sentence with all attributes, in random order."""
    clauses = [CLAUSES[a].format(getattr(person, a)) for a in rng.sample(list(VALUES), len(VALUES))]
    return f"{person.name} {', '.join(clauses[:-1])} and {clauses[-1]}."


def derived(person: Person, attribute: str, rng: random.Random) -> tuple[str, str]:
    """A yes-no question about a value, true half of the time (for age: over a random limit)."""
    value = getattr(person, attribute)
    if attribute == "age":
        limit = rng.randrange(20, 60)
        return DERIVED["age"].format(person.name, limit), "Yes" if int(value) > limit else "No"
    true = rng.random() < 0.5
    shown = value if true else rng.choice([v for v in VALUES[attribute] if v != value])
    return DERIVED[attribute].format(person.name, shown), "Yes" if true else "No"
