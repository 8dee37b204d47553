"""What a delivery has done so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Counted by the thread that delivers; read by whoever wants to know."""

    commits: int = 0
    aborts: int = 0
    """Transactions that were not committed."""
    renewals: int = 0
    """Transactional producers made anew."""
