"""Time of one run, and which requests have arrived."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter, sleep

from benchmarks.workload import Request, RequestTrace


class Run:
    """Requests of one call of ``Contender.run`` in the order of arrival, and what they got so far."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.times_s: list[list[float]] = [[] for _ in requests]
        self.tokens: list[list[int]] = [[] for _ in requests]
        self._taken = 0
        self.began = perf_counter()

    def now(self) -> float:
        """Seconds from the start."""
        return perf_counter() - self.began

    def add(self, index: int, token: int, time_s: float | None = None) -> bool:
        """Records a token of a request, at ``time_s`` or now; True when it was the last that the request wants."""
        self.times_s[index].append(self.now() if time_s is None else time_s)
        self.tokens[index].append(token)
        return len(self.tokens[index]) >= self.requests[index].new_tokens

    def arrived(self, most: int, wait: bool) -> list[int]:
        """Requests that have arrived and were not given out yet; with ``wait``, sleeps until there is one."""
        if self._taken == len(self.requests):
            return []
        if wait:
            sleep(max(0.0, self.requests[self._taken].arrival_s - self.now()))
        first, now = self._taken, self.now()
        while (
            self._taken < len(self.requests)
            and self._taken - first < most
            and (self.requests[self._taken].arrival_s <= now or (wait and self._taken == first))
        ):
            self._taken += 1
        return list(range(first, self._taken))

    def traces(self) -> list[RequestTrace]:
        """What became of each request; it counts as sent when it arrived."""
        return [
            RequestTrace(request.arrival_s, tuple(times), tuple(tokens))
            for request, times, tokens in zip(self.requests, self.times_s, self.tokens, strict=True)
        ]
