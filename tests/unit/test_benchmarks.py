from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from benchmarks import plots, report
from benchmarks.__main__ import ALL, DAILY, main
from benchmarks.answers import Answer, WrongAnswers, verify
from benchmarks.cases import CASES
from benchmarks.clients import CONSUMER, PRODUCER
from benchmarks.contender import floor, product, without_plugin
from benchmarks.environments import environment_folder
from benchmarks.job import Job
from benchmarks.measure import Measurement, percentiles
from benchmarks.models import MODELS, WINE_COLUMNS
from benchmarks.topics import WARM_UP
from benchmarks.workload import Headers, Workload, blobs, numbers, poisoned, tensors, wine
from stream_scorer.config import Settings, load_settings
from stream_scorer.kafka.clients import consumer_properties, producer_properties

JOB = Job("localhost:9", "requests", "results", "group", "wine-onnx")


def measured(
    contender: str, number: int, rate: float, *, case: str = "wine", variant: str = ""
) -> Measurement:
    """A run of 1,000 requests at this rate."""
    return Measurement(case, contender, variant, number, 1000, 1000 / rate, 2.0, 3.0, 100.0, {})


def answer(number: int | bytes, body: bytes = b"right", appended: int = 0) -> Answer:
    return Answer(number if isinstance(number, bytes) else b"%d" % number, body, {}, appended)


def is_right(number: int, body: bytes, headers: Headers) -> bool:
    return body == b"right"


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentiles([float(n) for n in range(100, 0, -1)]) == {50: 50.0, 95: 95.0, 99: 99.0}
    assert percentiles([7.0]) == {50: 7.0, 95: 7.0, 99: 7.0}
    assert percentiles([]) == {}


def test_every_answer_there_and_right_is_timed_from_the_first_to_the_last() -> None:
    answers = [answer(0, appended=2000), answer(2, appended=1500), answer(1, appended=4000)]
    verdict = verify(answers, 3, is_right)
    assert (verdict.answers, verdict.seconds) == (3, 2.5)


def test_an_answer_to_a_warm_up_is_no_part_of_the_run() -> None:
    answers = [answer(WARM_UP, b"?", 1), answer(0, appended=5000), answer(1, appended=6000)]
    assert verify(answers, 2, is_right).seconds == 1.0


def test_a_run_that_was_asked_while_it_ran_is_timed_from_its_first_request() -> None:
    answers = [answer(WARM_UP, b"?", 1), answer(0, appended=5000), answer(1, appended=6000)]
    assert verify(answers, 2, is_right, began=2000).seconds == 4.0


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([answer(0), answer(1, b"other"), answer(2)], r"1 wrong, such as 1 \(b'other'\)"),
        ([answer(0), answer(2)], "1 missing, such as 1"),
        ([answer(0), answer(1), answer(1), answer(2)], "1 doubled, such as 1"),
        ([answer(0), answer(1), answer(2), answer(3)], "1 to no request, such as 3"),
        ([answer(0), answer(1), answer(2), answer(b"-1")], "1 to no request, such as -1"),
        ([], "3 missing, such as 0, 1, 2"),
    ],
    ids=["wrong", "missing", "doubled", "unknown", "no-number", "none"],
)
def test_a_fault_is_found(answers: list[Answer], said: str) -> None:
    with pytest.raises(WrongAnswers, match=said):
        verify(answers, 3, is_right)


def test_all_faults_are_counted_and_few_are_shown() -> None:
    with pytest.raises(WrongAnswers, match=r"of 9 answers 9 missing, such as 0, 1, 2$"):
        verify([], 9, is_right)


@pytest.fixture(scope="module")
def wines() -> Workload:
    return wine("wine-onnx")


@pytest.mark.parametrize("number", [0, 1, 9_999, 10_001])
def test_what_the_model_answers_is_right_and_nothing_else(wines: Workload, number: int) -> None:
    (body,) = MODELS["wine-onnx"]()([wines.payload(number)])
    assert wines.right(number, body, {})
    first, *rest = numbers(body)
    assert not wines.right(number, orjson.dumps([first + 0.001, *rest]), {})
    assert not wines.right(number, orjson.dumps(rest), {})
    assert not wines.right(number, b'{"title": "model-error"}', {})
    assert not wines.right(number, b"", {})


def test_an_answer_to_another_request_is_wrong(wines: Workload) -> None:
    bodies = MODELS["wine-onnx"]()([wines.payload(number) for number in range(100)])
    # Not each: a tree has few leaves, and two tables may lead to the same three.
    exchanged = sum(wines.right(number, body, {}) for number, body in enumerate(bodies[1:]))
    assert exchanged < 10


def test_the_straight_model_answers_a_batch_as_it_answers_one_by_one(wines: Workload) -> None:
    predict = MODELS["wine-onnx"]()
    payloads = [wines.payload(number) for number in range(20)]
    assert predict(payloads) == [predict([payload])[0] for payload in payloads]


def test_tensors_are_answered_as_the_tables_are(wines: Workload) -> None:
    (body,) = MODELS["wine-onnx"]()([wines.payload(5)])
    answered = orjson.dumps({"outputs": [{"data": numbers(body)}]})
    asked = tensors("wine")
    assert asked.right(5, answered, {})
    assert not asked.right(6, answered, {})
    assert not asked.right(5, b'{"outputs": []}', {})


def test_blobs_have_to_come_back_as_they_are() -> None:
    asked = blobs(1000)
    assert len(asked.payload(3)) == 1000
    assert asked.right(3, asked.payload(3), {})
    assert not asked.right(3, asked.payload(4), {})


def test_poison_has_to_be_refused_and_nothing_else(wines: Workload) -> None:
    asked = poisoned(wines)
    (body,) = MODELS["wine-onnx"]()([asked.payload(1)])
    poison = [number for number in range(1000) if asked.payload(number) != wines.payload(number)]
    assert poison == list(range(0, 1000, 100))
    assert asked.right(100, b"{}", {"status": b"invalid-payload"})
    assert not asked.right(100, b"{}", {"status": b"model-error"})
    assert asked.right(1, body, {"status": b"ok"})
    assert not asked.right(1, b"{}", {"status": b"invalid-payload"})


def test_a_ratio_is_the_median_of_what_each_round_says() -> None:
    # The machine was slow in the second round, for both.
    ours = [measured("product", 0, 90), measured("product", 1, 8), measured("product", 2, 70)]
    theirs = [measured("floor", 0, 100), measured("floor", 1, 10), measured("floor", 2, 100)]
    assert report.ratio(ours, theirs) == pytest.approx(0.8)
    assert report.ratio(ours[:1], theirs[1:]) is None


def test_rows_hold_medians_and_compare_with_the_floor_of_their_variant() -> None:
    rows = report.summarize(
        [
            measured("floor", 0, 100, variant="1"),
            measured("product", 0, 50, variant="1"),
            measured("floor", 0, 200, variant="4"),
            measured("product", 0, 150, variant="4"),
            measured("floor", 1, 100, variant="1"),
            measured("product", 1, 70, variant="1"),
        ]
    )
    assert [(row.variant, row.contender) for row in rows] == [
        ("1", "floor"),
        ("1", "product"),
        ("4", "floor"),
        ("4", "product"),
    ]
    assert [row.rate for row in rows] == pytest.approx([100, 60, 200, 150])
    assert [row.ratio for row in rows] == pytest.approx([1, 0.6, 1, 0.75])
    assert (rows[0].cpu, rows[0].broker_cpu, rows[0].peak_mb) == (2.0, 3.0, 100.0)


def test_variants_keep_the_order_of_their_own_case() -> None:
    names = [("partitions", "1"), ("partitions", "64"), ("batch", "8"), ("batch", "64")]
    rows = report.summarize(
        [
            measured("floor", number, 100, case=case, variant=variant)
            for number in range(2)
            for case, variant in names
        ]
    )
    assert [(row.case, row.variant) for row in rows] == names


def test_without_a_floor_the_first_of_the_case_is_the_base() -> None:
    rows = report.summarize(
        [
            measured("product", 0, 100, case="poison", variant="none"),
            measured("product", 0, 80, case="poison", variant="1 %"),
        ]
    )
    assert [row.ratio for row in rows] == pytest.approx([1, 0.8])


def test_the_table_is_markdown_with_a_cell_for_everything() -> None:
    latency = Measurement("reply", "floor", "64 callers", 0, 100, 2.0, 1, 1, 9, {50: 1.25, 99: 3.0})
    text = report.table(report.summarize([measured("floor", 0, 81_234), latency]))
    head, rule, first, second = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
    )
    assert len(head) == len(rule) == len(first) == len(second)
    assert first[:5] == ["wine", "", "floor", "81,234", "1"]
    shown = dict(zip(head, second, strict=True))
    assert [shown[name] for name in ("p50 ms", "p95 ms", "p99 ms")] == ["1.25", "", "3"]
    assert {len(line) for line in text.splitlines()} == {len(text.splitlines()[0])}


def test_the_product_is_compared_with_everybody_of_its_variant() -> None:
    text = report.comparisons(
        [
            measured("floor", 0, 100),
            measured("product", 0, 80),
            measured("product exactly-once", 0, 60),
            measured("Quix", 0, 10),
            measured("Quix", 0, 1, variant="other"),
        ]
    )
    lines = [[cell.strip() for cell in line.split("|")[3:6]] for line in text.splitlines()[2:]]
    assert lines == [
        ["product", "floor", "0.8"],
        ["product", "product exactly-once", "1.33"],
        ["product", "Quix", "8"],
        ["product exactly-once", "floor", "0.6"],
        ["product exactly-once", "product", "0.75"],
        ["product exactly-once", "Quix", "6"],
    ]


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    latency = Measurement("reply", "floor", "64 callers", 0, 100, 2.0, 1, 1, 9, {50: 1.25})
    measurements = [measured("floor", 0, 100), latency]
    report.write(tmp_path / "out", measurements)
    assert report.read(tmp_path / "out" / "results.json") == measurements
    assert report.table(report.summarize(measurements)) in (tmp_path / "out/results.md").read_text()


def test_pictures_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    sizes = [measured("floor", 0, 10 * n, case="batch-size", variant=f"{n}") for n in (1, 8)]
    plots.plot(tmp_path, sizes)
    assert [path.name for path in tmp_path.iterdir()] == ["throughput-by-batch-size.png"]
    latencies = [
        Measurement("reply", "floor", variant, 0, 100, 2.0, 1, 1, 9, {50: 1.0, 95: 2.0, 99: 3.0})
        for variant in ("1 caller", "64 callers")
    ]
    plots.plot(tmp_path, latencies)
    assert (tmp_path / "latency-by-callers.png").read_bytes().startswith(b"\x89PNG")


def test_an_environment_is_elsewhere_for_other_requirements() -> None:
    here = environment_folder("quix", b"quixstreams==3\n")
    assert here == environment_folder("quix", b"quixstreams==3\n")
    assert here != environment_folder("quix", b"quixstreams==4\n")
    assert here != environment_folder("faststream", b"quixstreams==3\n")
    assert here.name.startswith("bench-quix-")


def test_requirements_of_contenders_are_pinned_and_name_no_address() -> None:
    for path in Path("benchmarks/contenders").glob("*.txt"):
        lines = path.read_text().splitlines()
        assert lines
        assert all(line.count("==") == 1 and "://" not in line for line in lines), path


def test_a_job_survives_the_command_line() -> None:
    assert Job.of(JOB.text()) == JOB


def test_the_product_is_told_its_job_in_settings_that_it_knows(tmp_path: Path) -> None:
    conf = "samples/sklearn_wine/onnx/conf.yaml"
    contender = product(conf, exactly_once=True, batch=64)
    command = contender.command(JOB, tmp_path)
    settings = load_settings(Path(conf), command.environment)
    assert (settings.topics.requests, settings.topics.results) == ("requests", "results")
    assert (settings.worker.group, settings.worker.delivery) == ("group", "exactly_once")
    assert settings.worker.max_batch_size == 64
    assert settings.kafka.bootstrap == "localhost:9"
    assert not contender.live


@pytest.mark.parametrize("model", ["wine-onnx", "wine-sklearn"])
def test_without_a_plugin_mlflow_s_payloads_are_asked_for_the_same_numbers(
    model: str, wines: Workload, tmp_path: Path
) -> None:
    conf = "samples/sklearn_wine/conf.yaml"
    contender = without_plugin(conf, model)
    settings = load_settings(Path(conf), contender.command(JOB, tmp_path).environment)
    assert settings.plugin is None
    assert settings.model_uri == "file:samples/sklearn_wine/model"
    assert settings.topics.requests == "requests"
    assert contender.workload is not None
    asked = contender.workload()
    assert len(orjson.loads(asked.payload(5))["columns"]) == WINE_COLUMNS
    (body,) = MODELS[model]()([wines.payload(5)])
    (answered, other) = (numbers(body), numbers(MODELS[model]()([wines.payload(6)])[0]))
    assert asked.right(5, orjson.dumps({"predictions": answered}), {})
    named = {"predictions": {"variable": [[number] for number in answered]}}
    assert asked.right(5, orjson.dumps(named), {})
    wrongs: list[object] = [{"predictions": other}, answered, {}, {"predictions": {}}]
    for wrong in wrongs:
        assert not asked.right(5, orjson.dumps(wrong), {})


def test_several_processes_are_asked_once_all_are_ready(tmp_path: Path) -> None:
    contender = product("samples/keras_mnist/conf.yaml", processes=2)
    command = contender.command(JOB, tmp_path)
    settings = load_settings(None, command.environment)
    assert settings.worker.processes == 2
    assert command.ready_url == f"http://localhost:{settings.worker.metrics_port}/readyz"
    assert contender.live


def test_the_floor_has_the_client_settings_of_the_product() -> None:
    assert PRODUCER.items() <= producer_properties(Settings()).items()
    ours = consumer_properties(Settings()) | {"auto.offset.reset": "earliest"}
    assert CONSUMER.items() <= ours.items()


def test_the_floor_holds_nothing_of_the_product(tmp_path: Path) -> None:
    assert floor("wine-onnx").command(JOB, tmp_path).arguments[1:3] == ["-m", "benchmarks.floor"]
    code = (
        "import benchmarks.floor, benchmarks.models, sys; benchmarks.models.wine_onnx(); "
        "sys.exit(', '.join(m for m in sys.modules if m.split('.')[0] in "
        "{'stream_scorer', 'http_facade', 'mlflow'}) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_cases_have_one_name_each_and_the_daily_ones_are_there() -> None:
    assert all(name == case.name for name, case in ALL.items())
    assert set(DAILY) <= ALL.keys()
    assert set(CASES) < set(ALL)


def test_contenders_can_be_left_out() -> None:
    case = CASES["wine-sklearn"].only(["product, no plugin", "floor"])
    (variant,) = case.variants
    assert [each.name for each in variant.contenders] == ["floor", "product, no plugin"]
    assert CASES["wine-sklearn"].only(["nobody"]).variants == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["wine-sklearn", "--only", "Quix"], "no contender Quix in wine-sklearn; there are: floor"),
        (["reply", "--only", "floor"], "--only is for cases from topic to topic: wine-onnx"),
    ],
)
def test_contenders_that_are_not_there_are_wrong_usage(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert said in done.output


def test_a_case_that_is_not_there_is_wrong_usage() -> None:
    done = CliRunner().invoke(main, ["no-such-case"])
    assert done.exit_code == 2
    assert "no case no-such-case; there are: wine-onnx, " in done.output
