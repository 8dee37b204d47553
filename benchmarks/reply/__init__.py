"""The half of the suite that asks over HTTP: request/reply, overload, and what processes weigh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.reply import callers, overload
from benchmarks.reply.context import Case, Context
from benchmarks.reply.footprint import NAME as FOOTPRINT
from benchmarks.reply.footprint import footprint
from benchmarks.reply.overload import figures

__all__ = ["CASES", "FOOTPRINT", "Case", "Context", "figures", "footprint"]

CASES: Final[Mapping[str, Case]] = {
    module.NAME: Case(module.NAME, module.run) for module in (callers, overload)
}
"""The cases by name."""
