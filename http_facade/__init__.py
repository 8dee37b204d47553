"""Synchronous HTTP over the stream: a request is produced, its reply awaited and sent back."""
