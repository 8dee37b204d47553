"""What is read out of a Prefer header, and what of it is said to be applied."""

from __future__ import annotations

import pytest

from http_facade.prefer import NONE, Preferences, applied, preferences


@pytest.mark.parametrize(
    ("header", "understood"),
    [
        (None, NONE),
        ("", NONE),
        ("respond-async", Preferences(respond_async=True)),
        ("Respond-Async", Preferences(respond_async=True)),
        ("respond-async; foo=bar, wait=5", Preferences(5, True)),
        ("wait=5", Preferences(5)),
        ('wait = "5"', Preferences(5)),
        ("wait=05;x", Preferences(5)),
        ("wait=5, wait=9", Preferences(5)),
        ('x="a, wait=3", wait=5', Preferences(5)),
        ("return=minimal, handling=lenient", NONE),
        ("respond-asynchronously", NONE),
        ("wait, wait=5", NONE),
    ],
)
def test_preferences_are_read_as_the_rfc_has_them(
    header: str | None, understood: Preferences
) -> None:
    assert preferences(header) == understood


@pytest.mark.parametrize(
    "seconds", ["0", "-1", "+1", "1.5", "1e3", "", "x", "\u0663", "9" * 10, "9" * 5000]
)
def test_a_wait_that_is_not_a_number_of_seconds_is_left_out(seconds: str) -> None:
    assert preferences(f"wait={seconds}") == NONE


def test_only_what_holds_is_said_to_be_applied() -> None:
    assert applied(Preferences(5), 5.0) == "wait=5"
    assert applied(Preferences(50), 10.0) == ""
    assert applied(Preferences(5, True), 5.0) == "respond-async, wait=5"
    assert applied(Preferences(50, True), 10.0) == "respond-async"
    assert applied(Preferences(0, True), 0.0) == "respond-async"
