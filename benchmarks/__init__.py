"""How fast the product is, beside a bare loop and other servers; ``python -m benchmarks``."""
