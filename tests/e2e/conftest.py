"""The figures that docs/deploy.md tells: noted by the tests, printed at the end."""

from __future__ import annotations

from typing import TypeAlias

import pytest

Figures: TypeAlias = dict[str, str]

_FIGURES = pytest.StashKey[Figures]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = {}


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    """What was measured, by what it is."""
    return pytestconfig.stash[_FIGURES]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for name, value in config.stash[_FIGURES].items():
        terminalreporter.write_line(f"{name}: {value}")
