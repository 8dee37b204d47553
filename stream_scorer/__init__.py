"""Scores requests from Kafka topics with MLflow models and pluggable payloads."""

__version__ = "0.1.0"
