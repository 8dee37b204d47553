"""How many bytes of payloads a process has in hand, and who is refused for it."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import falcon.asgi

from http_facade.calls import AnswerDropped, Overloaded

_HELD: Final = "facade.held"
"""Where the scope of a request keeps its share of the outgoing budget."""


class Budget:
    """A bound on the bytes that all requests together hold in one direction."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def share(self) -> Share:
        """A request's part of it, empty at first."""
        return Share(self)

    def take(self, size: int) -> None:
        """Count ``size`` more bytes.

        Raises:
            Overloaded: that is more than there may be; nothing was counted.
        """
        if self.held + size > self._limit:
            raise Overloaded(
                f"{self.held} bytes of payloads are in hand already; at most {self._limit} may be"
            )
        self.held += size

    def give_back(self, size: int) -> None:
        """Count ``size`` bytes less."""
        self.held -= size


class Share:
    """What one request holds. As a context it is given back at the end, if not before."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._size = 0

    def add(self, size: int) -> None:
        """Hold ``size`` bytes more.

        Raises:
            Overloaded: too much is held already.
        """
        self._budget.take(size)
        self._size += size

    def release(self) -> None:
        """Give back all of it; harmless when that is done already."""
        self._budget.give_back(self._size)
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Outgoing:
    """Middleware that counts response bodies until their readers have taken them.

    A reader that takes nothing would else have its answer lie here, and any number of them any
    number of answers. A budget of its own: those who send slowly take no room from answers.
    """

    def __init__(self, limit: int) -> None:
        self.budget = Budget(limit)

    async def process_response(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        _resource: object,
        succeeded: bool,
    ) -> None:
        # What is refused is told so in a few bytes, however full it is here.
        if succeeded and resp.data:
            share = self.budget.share()
            try:
                share.add(len(resp.data))
            except Overloaded:
                raise AnswerDropped(
                    "the answer is there, but too many bytes wait for callers that read slowly"
                ) from None
            req.scope[_HELD] = share


def sent(scope: dict[str, object]) -> None:
    """The response of this request has left, or never will."""
    share = scope.pop(_HELD, None)
    if isinstance(share, Share):
        share.release()
