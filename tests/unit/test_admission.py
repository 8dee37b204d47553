from __future__ import annotations

import pytest

from stream_scorer.admission import Admission


def after(*turns: tuple[float, int]) -> Admission:
    """One that was told of these turns: how long they took, and of how many requests."""
    admission = Admission()
    for milliseconds, requests in turns:
        admission.took(milliseconds, requests)
    return admission


def taken(admission: Admission, *left: float, others: int = 0) -> list[float]:
    """The times left of those that are scored."""
    by_number = dict(enumerate(left))
    refused = admission.refused(by_number, others)
    return [time for number, time in by_number.items() if number not in refused]


def test_before_the_first_turn_only_what_is_late_is_left_out() -> None:
    assert taken(Admission(), 500, -3, 0, 0.5, others=1000) == [500, 0, 0.5]


def test_what_is_done_in_time_is_all_taken() -> None:
    assert taken(after((10, 10)), 4, 5, 6) == [4, 5, 6]


@pytest.mark.parametrize(
    ("left", "others", "scored"),
    [
        ([100, 200, 300, 400], 0, [300, 400]),  # two take 220 ms; a third would not be in time
        ([100, 200, 350, 400], 1, [350, 400]),  # with the other one three, in 330 ms
        ([100, 200, 300, 400], 3, [400]),  # none in time: the nearest is tried
        ([250] * 10, 0, [250] * 2),
        ([50, 60], 0, [60]),
        ([50, 60], 9, [60]),
        ([-1, -2], 0, []),
    ],
)
def test_of_a_backlog_those_with_the_most_time_are_taken(
    left: list[float], others: int, scored: list[float]
) -> None:
    assert taken(after((100, 1)), *left, others=others) == scored


def test_a_request_that_came_alone_does_not_make_the_model_slow() -> None:
    """One that takes 100 ms for any number of requests."""
    admission = after((100, 100), (100, 1))
    assert len(taken(admission, *[200] * 100)) == 100
    assert len(taken(admission, *[50] * 100)) == 37


def test_a_model_that_became_slow_is_found_out() -> None:
    admission = after((1, 1), *[(100, 1)] * 30)
    assert taken(admission, 50, 150, 250) == [150 + 100]


def test_a_turn_of_which_nothing_was_scored_says_nothing() -> None:
    assert taken(after((100, 1), (0.1, 0)), 50, 150) == [150]
