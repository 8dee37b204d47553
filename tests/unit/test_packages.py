from __future__ import annotations

from importlib.metadata import version

import pytest

from stream_scorer.errors import SetupError
from stream_scorer.plugins.packages import PackagesMissing, check_packages

NUMPY = version("numpy")


def refusal(*packages: str) -> str:
    with pytest.raises(SetupError) as caught:
        check_packages(packages)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "package",
    [
        *("numpy", "NumPy", "numpy>=1", f"numpy=={NUMPY}", "numpy>=1,<9999", "numpy ~= 2.0"),
        *("scikit_learn", "pandas[performance]", "numpy @ https://example.org/numpy.whl"),
        "no-such-package; python_version < '3'",
    ],
)
def test_what_is_installed_is_no_trouble(package: str) -> None:
    check_packages([package])


def test_a_release_candidate_is_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "3.0rc1")
    check_packages(["numpy>=2"])
    assert "(installed: numpy 3.0rc1)" in refusal("numpy>=3")


def test_nothing_asked_is_nothing_missing() -> None:
    check_packages([])


def test_what_is_missing_is_told_with_the_command_that_mends_it() -> None:
    assert refusal("numpy", "no-such-package>=1,<2", "no-such-other") == (
        "packages missing: no-such-package>=1,<2, no-such-other; "
        "install them with: pip install 'no-such-package>=1,<2' no-such-other"
    )


def test_a_wrong_version_is_told_with_the_one_that_is_there() -> None:
    told = refusal("numpy<1", "no-such-package")
    assert told.startswith(
        f"packages missing: numpy<1, no-such-package (installed: numpy {NUMPY}); "
    )
    assert told.endswith("pip install 'numpy<1' no-such-package")


def test_it_is_packages_missing_that_is_told() -> None:
    with pytest.raises(PackagesMissing):
        check_packages(["no-such-package"])


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-r requirements.txt", "--index-url http://example.org numpy", "numpy pandas"),
        *("numpy; rm -rf", "./numpy", "numpy>=", "numpy\n--pre"),
    ],
)
def test_what_is_no_requirement_is_refused_and_never_part_of_a_command(text: str) -> None:
    told = refusal(text)
    assert told == f"{text!r} is not a package requirement @ packages"
