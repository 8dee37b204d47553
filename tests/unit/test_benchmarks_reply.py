"""The request/reply half of the benchmarks: what it reads, and how it arrives at its figures."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import orjson
import pytest

from benchmarks.measure import Measurement
from benchmarks.reply import CASES, overload
from benchmarks.reply.callers import best
from benchmarks.reply.contenders import number_exchanges, wine_exchanges
from benchmarks.reply.exchanges import Exchange, same_numbers, wines
from benchmarks.reply.footprint import slope_per_minute
from benchmarks.reply.http_load import WrongAnswer, closed_loop, open_loop
from benchmarks.reply.http_responses import BadResponse, Response, ResponseParser
from benchmarks.reply.millisecond_plugin import Plugin
from benchmarks.reply.overload import goodput, recovery

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nabc"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 4\r\n\r\nbusy"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


# ---- responses


@pytest.mark.parametrize("size", range(1, len(OK) + 1))
def test_a_response_may_come_in_pieces_of_any_size(size: int) -> None:
    parser = ResponseParser()
    stream = OK + BUSY
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    found = [response for piece in pieces for response in parser.feed(piece)]
    assert found == [Response(200, b"abc"), Response(503, b"busy")]


def test_a_response_is_given_with_its_last_byte_and_not_before() -> None:
    parser = ResponseParser()
    assert parser.feed(OK[:-1]) == []
    assert parser.feed(OK[-1:]) == [Response(200, b"abc")]


def test_one_connection_gives_one_response_after_the_other() -> None:
    parser = ResponseParser()
    assert parser.feed(OK) == [Response(200, b"abc")]
    assert parser.feed(EMPTY + BUSY) == [Response(200, b""), Response(503, b"busy")]
    assert parser.feed(OK) == [Response(200, b"abc")]


def test_a_body_that_looks_like_a_head_is_a_body() -> None:
    body = b"x\r\n\r\nHTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert ResponseParser().feed(head + body) == [Response(200, body)]


@pytest.mark.parametrize(
    "stream",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Content-Length: 3\r\n\r\nabc",
        b"SSH-2.0-OpenSSH\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
def test_what_cannot_be_told_from_the_next_response_is_an_error(stream: bytes) -> None:
    with pytest.raises(BadResponse):
        ResponseParser().feed(stream)


# ---- exchanges


def test_only_the_right_value_with_status_200_is_right() -> None:
    exchange = Exchange("/", b"", "text/plain", lambda body: body == b"abc")
    assert exchange.is_right(Response(200, b"abc"))
    assert not exchange.is_right(Response(200, b"abd"))
    # Remembered as right, with another status it is not.
    assert not exchange.is_right(Response(503, b"abc"))


def test_a_request_is_http_with_its_length() -> None:
    head, _, body = Exchange("/p", b"12345", "text/plain", lambda _: True).request.partition(
        b"\r\n\r\n"
    )
    assert body == b"12345"
    assert head.startswith(b"POST /p HTTP/1.1\r\n")
    assert b"\r\nContent-Length: 5" in head


def test_wines_differ_and_have_the_same_payload_for_every_contender() -> None:
    product = wine_exchanges("/api/predict")
    mlflow = wine_exchanges("/invocations", wrap="dataframe_split")
    bodies = [exchange.request.partition(b"\r\n\r\n")[2] for exchange in product]
    assert len(set(bodies)) == len(bodies)
    wrapped = [
        orjson.loads(exchange.request.partition(b"\r\n\r\n")[2])["dataframe_split"]
        for exchange in mlflow
    ]
    assert wrapped == [orjson.loads(body) for body in bodies]


def test_qualities_are_right_in_each_contender_s_form_and_no_others_are() -> None:
    _, qualities = wines(1)[0]
    product = wine_exchanges("/api/predict")[0]
    mlflow = wine_exchanges("/invocations", wrap="dataframe_split")[0]
    column = [[quality] for quality in qualities]
    assert product.is_right(Response(200, orjson.dumps(qualities)))
    assert mlflow.is_right(Response(200, orjson.dumps({"predictions": {"variable": column}})))
    other = [quality + 0.01 for quality in qualities]
    assert not product.is_right(Response(200, orjson.dumps(other)))
    assert not product.is_right(Response(200, orjson.dumps(qualities[:2])))
    assert not product.is_right(Response(200, b"<html>"))


@pytest.mark.parametrize("given", [[1.0], [1.0, 2.1], [1.0, "2"], [1.0, None], {"a": 1}, None])
def test_other_numbers_are_not_the_same(given: object) -> None:
    assert same_numbers([1.0, 2.000001], [1.0, 2.0])
    assert not same_numbers(given, [1.0, 2.0])


def test_the_model_that_takes_a_millisecond_answers_what_is_expected_of_it() -> None:
    plugin = Plugin()
    for exchange in number_exchanges("/")[:3]:
        instance = plugin.decode(exchange.request.partition(b"\r\n\r\n")[2], "text/plain")
        body, _ = plugin.encode(plugin.predict(None, [instance])[0], None)
        assert exchange.is_right(Response(200, body))


# ---- load, on a server in the same loop

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[int]:
    """The port at which it serves; all of its connections have ended when the block has."""
    tasks: set[asyncio.Task[None]] = set()

    async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(tracked, "127.0.0.1", 0)
    async with server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            await asyncio.gather(*tasks)


def answering(*responses: bytes, delay: float = 0.0) -> Serve:
    """A server that gives these responses in turn, over all its connections."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                response = responses[count % len(responses)]
                count += 1
                await asyncio.sleep(delay)
                if not response:
                    break
                writer.write(response)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass

    return serve


ABC = Exchange("/", b"", "text/plain", lambda body: body == b"abc")


async def test_callers_count_what_came_while_it_counts() -> None:
    async with serving(answering(OK)) as port:
        async with closed_loop(port, [ABC], 4) as load:
            await asyncio.sleep(0.05)
            assert load.latencies_ms == []
            load.counting = True
            while len(load.latencies_ms) < 8:
                await asyncio.sleep(0.001)
        assert len(load.latencies_ms) >= 8
        assert all(latency > 0 for latency in load.latencies_ms)


@pytest.mark.parametrize("response", [OK.replace(b"abc", b"abd"), BUSY, b""])
async def test_a_wrong_answer_and_no_answer_end_the_measurement(response: bytes) -> None:
    async with serving(answering(OK, OK, response)) as port:
        with pytest.raises(WrongAnswer):
            async with closed_loop(port, [ABC], 2) as load:
                load.counting = True
                await asyncio.sleep(0.1)


async def test_an_open_loop_tells_answers_in_time_from_others() -> None:
    async with serving(answering(OK, BUSY, b"")) as port:
        outcomes = await open_loop(port, [ABC], rate=300, seconds=0.1, deadline=10)
    assert len(outcomes.good) == 10
    assert outcomes.refused == {503: 10, 0: 10}
    assert (outcomes.late, outcomes.unanswered) == (0, 0)


async def test_an_open_loop_sends_though_nothing_is_answered_and_knows_what_is_late() -> None:
    async with serving(answering(OK, delay=0.2)) as port:
        outcomes = await open_loop(port, [ABC], rate=200, seconds=0.1, deadline=0.01)
    # On a busy machine some are not sent for want of a connection.
    assert outcomes.late + outcomes.unsent == 20
    assert outcomes.late > 0
    assert outcomes.good == []


async def test_an_open_loop_gives_up_what_it_has_no_connection_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.reply.http_load._MOST_CONNECTIONS", 2)
    async with serving(answering(OK, delay=0.3)) as port:
        outcomes = await open_loop(port, [ABC], rate=100, seconds=0.1, deadline=0.1)
    assert outcomes.late == 2
    assert outcomes.unsent == 8


async def test_an_open_loop_finds_a_wrong_value() -> None:
    async with serving(answering(OK, OK.replace(b"abc", b"abd"))) as port:
        with pytest.raises(WrongAnswer):
            await open_loop(port, [ABC], rate=100, seconds=0.05, deadline=1)


# ---- figures


def measured(variant: str, number: int, answers: int, seconds: float) -> Measurement:
    return Measurement(overload.NAME, "product", variant, number, answers, seconds, 0, 0, 0, {})


def test_goodput_is_a_part_of_the_capacity_of_the_same_round() -> None:
    assert goodput(
        [
            measured(overload.CAPACITY, 0, 1000, 1.0),
            measured(overload.LIGHT, 0, 800, 4.0),
            measured(overload.TWICE, 0, 9500, 10.0),
            measured(overload.CAPACITY, 1, 1000, 2.0),
            measured(overload.TWICE, 1, 2500, 10.0),
        ]
    ) == {0: pytest.approx(0.95), 1: pytest.approx(0.5)}


def test_the_floor_is_its_best_setting_for_each_number_of_callers() -> None:
    settings = [
        replace(measured("1 caller", 0, 700, 1.0), contender="floor, linger 0"),
        replace(measured("64 callers", 0, 2500, 1.0), contender="floor, linger 0"),
        replace(measured("1 caller", 0, 200, 1.0), contender="floor, linger 1"),
        replace(measured("64 callers", 0, 6000, 1.0), contender="floor, linger 1"),
    ]
    assert [(each.contender, each.variant, each.rate) for each in best(settings)] == [
        ("floor", "1 caller", 700),
        ("floor", "64 callers", 6000),
    ]


def probes(seconds: float, slow_until: float, rate: int = 200) -> list[tuple[float, float]]:
    dues = [number / rate for number in range(int(seconds * rate))]
    return [(due, 500.0 if due < slow_until else 2.0) for due in dues]


def test_recovery_is_the_end_of_the_first_normal_stretch() -> None:
    assert recovery(probes(4, 0.0), normal_ms=5.0) == pytest.approx(0.5)
    assert recovery(probes(4, 1.2), normal_ms=5.0) == pytest.approx(1.7)
    assert recovery(probes(4, 3.8), normal_ms=5.0) is None
    assert recovery([], normal_ms=5.0) is None


def test_one_slow_probe_does_not_delay_recovery_and_two_do() -> None:
    made = probes(2, 0.0)
    made[10] = (made[10][0], 500.0)
    assert recovery(made, normal_ms=5.0) == pytest.approx(0.5)
    made[11] = (made[11][0], 500.0)
    delayed = recovery(made, normal_ms=5.0)
    assert delayed is not None
    assert delayed > 0.5


def test_probes_without_an_answer_in_time_are_slow_ones() -> None:
    answered = [probe for probe in probes(4, 0.0) if not 0.2 <= probe[0] < 1.0]
    found = recovery(answered, normal_ms=5.0)
    assert found is not None
    assert found >= 1.4


def test_a_slope_is_that_of_the_line_through_the_points() -> None:
    line = [(float(at), 100 + 0.5 * at) for at in range(20)]
    assert slope_per_minute(line) == pytest.approx(30)
    assert slope_per_minute([(at, 70.0) for at, _ in line]) == 0
    noisy = [(at, value + (1 if number % 2 else -1)) for number, (at, value) in enumerate(line)]
    assert slope_per_minute(noisy) == pytest.approx(30, rel=0.1)
    assert math.isclose(slope_per_minute([(at, -value) for at, value in line]), -30)


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, 2.0), (1.0, 3.0)]])
def test_a_slope_takes_two_points_in_time(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="two points"):
        slope_per_minute(points)


def test_every_case_is_known_by_its_own_name() -> None:
    assert {name: case.name for name, case in CASES.items()} == {
        "reply": "reply",
        "overload": "overload",
    }
