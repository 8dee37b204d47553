"""Other projects doing the same work, each run in a virtual environment of its own."""
