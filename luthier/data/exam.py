"""Exam: tasks of exams in the public format, with the answer in one of three forms.

    in      question, answers [{answer: code, text}], correct_answer [codes], comment (empty where there is no solution)
    out     TextExample: a user's turn (instruction, task, options) and the assistant's answer
    trained the answer with its end token; prompt_loss: true trains the whole text but the begin token

    target  letters: the codes;  cot: solution and codes;  cot+topic: the topic's line, solution and codes
    wording en, uk, bare (no instruction), or a mapping as in core/exam.py
    photos  false: tasks that need a picture are left out
    date    what templates that write today's date write instead

Longer than max_length: the solution loses lines from its beginning, prompt, topic and codes stay. Rows are rejected where
codes and solution contradict each other. The begin token is counted in every row; a wrong count stops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from luthier.core import exam
from luthier.core.batch import TextExample
from luthier.core.method import RowError
from luthier.data._family import Conversational, Encoded, Rendered, Tokens, Wanted
from luthier.data._hygiene import begins, check_begin, dated
from luthier.data._tokens import tokenise


@dataclass(frozen=True)
class Exam(Conversational):
    paper: ClassVar[str] = "arXiv:2503.13988"
    cards: ClassVar[tuple[int, ...]] = (34,)
    detected: ClassVar[bool] = True
    example_kind: ClassVar[type] = TextExample
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("question",), ("answers",), ("correct_answer",), ("comment",))
    optional: ClassVar[tuple[str, ...]] = ("test_id", "task_id", "max_points", "with_photo")
    max_length: int | None = 3072
    target: exam.Form = "cot+topic"
    wording: str | dict[str, str] = "en"
    prompt_loss: bool = False
    photos: bool = True
    date: str = "26 Jul 2024"
    apply_chat_template: Literal["auto", True, False] = True

    def template_text(self, tokenizer: Any) -> str | None:
        return dated(super().template_text(tokenizer), self.date)

    def texts(self, row: dict[str, Any], tokenizer: Any) -> list[Rendered]:
        return [self._rendered(self._task(row), tokenizer)]

    def _task(self, row: Mapping[str, Any]) -> exam.ExamTask:
        if row.get("with_photo") and not self.photos:
            raise RowError("it needs a picture (photos: false)")
        return exam.task_of(row, exam.wording(self.wording))

    def _rendered(self, task: exam.ExamTask, tokenizer: Any) -> Rendered:
        words = exam.wording(self.wording)
        answer = exam.target(task, words, self.target)
        messages = self.opened([
            {"role": "user", "content": exam.prompt(task, words, self.target)}, {"role": "assistant", "content": answer}
        ])  # fmt: skip
        wanted = Wanted((*[False] * (len(messages) - 1), True), everything=self.prompt_loss)
        return self.conversation(tokenizer).spans(messages, wanted)

    def encode_rows(
        self, rows: Sequence[dict[str, Any]], indices: Sequence[int], tokenizer: Any
    ) -> list[Encoded | RowError]:
        found, wanted = super().encode_rows(rows, indices, tokenizer), begins(tokenizer, self.template_text(tokenizer))
        for index, one in zip(indices, found, strict=True):
            if isinstance(one, Encoded):
                check_begin(one.example.ids, tokenizer, wanted, f"row {index + 1}")  # type: ignore[union-attr]
        return found

    def build(self, row: dict[str, Any], index: int, tokens: list[Tokens], tokenizer: Any) -> Encoded:
        short = tokens[0]
        if not self.fits(len(short.ids)):
            short = self._shortened(self._task(row), len(short.ids), tokenizer)
        return Encoded(TextExample(index, short.ids, short.counts), short.marks)

    def _shortened(self, task: exam.ExamTask, n: int, tokenizer: Any) -> Tokens:
        """With as much of the solution's end as fits."""
        for start in range(1, len(task.steps) if self.target != "letters" else 0):
            found = tokenise([self._rendered(replace(task, steps=task.steps[start:]), tokenizer)], tokenizer)[0]
            if len(found.ids) <= (self.max_length or 0):
                found.marks |= {"cut", "solution cut"}
                return found
        raise RowError(f"{n} tokens, and more than max_length {self.max_length} without its solution too: raise it")
