"""What a plugin is, how one is loaded, and ready-made parts to write one with."""

from stream_scorer.plugins.plugin import InvalidPayload, Plugin

__all__ = ["InvalidPayload", "Plugin"]
