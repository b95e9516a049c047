"""What a chat template may get wrong without anyone noticing: a begin token twice or never, and today's date."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from luthier.core.method import LuthierError


def begins(tokenizer: Any, template: str | None) -> int:
    """How many begin tokens a text has to have: one where tokenizer or template write any, else none."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return 0
    written = bool(template) and ("bos_token" in template or tokenizer.bos_token in template)  # type: ignore[operator]
    return int(written or bos in tokenizer("a")["input_ids"])


def check_begin(ids: Sequence[int], tokenizer: Any, wanted: int, where: str) -> None:
    """Raises LuthierError unless the begin token is there as often as it has to be, and first."""
    bos = tokenizer.bos_token_id
    found = 0 if bos is None else list(ids).count(bos)
    if found != wanted or (wanted and ids[0] != bos):
        raise LuthierError(
            f"{where}: the begin token '{tokenizer.bos_token}' is there {found} times{', not first' * (found == wanted)}, where "
            f"{wanted or 'none'} has to be: mend the chat template (chat_template_path)"
        )


def dated(template: str | None, date: str) -> str | None:
    """A template that writes `date` where it would write today's: the same text on every day."""
    if template is None or not re.search(r"\b(date_string|strftime_now)\b", template):
        return template
    return f"{{%- set date_string = {date!r} %}}{{%- macro strftime_now(format) %}}{date}{{%- endmacro %}}{template}"
