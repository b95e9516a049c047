"""Format lock: labels in place of answers count; right answers and other words do not."""

import pytest

from luthier.core.method import LuthierError
from luthier.evaluation._family import Item
from luthier.evaluation.format_lock import FormatLock


@pytest.mark.parametrize(
    ("said", "reference", "locked"),
    [("T", "b", 1), ("f.", "b", 1), ("T because of this", "b", 1), ("The answer is T", "b", 1), ("b", "b", 0), ("Tea", "b", 0),
     ("", "b", 0), ("T", "T", 0), ("T", None, 1)],
)  # fmt: skip
def test_judged(said: str, reference: str | None, locked: float) -> None:
    accepted = () if reference is None else (reference,)
    item = Item("0", "p", reference, accepted)
    assert FormatLock(labels=("T", "F")).judge(said, item) == {"format_lock": locked}


def test_labels_are_asked_for() -> None:
    with pytest.raises(LuthierError, match="labels is empty"):
        FormatLock().check([])
