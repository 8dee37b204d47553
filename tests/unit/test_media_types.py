from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_scorer.media_types import accepts, preferred

OFFERED = ("application/json", "text/csv", "application/x-npy")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        *((None, 0), ("", 0), ("*/*", 0), ("application/*", 0), ("image/png", 0), (";;,q=x", 0)),
        *(("text/csv", 1), ("TEXT/CSV", 1), ("text/*", 1), ("text/csv; header=present", 1)),
        *(("application/x-npy", 2), ("image/png, text/csv", 1), ("*/*;q=0.1, text/csv", 1)),
        *(("text/csv;q=0.5, application/json", 0), ("application/json;q=0, text/csv", 1)),
        *(("application/json;q=0", 0), ("text/csv," * 1000, 0)),
    ],
)
def test_the_type_that_is_liked_best_else_the_first(accept: str | None, chosen: int) -> None:
    assert preferred(OFFERED, accept) == OFFERED[chosen]


@given(accept=st.text())
def test_any_accept_is_answered(accept: str) -> None:
    assert preferred(OFFERED, accept) in OFFERED


@pytest.mark.parametrize(
    ("content_type", "taken"),
    [
        *(("text/csv", True), ("Text/CSV; charset=utf-8", True), ("image/gif", True)),
        *(("text/plain", False), ("text/*", False), ("*/*", False), ("csv", False), ("", False)),
        ("text/csv; a=" + "x" * 300, False),
    ],
)
def test_which_types_are_taken(content_type: str, taken: bool) -> None:
    assert accepts(("text/csv", "image/*"), content_type) is taken
