"""Bugs that the verifier must find, and provocations that it must not mind; never the product's."""
