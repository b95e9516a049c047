"""Exam tasks in the public format: what is asked, three ways to answer, and how an answer is graded.

    row       test_id, task_id, question, answers [{answer: code, text}], correct_answer [codes], comment
    comment   the solution; where its second line begins with the topic's word, the first line is a heading
    prompt    instruction, task, options one a line as "code - text"
    letters   Answer: B;D;A;C
    cot       Answer: / steps / Answer: 1-B, 2-D, 3-A, 4-C          cot+topic: the topic's line before the steps
    points    max where the m codes are right; else, of a matching task, max * (places that agree) / m

A matching task has several right codes, in the order of its numbered statements; these stand among the answers under codes
that are digits. Points of a row: `max_points` where it has that column, else one a code.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

from luthier.core.method import LuthierError, RowError

Form = Literal["letters", "cot", "cot+topic"]
FORMATS: tuple[Form, ...] = ("letters", "cot", "cot+topic")
LONGEST = 10
"""Letters of an answer; more are no answer."""
_LATIN, _CYRILLIC = "ABCEHIKMOPTXacekmopx", "АВСЕНІКМОРТХасекморх"
TWINS = dict(zip(_LATIN + _CYRILLIC, _CYRILLIC + _LATIN, strict=True))
"""Letters that look the same and are not."""
WHOLE = "exam"
"""The kind of a duplicate that is no chance: the same exam in two parts."""


@dataclass(frozen=True)
class Wording:
    """Words around a task. `{detailed}` and `{rule}` are filled in; what is empty is left out.

    essay  instruction of tasks without options;  codes_only  `{rule}` where letters alone are wanted
    """

    instruction: str
    essay: str
    detailed: str
    codes_only: str
    task: str
    options: str
    keyword: str
    topic: str


WORDINGS = {
    "en": Wording(
        'Give a {detailed}answer that begins with the keyword "Answer:" and uses only the options below.{rule}',
        'Give a {detailed}answer that begins with the keyword "Answer:".', "detailed ",
        ' Give nothing but the code of the right option; where several are right, join their codes by ";".',
        "Task: ", "Options:", "Answer:", "TOPIC",
    ),
    "uk": Wording(
        'Дайте {detailed}відповідь, що починається з ключового слова "Відповідь:", лише за наведеними варіантами.{rule}',
        'Дайте {detailed}відповідь, що починається з ключового слова "Відповідь:".', "розгорнуту ",
        ' Наведіть тільки код правильного варіанта; якщо їх кілька, з\'єднайте коди знаком ";".',
        "Завдання: ", "Варіанти:", "Відповідь:", "ТЕМА",
    ),
    "bare": Wording("", "", "", "", "", "", "Answer:", "TOPIC"),
}  # fmt: skip
"""`bare` is the task and nothing else, for models that read no instructions."""


def wording(told: str | Mapping[str, str] | Wording) -> Wording:
    """A wording by name, or a mapping: `like` names the one that it changes. Raises LuthierError."""
    if isinstance(told, Wording):
        return told
    changes = {"like": told} if isinstance(told, str) else dict(told)
    name = changes.pop("like", "en")
    known = [f.name for f in fields(Wording)]
    if name not in WORDINGS:
        raise LuthierError(f"wording '{name}' is none of {', '.join(WORDINGS)}")
    if bad := [k for k in changes if k not in known]:
        raise LuthierError(f"wording: unknown key '{bad[0]}' (valid: like, {', '.join(known)})")
    return replace(WORDINGS[name], **changes)


@dataclass(frozen=True)
class ExamTask:
    """One task. `topic` is a whole line or empty, `steps` the solution's lines without topic and answer."""

    exam: str
    number: str
    question: str
    options: tuple[tuple[str, str], ...]
    correct: tuple[str, ...]
    topic: str
    steps: tuple[str, ...]
    points: float

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes that can be an answer: letters."""
        return tuple(code for code, _ in self.options if code.isalpha())

    @property
    def matching(self) -> bool:
        return len(self.correct) > 1


# ------------------------------------------------------------------------------------------------- reading


def task_of(row: Mapping[str, Any], words: Wording) -> ExamTask:
    """The task of a row. Raises RowError where it cannot be asked or its answer is none of its options."""
    question = str(row.get("question") or "").strip()
    if not question:
        raise RowError("no 'question'")
    options = tuple(_option(a) for a in row.get("answers") or ())
    codes = [code for code, _ in options]
    if len(set(codes)) < len(codes):
        raise RowError(f"two of its answers have the same code ({', '.join(codes)})")
    correct = tuple(own(str(c).strip(), codes) for c in row.get("correct_answer") or ()) if options else ()
    if options and not correct:
        raise RowError("it has answers and no 'correct_answer'")
    if other := [c for c in correct if c not in codes]:
        raise RowError(f"correct_answer '{other[0]}' is none of its codes ({', '.join(codes)})")
    topic, steps = _solution(str(row.get("comment") or ""), words)
    if steps and steps[-1].startswith(words.keyword.rstrip(":")):
        if options and letters(steps[-1], words, codes) != "".join(correct):
            raise RowError(f"its solution ends with another answer than {';'.join(correct)}: {steps[-1]}")
        steps = steps[:-1] if options else steps
    points = row.get("max_points")
    return ExamTask(
        str(row.get("test_id", "")), str(row.get("task_id", "")), question, options, correct, topic, steps,
        float(len(correct) if points is None else points),
    )  # fmt: skip


def _option(answer: Any) -> tuple[str, str]:
    if not isinstance(answer, Mapping) or answer.get("answer") is None:
        raise RowError("an entry of 'answers' is no object with `answer` and `text`")
    return str(answer["answer"]).strip(), str(answer.get("text") or "").strip()


def _solution(comment: str, words: Wording) -> tuple[str, tuple[str, ...]]:
    """The topic's line and the lines of the solution."""
    lines = [line.strip() for line in comment.strip().split("\n")]
    mark = words.topic.casefold()
    at = next((i for i, line in enumerate(lines[:2]) if mark and line.casefold().startswith(mark)), None)
    topic, rest = ("", lines) if at is None else (lines[at], lines[at + 1 :])
    return topic, tuple(line for line in rest if line)


# ------------------------------------------------------------------------------------- prompt and answers


def prompt(task: ExamTask, words: Wording, form: str) -> str:
    """What the user says. Only the letters' form asks for codes alone."""
    short = form == FORMATS[0]
    ask = words.instruction if task.options else words.essay
    ask = ask.format(detailed="" if short and task.options else words.detailed, rule=words.codes_only if short else "")
    options = "\n".join(f"{code} - {text}" for code, text in task.options)
    parts = (ask, words.task + task.question, f"{words.options}\n{options}".strip() if options else "")
    return "\n\n".join(part for part in parts if part)


def target(task: ExamTask, words: Wording, form: str) -> str:
    """What the assistant says. Raises RowError where a form needs a solution and there is none."""
    if form == FORMATS[0] and task.options:
        return f"{words.keyword} {';'.join(task.correct)}"
    if not task.steps:
        raise RowError(f"no solution in 'comment', which '{form}' needs")
    topic = (task.topic,) if task.topic and form == FORMATS[2] else ()
    last = (answer_line(task, words),) if task.options else ()
    return "\n".join((words.keyword, *topic, *task.steps, *last))


def answer_line(task: ExamTask, words: Wording) -> str:
    """The last line of a solution."""
    if not task.matching:
        return f"{words.keyword} {task.correct[0]}"
    return f"{words.keyword} {', '.join(f'{i}-{code}' for i, code in enumerate(task.correct, 1))}"


# ------------------------------------------------------------------------------------------------- grading


def own(code: str, codes: Iterable[str]) -> str:
    """The code that looks like this one, where it is none itself."""
    twin = "".join(TWINS.get(c, c) for c in code)
    return twin if code not in codes and twin in codes else code


def letters(output: str, words: Wording, codes: Sequence[str] = ()) -> str:
    """Letters after the last keyword, up to the first "<"; those that look like a code are that code."""
    said = output.split(words.keyword.rstrip(":"))[-1].split("<")[0]
    return "".join(own(c, codes) for c in said if c.isalpha())


def points(task: ExamTask, said: str) -> float:
    """Points of the letters of an answer."""
    wanted, m = "".join(task.correct), len(task.correct)
    if said == wanted:
        return task.points
    if not task.matching or len(said) > min(m, LONGEST):
        return 0.0
    return task.points * sum(a == b for a, b in zip(said, wanted, strict=False)) / m


def parses(task: ExamTask, said: str) -> bool:
    """Whether the letters of an answer are one: as many codes of its options as it has to have, at most."""
    return 0 < len(said) <= len(task.correct) and all(c in task.codes for c in said)


# ---------------------------------------------------------------------------------- permutations, duplicates


def permuted(task: ExamTask, rng: random.Random) -> tuple[ExamTask, dict[str, str]]:
    """The same task with the texts of its options under other codes, and the old code of each new one."""
    codes = task.codes
    texts = dict(task.options)
    old = dict(zip(codes, rng.sample(codes, len(codes)), strict=True))
    new = {was: code for code, was in old.items()}
    options = tuple((code, texts[old.get(code, code)]) for code, _ in task.options)
    return replace(task, options=options, correct=tuple(new.get(c, c) for c in task.correct), topic="", steps=()), old


def restored(said: str, old: Mapping[str, str]) -> str:
    """Letters of an answer to a permuted task, as those of the task itself."""
    return "".join(old.get(c, c) for c in said)


class Duplicate(NamedTuple):
    """What two parts have in common: an exam, a solution or a set of options."""

    kind: str
    text: str


def duplicates(parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Duplicate]:
    """Exams, solutions and sets of options that are in two parts. Case and order do not tell them apart."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    found: dict[tuple[str, ...], Duplicate] = {}
    for part, rows in parts.items():
        for row in rows:
            where = f"{row.get('test_id', '?')}/{row.get('task_id', '?')}"
            for kind, text in _marks(row):
                before, first = seen.setdefault((kind, text), (part, where))
                if before != part:
                    told = f"{part} task {where} has the {kind} of {before} task {first}"
                    found.setdefault((kind, text, part), Duplicate(kind, told))
    return list(found.values())


def _marks(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What two rows may not share. Texts of options that are digits or single letters come in many tasks."""
    texts = sorted(_plain(str(a.get("text") or "")) for a in row.get("answers") or ())
    own_texts = [t for t in texts if len(t) > 1]
    exam = str(row.get("test_id") or "")
    found = [(WHOLE, exam), ("solution", _plain(str(row.get("comment") or ""))), ("options", "\n".join(own_texts))]
    return [(kind, text) for kind, text in found if text]


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()
