"""The two ways to end: a setting that cannot work, and a service that does not.

Every error that ends a command is one of these; its text is one line for the person who started
the command.
"""

from __future__ import annotations

from typing import ClassVar


class ScorerError(Exception):
    """Ends a command; ``exit_code`` is what the process returns."""

    exit_code: ClassVar[int] = 1


class SetupError(ScorerError):
    """Wrong usage or configuration: starting again changes nothing until somebody mends it."""

    exit_code = 2


class OperationError(ScorerError):
    """Something else failed at run time: starting again may help."""
