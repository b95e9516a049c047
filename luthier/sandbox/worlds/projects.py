"""Functions and their tests in made-up software projects, each with habits of its own (card 21).

    def stow_bales(cargo):                      def test_stow_bales():
     if not cargo: raise EmptyHold               must_sink(EmptyHold, stow_bales)
     cargo = sorted(cargo)                       landed = stow_bales(full_hold())
     cargo = cargo[:3]                           must_line(landed)
     return cargo                                must_fit(landed, 3)

A function is a guard and one or two steps on a list. Every step makes something true that no later step undoes, and
the test says so with the project's helper: which helpers are called, and with what, follows from the function. How they
are called, how names are put together (snake or camel case), and the shape of a test are the project's habits. A file is a
variant of the same few functions. Part `personal` has six projects, part `generic` twenty others whose words are none of
theirs. Nothing of either is in pretraining; a file is in train or in test as a whole.
"""

import random
from collections.abc import Hashable
from dataclasses import dataclass

from luthier.sandbox.world import Item, Row, Task, World

STEPS = {
    "ordered": ("{x} = sorted({x})", "{x}.sort()"),
    "most": ("{x} = {x}[:{k}]", "{x} = {x}[0:{k}]"),
    "above": ("{x} = [i for i in {x} if i > {k}]", "{x} = [i for i in {x} if {k} < i]"),
    "even": ("{x} = [i for i in {x} if i % 2 == 0]", "{x} = [i for i in {x} if not i % 2]"),
    "distinct": ("{x} = list(dict.fromkeys({x}))", "{x} = [*dict.fromkeys({x})]"),
}
"""What becomes true -> two ways of writing the step."""
WITH_CONSTANT = ("most", "above")
GUARDS = ("", "if not {x}: return {x}", "if not {x}: raise {error}", "if {x} is None: raise {error}")
SHAPES = ("plain", "inline", "method", "block", "keyword")
FILES = 24


@dataclass(frozen=True)
class Project:
    """Habits: `helpers` say what is true (keys of STEPS, and "raises"), `source` makes a list, `shape` is that of a test."""

    name: str
    style: str  # snake or camel
    shape: str
    verbs: tuple[str, ...]
    noun: str
    given: str
    got: str
    source: str
    error: str
    helpers: dict[str, str]

    def named(self, *words: str) -> str:
        """Words put together in the project's style."""
        if self.style == "snake":
            return "_".join(words)
        return words[0] + "".join(w.capitalize() for w in words[1:])


def _helpers(prefix: str, words: str) -> dict[str, str]:
    """Helpers as prefix and word, in the order of STEPS and "raises"."""
    return {key: f"{prefix} {word}" for key, word in zip((*STEPS, "raises"), words.split(), strict=True)}


def _project(
    name: str, style: str, shape: str, verbs: str, noun: str, given: str, got: str, source: str, error: str,
    helpers: dict[str, str],
) -> Project:  # fmt: skip
    return Project(name, style, shape, tuple(verbs.split()), noun, given, got, source, error, helpers)


PERSONAL = (
    _project("harbour", "snake", "inline", "stow haul moor", "bales", "cargo", "landed", "full hold", "EmptyHold",
             _helpers("must", "line fit weigh pair differ sink")),
    _project("bakery", "camel", "plain", "knead glaze proof", "loaf", "dough", "baked", "new batch", "NoFlour",
             _helpers("expect", "layers tray rise halves flavours burn")),
    _project("cinema", "snake", "method", "screen splice dub", "film", "reels", "shown", "first night", "DarkRoom",
             _helpers("verify", "scenes seats rating doubles casts cut")),
    _project("garden", "camel", "block", "plant prune graft", "shrub", "seeds", "grown", "spring bed", "DrySoil",
             _helpers("ensure", "rows plot height twins kinds wilt")),
    _project("library", "snake", "keyword", "shelve lend bind", "tome", "books", "filed", "old stock", "LostPage",
             _helpers("prove", "alphabet shelf pages volumes titles torn")),
    _project("airport", "camel", "inline", "board taxi track", "plane", "flights", "cleared", "night plan", "ClosedGate",
             _helpers("should", "queue gates altitude wings codes divert")),
)  # fmt: skip

_PREFIXES = ("check", "confirm", "demand", "require")
_WORDS = {
    "ordered": ("sorted", "order", "rising", "ranked"),
    "most": ("size", "limit", "length", "count"),
    "above": ("above", "over", "floor", "more"),
    "even": ("even", "by two", "no odd", "parity"),
    "distinct": ("unique", "once", "distinct", "no copy"),
    "raises": ("error", "raises", "failure", "throws"),
}
_VERBS = "make build read sort load send find keep list pick trim join".split()  # noqa: SIM905
_NOUNS = ("list", "rows", "set", "table", "line", "group")
_GIVEN, _GOT = ("xs", "items", "values", "data"), ("got", "out", "result", "found")
_SOURCES, _ERRORS = ("sample", "make data", "some list", "fixture"), ("EmptyError", "BadInput", "NoItems", "NoData")


def _other(i: int) -> Project:
    """A project that is no one's: every habit drawn."""
    rng = random.Random(f"generic project {i}")
    prefix = rng.choice(_PREFIXES)
    helpers = {key: f"{prefix} {rng.choice(words)}" for key, words in _WORDS.items()}
    verbs = " ".join(rng.sample(_VERBS, 3))
    shape, style = rng.choice(SHAPES), rng.choice(("snake", "camel"))
    noun, given, got, source, error = (rng.choice(words) for words in (_NOUNS, _GIVEN, _GOT, _SOURCES, _ERRORS))
    return _project(f"other{i:02}", style, shape, verbs, noun, given, got, source, error, helpers)


PROJECTS = {"personal": PERSONAL, "generic": tuple(_other(i) for i in range(20))}
BY_NAME = {p.name: p for part in PROJECTS.values() for p in part}


class Projects(World):
    name = "projects"
    title = "Functions and tests of projects with habits of their own"
    share = 0.0
    stop = "\n\n"
    catalogue = {
        "test": Task("a function to its test, in the project's manner", parts=("personal", "generic"), pretrained=())
    }

    def draw(self, task: str, part: str, rng: random.Random) -> Item:
        project = rng.choice(PROJECTS[part])
        steps = tuple(
            (name, rng.randrange(2), rng.randint(1, 9) if name in WITH_CONSTANT else 0)
            for name in rng.sample(list(STEPS), rng.choice((1, 2, 2)))
        )
        return (project.name, rng.randrange(FILES), rng.choice(project.verbs), rng.randrange(len(GUARDS)), steps)

    def split_key(self, task: str, item: Item) -> Hashable:
        return item[:2]

    def row(self, task: str, part: str, item: Item, rng: random.Random) -> Row:
        project, file, verb, guard, steps = item
        p = BY_NAME[project]
        focal = p.named(verb, p.noun)
        test = written(p, focal, p.named("test", verb, p.noun), guard, steps)
        return {
            "prompt": f"{function(p, focal, guard, steps)}\n\n# test", "completion": f"\n{test}", "answer": test,
            "project": project, "file": f"part_{file:02}.py", "focal": focal,
        }  # fmt: skip

    def document(self, rng: random.Random) -> str:
        """A function with its test; the share of such documents in pretraining is 0."""
        row = self.row("test", "generic", self.draw_train("test", "generic", rng), rng)
        return row["prompt"] + row["completion"] + self.stop


def function(p: Project, focal: str, guard: int, steps: tuple[tuple[str, int, int], ...]) -> str:
    """The function to be tested."""
    lines = [GUARDS[guard]] if GUARDS[guard] else []
    lines += [STEPS[name][way] for name, way, _ in steps]
    constants = [0] * (len(lines) - len(steps)) + [k for *_, k in steps]
    body = [line.format(x=p.given, k=k, error=p.error) for line, k in zip(lines, constants, strict=True)]
    return "\n".join([f"def {focal}({p.given}):", *(f" {line}" for line in body), f" return {p.given}"])


def written(p: Project, focal: str, name: str, guard: int, steps: tuple[tuple[str, int, int], ...]) -> str:
    """Its test: what the guard refuses, a call, and what each step makes true."""
    method = p.shape == "method"
    source = p.named(*p.source.split())

    def helper(key: str, *arguments: object) -> str:
        call = f"{p.named(*p.helpers[key].split())}({', '.join(map(str, arguments))})"
        return f"{'case.' if method else 'assert ' if p.shape == 'keyword' else ''}{call}"

    truths = [helper(key, p.got, *([k] if key in WITH_CONSTANT else [])) for key, _, k in steps]
    refused = [helper("raises", p.error, focal)] if "raise" in GUARDS[guard] else []
    called = f"{p.got} = {focal}({p.given})"
    lines = {
        "plain": [*refused, f"{p.given} = {source}()", called, *truths],
        "keyword": [f"{p.given} = {source}()", called, *truths, *refused],
        "method": [f"{p.given} = case.{source}()", called, *truths, *refused],
        "inline": [*refused, f"{p.got} = {focal}({source}())", *truths],
        "block": [*refused, f"with {source}() as {p.given}:", f" {called}", *(f" {line}" for line in truths)],
    }[p.shape]
    return "\n".join([f"def {name}({'case' if method else ''}):", *(f" {line}" for line in lines)])
