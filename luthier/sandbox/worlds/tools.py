"""A tool world: schemas, requests in words, calls in JSON (cards 10, 51).

    Tools: mail(person, day); light(colour); timer(minutes)
    User: Wake me in "7" minutes.
    Call: {"timer": {"minutes": "7"}}

Values stand in quotes in request and call, so that they are the same tokens. Twelve tools are in pretraining (part
`known`), four never are (`new`); every request lists the right tool and two others. `easy` is one call with copied
values, `hard` two calls or a value to be computed (two days after Monday), never in pretraining. Train and test hold
different argument values. Calls are compared as data: spacing, order of arguments and number against text do not count.
"""

import json
import random
from collections.abc import Hashable
from typing import Any

from luthier.sandbox.lexicon import CITIES, COLOURS, DAYS, FIRST_KNOWN, FOODS, OBJECTS
from luthier.sandbox.world import Item, Row, Task, World, cut, join_lines

SCHEMAS: dict[str, dict[str, str]] = {
    "weather": {"city": "city", "day": "day"},
    "mail": {"person": "person", "day": "day"},
    "light": {"colour": "colour"},
    "timer": {"minutes": "number"},
    "order": {"food": "food", "count": "number"},
    "train": {"city": "city", "day": "day"},
    "search": {"object": "object"},
    "sell": {"object": "object", "price": "number"},
    "call": {"person": "person"},
    "meet": {"person": "person", "city": "city"},
    "paint": {"object": "object", "colour": "colour"},
    "heat": {"level": "number"},
    "hotel": {"city": "city", "nights": "number"},
    "lend": {"object": "object", "person": "person"},
    "music": {"volume": "number"},
    "table": {"day": "day", "guests": "number"},
}
REQUESTS: dict[str, tuple[str, str]] = {
    "weather": ("How is the weather in {city} on {day}?", "Tell me the weather on {day} in {city}."),
    "mail": ("Write to {person} on {day}.", "On {day} send a mail to {person}."),
    "light": ("Make the light {colour}.", "I want {colour} light."),
    "timer": ("Wake me in {minutes} minutes.", "Set a timer for {minutes} minutes."),
    "order": ("Order {count} times {food}.", "I want {food}, {count} times."),
    "train": ("I need a train to {city} on {day}.", "On {day} I go to {city} by train."),
    "search": ("Where is my {object}?", "Find the {object}."),
    "sell": ("Sell the {object} for {price}.", "I want {price} for my {object}."),
    "call": ("Call {person}.", "I want to talk to {person}."),
    "meet": ("Meet {person} in {city}.", "In {city} I meet {person}."),
    "paint": ("Paint the {object} {colour}.", "Make my {object} {colour}."),
    "heat": ("Set the heat to {level}.", "I want heat {level}."),
    "hotel": ("A hotel in {city} for {nights} nights.", "I stay {nights} nights in {city}."),
    "lend": ("Lend the {object} to {person}.", "Give {person} my {object}."),
    "music": ("Set the music to {volume}.", "I want music at {volume}."),
    "table": ("A table for {guests} on {day}.", "On {day} we are {guests} at table."),
}
KNOWN = list(SCHEMAS)[:12]
NEW = list(SCHEMAS)[12:]
VALUES: dict[str, list[Any]] = {
    "city": CITIES,
    "day": DAYS,
    "person": FIRST_KNOWN,
    "colour": COLOURS,
    "number": [str(i) for i in range(1, 100)],
    "food": FOODS,
    "object": OBJECTS,
}


class Tools(World):
    name = "tools"
    title = "Requests to JSON calls"
    share = 0.05
    catalogue = {
        "easy": Task("one call, values copied", parts=("known", "new")),
        "hard": Task("two calls, or a value to be computed", parts=("known", "new"), pretrained=()),
    }

    def draw(self, task: str, part: str, rng: random.Random) -> Item:
        mine = KNOWN if part == "known" else NEW
        tool = rng.choice(mine)
        others = rng.sample([t for t in (KNOWN if part == "known" else SCHEMAS) if t != tool], 2)
        first = self._call(tool, rng)
        kind = "one"
        if task == "hard":
            day = "day" in dict(first[1]) and rng.random() < 0.5
            kind = "later" if day else "two"
        second = self._call(others[0], rng) if kind == "two" else None
        return (first, tuple(others), rng.randrange(2), kind, second, rng.randrange(1, 4))

    def _call(self, tool: str, rng: random.Random) -> Item:
        return (tool, tuple((name, rng.choice(VALUES[kind])) for name, kind in SCHEMAS[tool].items()))

    def split_key(self, task: str, item: Item) -> Hashable:
        return item[0]

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        (tool, values), others, wording, kind, second, days = item
        arguments = dict(values)
        calls = {tool: dict(arguments)}
        if kind == "later":
            arguments["day"] = f"{days} days after {arguments['day']}"
            calls[tool]["day"] = DAYS[(DAYS.index(values[[n for n, _ in values].index("day")][1]) + days) % 7]
        text = _ask(tool, wording, arguments)
        if second is not None:
            calls[second[0]] = dict(second[1])
            text += " " + _ask(second[0], wording, dict(second[1]))
        shown = [tool, *others]
        random.Random(repr(item)).shuffle(shown)
        prompt = f"Tools: {'; '.join(schema(t) for t in shown)}\nUser: {text}\nCall:"
        answer = json.dumps(calls)
        return {"prompt": prompt, "completion": f" {answer}", "answer": answer, "tools": shown, "request": text}

    def score(self, row: Row, completion: str) -> float:
        return float(same_calls(cut(completion, self.stop), row["answer"]))

    def document(self, rng: random.Random) -> str:
        def line() -> str:
            row = self.row("easy", "known", self.draw_train("easy", "known", rng), rng)
            return row["prompt"] + row["completion"]

        return join_lines(2, line)


def _ask(tool: str, wording: int, arguments: dict[str, Any]) -> str:
    return REQUESTS[tool][wording].format(**{name: f'"{value}"' for name, value in arguments.items()})


def schema(tool: str) -> str:
    """A tool and the names of its arguments."""
    return f"{tool}({', '.join(SCHEMAS[tool])})"


def same_calls(text: str, answer: str) -> bool:
    """Do two JSON texts make the same calls? Keys once each, values equal as data."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) != len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    try:
        said, wanted = json.loads(text, object_pairs_hook=unique), json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return _plain(said) == _plain(wanted)


def _plain(calls: Any) -> Any:
    """Calls with every value as text, whole numbers without a fraction."""
    if isinstance(calls, dict):
        return {name: _plain(value) for name, value in calls.items()}
    return str(int(calls)) if isinstance(calls, float) and calls.is_integer() else str(calls)
