"""The command line with bugs in it: ``FAULTS_PLANTED=bug,bug python -m tests.faults.planted``."""

from __future__ import annotations

import os

from stream_scorer.cli import main
from tests.faults.planted import bugs, provocations

for name in os.environ["FAULTS_PLANTED"].split(","):
    {**provocations.ALL, **bugs.ALL}[name]()

main()
