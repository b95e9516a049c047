"""Rows of exams: what is trained, what is cut, one begin token, the same text on every day."""

from __future__ import annotations

import copy
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.chat_template_utils as rendering

from luthier import sandbox
from luthier.core.method import LuthierError
from luthier.data import prepare, read, split
from luthier.data._hygiene import begins, check_begin, dated
from luthier.sandbox.tokens import shaped

SOURCE = "sandbox:exam?task=mixed&n=16"
BEGUN = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"  # noqa: E501
DATED = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{% endif %}"
    + BEGUN.replace("{% for", "<|system|>{{ date_string }}{% for", 1)
)


@pytest.fixture
def tokenizer() -> Any:
    return sandbox.tokenizer()


def made(tokenizer: Any, source: Any = SOURCE, **options: Any) -> Any:
    return prepare(source, tokenizer=tokenizer, options={"wording": "bare", **options})


def trained(example: Any, tokenizer: Any) -> str:
    return tokenizer.decode([i for i, c in zip(example.ids, example.counts, strict=True) if c])


def test_letters_see_no_solution_and_topics_stand_where_they_should(tokenizer: Any) -> None:
    rows = read(SOURCE).rows
    said = {
        f: [trained(e, tokenizer) for e in made(tokenizer, target=f).examples] for f in ("letters", "cot", "cot+topic")
    }
    whole = [tokenizer.decode(e.ids) for e in made(tokenizer, target="letters").examples]
    for i, row in enumerate(rows):
        steps = row["comment"].split("\n")[2:-1]
        assert said["letters"][i] == f"Answer: {';'.join(row['correct_answer'])}<|end|>"
        assert not any(step in whole[i] for step in steps)
        assert all(step in said["cot"][i] for step in steps) and "TOPIC" not in said["cot"][i]
        assert said["cot+topic"][i].startswith(f"Answer:\n{row['comment'].splitlines()[1]}\n")


def test_prompt_loss_trains_the_whole_text(tokenizer: Any) -> None:
    plain, whole = made(tokenizer), made(tokenizer, prompt_loss=True)
    for a, b in zip(plain.examples, whole.examples, strict=True):
        assert a.ids == b.ids and all(b.counts) and 0 < sum(a.counts) < len(a.counts)


def test_cutting_takes_the_solution_never_prompt_or_answer(tokenizer: Any) -> None:
    source = "sandbox:exam?task=matching&n=8"
    full = made(tokenizer, source, target="cot+topic")
    for limit in (103, 98, 93):
        short = made(tokenizer, source, target="cot+topic", max_length=limit)
        assert len(short) == 8 and max(short.lengths) <= limit
        assert short.report.truncated == sum(n > limit for n in full.lengths)
        for a, b in zip(full.examples, short.examples, strict=True):
            said, less = trained(a, tokenizer).split("\n"), trained(b, tokenizer).split("\n")
            assert less[:2] == said[:2] and less[2:] == said[len(said) - len(less) + 2 :]
            assert a.ids[: a.counts.index(True)] == b.ids[: b.counts.index(True)]
    with pytest.raises(LuthierError, match="without its solution too"):
        made(tokenizer, source, max_length=60)


def test_pictures_and_empty_solutions_are_rejected_with_a_reason(tokenizer: Any, tmp_path: Path) -> None:
    rows = read(SOURCE).rows[:4]
    rows[1] = rows[1] | {"with_photo": True}
    rows[2] = rows[2] | {"comment": ""}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    report = made(tokenizer, str(file), photos=False).report
    assert report.examples == 2
    assert "picture" in report.rejected[0].reason and "no solution" in report.rejected[1].reason
    assert made(tokenizer, str(file), target="letters").report.examples == 4


def test_the_begin_token_is_counted(tokenizer: Any) -> None:
    assert begins(tokenizer, tokenizer.chat_template) == 0  # this tokenizer adds none, and its template writes none
    once, twice, adding = (copy.deepcopy(tokenizer) for _ in range(3))
    once.chat_template = BEGUN
    for example in made(once).examples:
        assert example.ids.count(once.bos_token_id) == 1 == begins(once, BEGUN) and example.ids[0] == once.bos_token_id
    twice.chat_template = "{{ bos_token }}" + BEGUN
    with pytest.raises(LuthierError, match="is there 2 times"):
        made(twice)
    adding = shaped(adding, "encoder")
    adding.chat_template = tokenizer.chat_template
    with pytest.raises(LuthierError, match="is there 0 times, where 1"):
        made(adding)
    with pytest.raises(LuthierError, match="not first"):
        check_begin([5, once.bos_token_id], once, 1, "row")


def test_texts_are_the_same_on_two_days(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.chat_template = DATED

    def on(day: int, **options: Any) -> list[str]:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return cls(2031, 5, day)

        monkeypatch.setattr(rendering, "datetime", Clock)
        rendering._compile_jinja_template.cache_clear()
        if not options:
            return [tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)]
        prepared = made(tokenizer, **options)
        own = copy.deepcopy(tokenizer)
        own.chat_template = prepared.chat_template  # what evaluation and the saved model use
        asked = own.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
        return [asked, *(tokenizer.decode(e.ids) for e in prepared.examples)]

    assert on(1) != on(2)  # the template as it is
    first = on(1, date="26 Jul 2024")
    assert first == on(2, date="26 Jul 2024") and all("26 Jul 2024" in text for text in first)
    assert dated(BEGUN, "x") == BEGUN


def test_whole_exams_are_held_out() -> None:
    kept, held = split(read("sandbox:exam?task=mixed&n=80"), 0.3, seed=1, group="test_id")
    assert len(held) == 24 and not {r["test_id"] for r in kept.rows} & {r["test_id"] for r in held.rows}
