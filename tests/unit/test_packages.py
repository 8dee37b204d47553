from __future__ import annotations

import json
from importlib import metadata
from importlib.metadata import version
from pathlib import Path

import pytest

from stream_scorer.errors import SetupError
from stream_scorer.masking import mask_credentials
from stream_scorer.plugins.packages import needed_by, read_packages, unmet

NUMPY = version("numpy")
HASH = "--hash=sha256:" + 64 * "a"
OTHER = "--hash=sha512:" + 128 * "b"


def missing(*entries: str) -> list[str]:
    return [package.shown for package in unmet(read_packages(entries))]


def refusal(*entries: str) -> str:
    with pytest.raises(SetupError) as caught:
        read_packages(entries)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file_of(folder: Path, text: str) -> str:
    path = folder / "requirements.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


def installed(site: Path, name: str, **files: str) -> None:
    """A distribution of version 1.0, as far as its metadata go."""
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{files.pop('needs', '')}"
    )
    for file, text in files.items():
        (folder / f"{file}.json").write_text(text)


# What is installed.


@pytest.mark.parametrize(
    "entry",
    [
        *("numpy", "NumPy", "numpy>=1", f"numpy=={NUMPY}", "numpy>=1,<9999", "numpy ~= 2.0"),
        *("scikit_learn", "no-such-package; python_version < '3'"),
    ],
)
def test_what_is_installed_is_met(entry: str) -> None:
    assert missing(entry) == []


def test_nothing_asked_is_nothing_missing() -> None:
    assert missing() == []


def test_a_release_candidate_is_a_version_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "early-3.0rc1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: early\nVersion: 3.0rc1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert missing("early>=2", "early>=3") == ["early>=3"]


def test_what_is_missing_or_differs_is_unmet() -> None:
    entries = ("numpy", "no-such-package>=1,<2", "no-such-other", "numpy<1")
    assert missing(*entries) == ["no-such-package<2,>=1", "no-such-other", "numpy<1"]


def test_extras_must_be_met_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = (
        "Requires-Dist: no-such-package; extra == 'broken'\n"
        "Requires-Dist: numpy; extra == 'working'\n"
        "Requires-Dist: sample[circle,broken]; extra == 'outer'\n"
        "Requires-Dist: sample[circle]; extra == 'circle'\n"
    )
    installed(tmp_path, "sample", needs=needs)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert missing("sample", "sample[working]", "sample[circle]") == []
    assert missing("sample[broken]", "sample[working,outer]") == [
        "sample[broken]",
        "sample[outer,working]",
    ]


def test_an_address_is_met_by_what_came_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = "https://example.org/sample-1.0-py3-none-any.whl"
    installed(tmp_path, "sample", direct_url=json.dumps({"url": wheel, "archive_info": {}}))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert missing(f"sample @ {wheel}", f"sample @ {wheel}#sha256=abc", "sample>=1") == []
    other = "numpy @ https://example.org/numpy.whl"
    assert missing(other, "sample @ https://example.org/other.whl") == [
        other,
        "sample @ https://example.org/other.whl",
    ]


def test_what_a_package_needs_is_followed_to_its_end() -> None:
    needed = {requirement.name: str(requirement.specifier) for requirement in needed_by("pandas")}
    assert {"numpy", "python-dateutil"} <= needed.keys()
    assert all("extra" not in str(requirement) for requirement in needed_by("pandas"))
    assert list(needed_by("no-such-package")) == []


def test_the_project_s_own_needs_are_known() -> None:
    names = {requirement.name.lower() for requirement in needed_by("stream-scorer")}
    assert {"numpy", "confluent-kafka", "mlflow-skinny", "protobuf"} <= names
    assert "tensorflow" not in names
    assert metadata.requires("stream-scorer")


# What can be asked.


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-r requirements.txt", "--index-url http://example.org numpy", "numpy pandas"),
        *("numpy; rm -rf", "./numpy", "numpy>=", "numpy\n--pre", "-", "--pre", "-e ."),
        "x @ https://example.org/x.whl\n--index-url=http://example.org",
        *("x @ https://example.org/x.whl\nnumpy", "numpy; python_version < '3 --pre'"),
    ],
)
def test_what_is_no_requirement_is_refused_and_never_part_of_a_command(text: str) -> None:
    assert refusal(text) == f"{text!r} is not a package requirement @ packages"


@pytest.mark.parametrize(
    "text", ["x @ https://example.org/${SECRET}/x.whl", "x==1; python_version > '${A}'"]
)
def test_a_variable_that_pip_would_fill_in_is_refused(text: str, tmp_path: Path) -> None:
    told = "not taken: pip would fill in ${…} from its environment @ "
    assert refusal(text) == f"{text!r} is {told}packages"
    name = file_of(tmp_path, text)
    assert refusal(name) == f"line 1, {text!r}, is {told}{name}"


@pytest.mark.parametrize(
    "url",
    [
        "file:///wheels/x.whl",
        "FILE:///x.whl",
        "git+file:///x",
        "\x01file:///x",
        "./x.whl",
        "/wheels/x.whl",
    ],
)
def test_an_address_on_this_machine_is_refused(url: str) -> None:
    """What lies there may change, and the environment that is kept would not."""
    text = f"x @ {url}"
    assert refusal(text) == f"{text!r} is not taken: an address of this machine @ packages"


def test_credentials_are_masked() -> None:
    entry = "x @ https://user:p@ss@example.org/x.whl?sig=secret#sha256=abc"
    (package,) = read_packages([entry])
    assert package.shown == "x @ https://********@example.org/x.whl?********#sha256=abc"
    assert package.line == entry
    told = refusal("x @ https://user:secret@example.org/x.whl --pre")
    assert "secret" not in told
    assert "https://********@example.org/x.whl --pre" in told


# Requirement files.


def test_a_requirement_file_is_read_with_its_hashes(tmp_path: Path) -> None:
    text = (
        "\ufeff# made by hand\n\n"
        f"numpy==2.0 \\\n    {HASH} \\\n    {OTHER}\n    # via pandas\n"
        f"pandas[performance] >= 2 ; python_version > '3'   # newer {HASH}\n"
        f"six==1 {OTHER}"
    )
    numpy, pandas, six = read_packages([file_of(tmp_path, text)])
    assert numpy.line == f"numpy==2.0 {HASH} {OTHER}"
    assert pandas.line == 'pandas[performance]>=2; python_version > "3"'
    assert (six.shown, six.hashes) == ("six==1", (OTHER,))


def test_a_relative_file_is_looked_for_as_the_conf_says(tmp_path: Path) -> None:
    file_of(tmp_path, "numpy")
    packages = read_packages(["pandas", "requirements.txt"], lambda path: tmp_path / path)
    assert [package.shown for package in packages] == ["pandas", "numpy"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        *((option, option) for option in ("--pre", "-r other.txt", "-c other.txt", "-e .")),
        *((line, line) for line in ("./numpy", "numpy==2 --config-settings=a=b")),
        ("--index-url https://me:secret@example.org", "--index-url https://********@example.org"),
        ("numpy==2 --hash=md5:abc", "numpy==2 --hash=md5:abc"),
        ("numpy==2 \\\n  --hash sha256:abc", "numpy==2   --hash sha256:abc"),
        ("six \\", None),
    ],
)
def test_what_else_a_file_holds_is_refused_with_its_line(
    tmp_path: Path, line: str, told: str | None
) -> None:
    name = file_of(tmp_path, f"six\n\n{line}\nsix\n")
    told = "six six" if told is None else told
    assert refusal(name) == f"line 3, {told!r}, is not a package requirement @ {name}"


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert refusal("no/such/file.txt") == "no/such/file.txt: No such file or directory"
    path = tmp_path / "utf-16.txt"
    path.write_text("numpy", encoding="utf-16")
    assert refusal(str(path)) == f"{path}: not a text file in UTF-8"


def test_what_pip_tells_of_an_address_is_masked() -> None:
    told = "Max retries exceeded with url: /x-1.tar.gz?sig=secret (Caused by a refusal)"
    assert mask_credentials(told) == (
        "Max retries exceeded with url: /x-1.tar.gz?******** (Caused by a refusal)"
    )
