from __future__ import annotations

import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.scale import plots, report
from benchmarks.scale.__main__ import main
from benchmarks.scale.crew import MODES
from benchmarks.scale.drain import WAITING, WINE, setups
from benchmarks.scale.pauses import Seen, answered_again, latencies, longest, pauses
from benchmarks.scale.records import Change, Drain, Loss, Record, append, next_round, of, read
from stream_scorer.config import load_settings

DOCUMENT = "before\n<!-- table: workers -->\nold\n<!-- end -->\nafter\n"


def drain(workers: int, number: int, rate: float, *, partitions: int = 12) -> Drain:
    return Drain(WINE, "at_least_once", workers, partitions, number, 1000, 1000 / rate, 2.0, 3.0)


def change(before: int, after: int, *longest_ms: float, doubled: int = 0) -> Change:
    latencies_ms = {50: 1.0, 95: 2.0, 99: 3.0, 100: 4.0}
    pauses_ms = list(longest_ms)
    return Change(
        *("at_least_once", "classic", 0, before, after, 1.5, pauses_ms, 7.0, latencies_ms, doubled)
    )


def loss(*, replaced: bool, seconds: float) -> Loss:
    return Loss(
        *("exactly_once", "classic", replaced, 0, 3, seconds, [9.0, 9000.0, 8000.0]),
        *(9100.0, 5000, 0, 12),
    )


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_a_pause_is_the_longest_time_between_two_answers_of_a_partition() -> None:
    seen = [Seen(0, 0, 1.0), Seen(1, 1, 1.1), Seen(2, 0, 1.5), Seen(3, 1, 4.0), Seen(4, 0, 2.0)]
    assert pauses(seen, 0.0, 9.0) == {0: 0.5, 1: pytest.approx(2.9)}


@pytest.mark.parametrize(
    ("start", "end", "pause"),
    [
        (0, 9, 3),  # within
        (3, 4, 3),  # begun before and ended after: a caller waits all along
        (2, 3, 3),
        (5, 9, 2),  # it ended with the answer at 5
        (0, 2, 1),  # the one that begins at 2 is the next change's
        (9, 10, 0),
    ],
)
def test_a_pause_counts_where_it_overlaps(start: float, end: float, pause: float) -> None:
    assert longest([1, 2, 5, 7, 8], start, end) == pause


def test_latencies_are_of_first_answers_to_what_was_sent_in_time() -> None:
    sent = [0.0, 1.0, 1.5, 2.0]
    seen = [Seen(3, 0, 2.1), Seen(1, 0, 1.25), Seen(1, 0, 1.75), Seen(0, 0, 5.0)]
    assert latencies(sent, seen, 1.0, 2.0) == [0.25, math.inf]


def test_a_partition_answers_again_with_what_was_sent_after_the_kill() -> None:
    sent = [0.0, 0.5, 1.0, 1.5, 2.0]
    # Of partition 0, two that the dead worker had in hand come late.
    seen = [Seen(0, 0, 2.5), Seen(3, 1, 1.75), Seen(1, 0, 3.0), Seen(4, 0, 4.0), Seen(4, 0, 9.0)]
    assert answered_again(sent, seen, 1.0) == {0: 3.0, 1: 0.75}
    assert answered_again(sent, seen[:3], 1.0) == {1: 0.75}


def test_records_can_be_read_again_and_rounds_go_on(tmp_path: Path) -> None:
    path = tmp_path / "scale.jsonl"
    records: list[Record] = [drain(1, 0, 100), change(1, 2, 5.0), drain(1, 1, 90)]
    records.append(loss(replaced=True, seconds=1))
    assert read(path) == []
    for record in records:
        append(path, record)
    assert read(path) == records
    assert of(Drain, records) == [records[0], records[2]]
    assert [next_round(kind, records) for kind in (Drain, Change, Loss)] == [2, 1, 1]
    assert next_round(Drain, []) == 0


def test_workers_are_compared_with_one_in_the_same_round() -> None:
    # The machine was slow in the second round.
    rates = [(1, 0, 100), (2, 0, 180), (1, 1, 10), (2, 1, 20), (1, 2, 100), (2, 2, 150)]
    head, _, one, two = cells(report.by_workers([drain(*item) for item in rates]))
    assert dict(zip(head, one, strict=True))["of one worker's"] == "1.00"
    shown = dict(zip(head, two, strict=True))
    assert shown["of one worker's"] == "1.80 (1.50 to 2.00)"
    assert shown["requests/s"] == "150 (20 to 180)"
    assert (shown["CPU ms a request"], shown["broker's CPU ms"]) == ("2.0000", "3.0000")


def test_partitions_are_compared_with_the_same_workers_on_twelve() -> None:
    drains = [drain(2, 0, 100), drain(2, 0, 50, partitions=1), drain(6, 0, 70)]
    head, _, *lines = cells(report.by_partitions(drains))
    told = [dict(zip(head, line, strict=True)) for line in lines]
    assert [(line["partitions"], line["of that with 12"]) for line in told] == [
        ("1", "0.50"),
        ("12", "1.00"),
    ]


def test_changes_are_told_by_their_kind() -> None:
    made = [
        change(1, 1, 5, 6, 7),
        change(1, 2, 10, 20, 900, doubled=1),
        change(2, 3, 10, 30, 1100, doubled=2),
        change(3, 2, 8, 8, 8),
    ]
    head, _, *lines = cells(report.changes(made))
    told = {line[2]: dict(zip(head, line, strict=True)) for line in lines}
    assert list(told) == ["none", "one more", "one less"]
    more = told["one more"]
    assert more["pause of a partition ms"] == "25 (20 to 30)"
    assert more["longest of the 12 ms"] == "1,000 (900 to 1,100)"
    assert (more["times"], more["answered twice"], more["p99 ms"]) == ("2", "3", "3")


def test_losses_are_told_by_whether_the_worker_was_replaced() -> None:
    made = [loss(replaced=False, seconds=12), loss(replaced=True, seconds=1.26)]
    head, _, *lines = cells(report.losses(made))
    told = {line[2]: dict(zip(head, line, strict=True)) for line in lines}
    assert told["yes"]["all answered again after s"] == "1.3"
    assert told["no"]["all answered again after s"] == "12.0"
    assert told["no"]["partitions paused over 1 s"] == "2"
    assert (told["no"]["lost"], told["no"]["answered twice"]) == ("0", "12")


def test_only_tables_that_were_measured_are_made_anew() -> None:
    assert report.render(DOCUMENT, [loss(replaced=True, seconds=1)]) == DOCUMENT
    records = [drain(1, 0, 100)]
    rendered = report.render(DOCUMENT, records)
    assert rendered.startswith("before\n<!-- table: workers -->\n\n| model")
    assert rendered.endswith(
        "|\n\n![Throughput by workers](throughput-by-workers.png)\n\n<!-- end -->\nafter\n"
    )
    assert "old" not in rendered
    assert report.render(rendered, records) == rendered
    with pytest.raises(report.UnknownTable, match="no table other; there are: workers, "):
        report.render(DOCUMENT.replace("workers", "other"), records)


def test_the_document_has_every_table() -> None:
    text = Path("docs/scale.md").read_text(encoding="utf-8")
    assert all(text.count(f"<!-- table: {name} -->") == 1 for name in report.TABLES)
    assert text.count("<!-- end -->") == len(report.TABLES)


def test_pictures_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots.plot(tmp_path, [drain(1, 0, 100), drain(2, 0, 150)])
    assert [path.name for path in tmp_path.iterdir()] == ["throughput-by-workers.png"]
    plots.plot(tmp_path, [change(1, 2, 10.0), change(2, 1, 20.0)])
    assert (tmp_path / "pauses-by-workers.png").read_bytes().startswith(b"\x89PNG")


def test_every_setup_has_one_name_and_what_it_is_compared_with() -> None:
    made = {setup.name: setup for setup in setups()}
    assert len(made) == len(list(setups()))
    points = {(setup.model, setup.workers, setup.partitions) for setup in made.values()}
    assert {(WINE, 1, 12), (WINE, 2, 12), (WAITING, 1, 12), (WAITING, 6, 12)} <= points
    for setup in made.values():
        variant = setup.variant()
        assert variant.partitions == setup.partitions
        assert all(each.members == setup.workers for each in variant.contenders)
        assert not any(each.live for each in variant.contenders)


def test_the_waiting_model_is_a_conf() -> None:
    settings = load_settings(Path("benchmarks/scale/waiting.yaml"), {})
    assert settings.worker.max_batch_size == 64


def test_modes_have_one_name_each() -> None:
    assert len({mode.name for mode in MODES}) == len(MODES)


@pytest.mark.parametrize(
    "arguments", [["run", "nothing"], ["run", "rebalance", "--mode", "at_most_once-classic"]]
)
def test_what_cannot_be_measured_is_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_without_records_nothing_is_rendered(tmp_path: Path) -> None:
    document = tmp_path / "scale.md"
    document.write_text(DOCUMENT)
    arguments = ["render", "--out", str(tmp_path), "--document", str(document)]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, document.read_text()) == (2, DOCUMENT)
    assert "nothing was measured yet" in done.output
    append(tmp_path / "scale.jsonl", drain(1, 0, 100))
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert "| at_least_once |" in document.read_text()
