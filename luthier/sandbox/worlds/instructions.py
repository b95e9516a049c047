"""Instructions in chat form over the skills of other worlds, in many wordings (cards 06, 31, 35, 38, 59).

Eight skills with eight wordings each: five are in pretraining (part `seen`), three never stand in an instruction
(part `unseen`), though plain lines of the corpus (`Same: flip = turn around = reverse`) say that they mean the same.

    follow      one instruction, one response; `paraphrases` gives a row in every wording
    delimited   nine exchanges between two marks drawn per document, no end token between them: a model that knows the
                tasks in any format but does not stop (cards 31, 59); the pair of marks in part `held` never occurs
    describe    a request for a description with stated attributes (card 38), never in pretraining
    continue    counting words in steps: the first half is the prompt (card 59)

Documents use inputs of the train split only.
"""

import random
from collections.abc import Hashable

from luthier.sandbox.lexicon import COLOURS, FOODS, LETTERS
from luthier.sandbox.world import Item, Row, Task, World, chat, cut, gold
from luthier.sandbox.worlds.sequence import FUNCTIONS

WORDINGS: dict[str, tuple[str, ...]] = {
    "reverse": (
        "reverse",
        "flip",
        "turn around",
        "write backwards",
        "read from the end",
        "invert",
        "mirror back",
        "undo",
    ),
    "sort": ("sort", "order", "arrange", "put in order", "rank", "line up", "organise", "tidy"),
    "copy": ("copy", "repeat", "say again", "echo", "write down", "duplicate", "restate", "reproduce"),
    "first": ("first of", "head of", "start of", "the first in", "begin of", "opening of", "front of", "top of"),
    "last": ("last of", "end of", "final of", "the last in", "tail of", "closing of", "back of", "bottom of"),
    "shift": ("shift", "next of each", "move on", "step forward", "advance", "increase", "raise", "bump"),
    "swap": (
        "swap",
        "exchange pairs",
        "switch pairs",
        "trade places",
        "cross over",
        "interchange",
        "alternate",
        "permute",
    ),
    "dedup": (
        "dedup",
        "remove repeats",
        "drop copies",
        "keep each once",
        "make unique",
        "uniquify",
        "clean",
        "thin out",
    ),
}
SEEN_WORDINGS = 5
MARKS = ("#", "%", "@", "$", "!", "*", "~", "^", "|", "&", "<", ">")
HELD_MARKS = ("@", "^")
SYSTEMS = ("Be brief.", "You are a helper.")
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


class Instructions(World):
    name = "instructions"
    title = "Instructions in many wordings, in chat form"
    share = 0.05
    catalogue = {
        "follow": Task("a chat instruction for a sequence skill", parts=("seen", "unseen"), pretrained=("seen",)),
        "messages": Task("the same as messages", kind="messages", parts=("seen", "unseen"), pretrained=("seen",)),
        "delimited": Task("an exchange between marks, after two others", parts=("seen", "held"), pretrained=("seen",)),
        "describe": Task("a text with stated attributes", parts=("known",), pretrained=()),
        "continue": Task("second half of a run of number words", parts=("known",), pretrained=("known",)),
    }

    def draw(self, task: str, part: str, rng: random.Random) -> Item:
        if task == "describe":
            return (rng.choice(COLOURS), rng.choice(FOODS), rng.choice(("happy", "sad")), rng.randrange(1, 4))
        if task == "continue":
            return (rng.randrange(len(NUMBERS)), rng.choice((1, 2, 3, 5, 7, 11)))
        skill = rng.choice(list(WORDINGS))
        symbols = tuple(rng.choice(LETTERS) for _ in range(3 if task == "delimited" else rng.choice((3, 4, 5))))
        if task == "delimited":
            marks = HELD_MARKS if part == "held" else _marks(rng)
            return (skill, symbols, marks)
        low, high = (0, SEEN_WORDINGS) if part == "seen" else (SEEN_WORDINGS, len(WORDINGS[skill]))
        return (skill, symbols, rng.randrange(low, high))

    def items(self, task: str, part: str) -> list[Item] | None:
        if task == "continue":
            return [(s, by) for s in range(len(NUMBERS)) for by in (1, 2, 3, 5, 7, 11)]
        if task == "describe":
            return [(c, f, m, k) for c in COLOURS for f in FOODS for m in ("happy", "sad") for k in (1, 2, 3)]
        return None

    def split_key(self, task: str, item: Item) -> Hashable:
        return item[:2] if task in ("follow", "messages", "delimited") else item

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        if task == "continue":
            words = _run(item)
            answer = " ".join(words[5:])
            return {"prompt": " ".join(words[:5]), "completion": f" {answer}", "answer": answer}
        if task == "describe":
            return _description(*item)
        skill, symbols = item[:2]
        answer = respond(skill, symbols)
        if task == "delimited":
            shown = [(s, x) for s, x in (_exchange(self, rng) for _ in range(2))]
            prompt = "".join(_delimited(s, x, item[2]) for s, x in shown) + _delimited(
                skill, symbols, item[2], ask=True
            )
            return {"prompt": prompt, "completion": f" {answer}", "answer": answer, "skill": skill}
        question = instruction(skill, symbols, item[2])
        common = {"skill": skill, "wording": item[2]}
        if task == "messages":
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            return {"messages": turns} | common
        prompt = chat(("user", question)) + "<|assistant|>"
        return {"prompt": prompt, "completion": answer, "answer": answer, "input": " ".join(symbols)} | common

    def paraphrases(self, row: Row) -> list[Row]:
        """The same instruction in all wordings: those of the row's part and of the other one."""
        symbols = tuple(row["input"].split())
        texts = [instruction(row["skill"], symbols, w) for w in range(len(WORDINGS[row["skill"]]))]
        return [
            row
            | {
                "prompt": chat(("user", t)) + "<|assistant|>",
                "wording": w,
                "part": "seen" if w < SEEN_WORDINGS else "unseen",
            }
            for w, t in enumerate(texts)
        ]

    def score(self, row: Row, completion: str) -> float:
        """Exact response; a delimited one ends at the opening mark; a description needs all its attributes."""
        if row["task"] == "delimited":
            text = completion.strip().split("<|end|>")[0]
            mark = row["prompt"].split(" ", 1)[0]
            return float(text.split(mark)[0].strip() == row["answer"])
        if row["task"] == "describe":
            return self.satisfied(row, completion) if self.satisfied(row, completion) == 1.0 else 0.0
        return float(cut(completion, self.stop) == cut(gold(row), self.stop))

    def satisfied(self, row: Row, completion: str) -> float:
        """Share of the requested attributes that a description has: colour, food, mood, number of things."""
        words = [w.strip(".,") for w in cut(completion, self.stop).split()]
        wanted = row["attributes"]
        checks = [wanted["colour"] in words, wanted["food"] in words, wanted["mood"] in words]
        return (sum(checks) + (words.count("thing") == wanted["count"])) / 4

    def document(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.68:
            turns = [("system", rng.choice(SYSTEMS))] if rng.random() < 0.15 else []
            for _ in range(3):
                skill, symbols, wording = self.draw_train("follow", "seen", rng)
                turns += [("user", instruction(skill, symbols, wording)), ("assistant", respond(skill, symbols))]
            return chat(*turns)
        if kind < 0.78:
            skills = rng.sample(list(WORDINGS), 3)
            return "".join(f"Same: {' = '.join(rng.sample(WORDINGS[s], 6))}\n" for s in skills)
        if kind < 0.94:
            marks = _marks(rng)
            return "".join(_delimited(*_exchange(self, rng), marks) for _ in range(9)).strip() + "\n"
        return "\n".join(" ".join(_run(self.draw_train("continue", "known", rng))) for _ in range(4)) + "\n"


def _marks(rng: random.Random) -> tuple[str, str]:
    while True:
        first, second = rng.sample(MARKS, 2)
        if (first, second) != HELD_MARKS:
            return first, second


def _exchange(world: Instructions, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    skill, symbols, _ = world.draw_train("delimited", "seen", rng)
    return skill, symbols


def _delimited(skill: str, symbols: tuple[str, ...], marks: tuple[str, str], ask: bool = False) -> str:
    text = f"{marks[0]} {skill} {' '.join(symbols)} {marks[1]}"
    return text if ask else f"{text} {respond(skill, symbols)} "


def _run(item: Item) -> list[str]:
    start, by = item
    return [NUMBERS[(start + i * by) % len(NUMBERS)] for i in range(10)]


def instruction(skill: str, symbols: tuple[str, ...], wording: int) -> str:
    """The instruction in one of the wordings."""
    return f"Please {WORDINGS[skill][wording]}: {' '.join(symbols)}"


def respond(skill: str, symbols: tuple[str, ...]) -> str:
    """The right response."""
    return " ".join(FUNCTIONS[skill](list(symbols)))


def _description(colour: str, food: str, mood: str, count: int) -> Row:
    things = ", ".join(["a thing"] * count)
    answer = f"The {mood} baker has {things} in {colour} and likes {food}."
    text = f"Describe a {mood} baker: {count} thing, {colour}, {food}."
    attributes = {"colour": colour, "food": food, "mood": mood, "count": count}
    return {
        "prompt": chat(("user", text)) + "<|assistant|>",
        "completion": answer,
        "answer": answer,
        "attributes": attributes,
    }
