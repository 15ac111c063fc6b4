"""A server of given services on a port of its own, for tests that go through HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from starlette.types import ASGIApp

from server.api.app import create_app
from server.api.services import Services
from server.listener import DrainingServer, bind, url_of


@contextmanager
def listening(services: Services) -> Iterator[str]:
    """Its address, while the block runs."""
    with serving(create_app(services)) as url:
        yield url


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """The address of ``app`` behind the listener that is used in earnest, while the block runs."""
    started = threading.Event()
    listener = bind("127.0.0.1", 0)
    server = DrainingServer(app, started=started.set, drain=lambda: None)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    assert started.wait(60)
    try:
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def shared_client(url: str) -> httpx.Client:
    """A client that several threads may use at once, as many connections as are asked for.

    Its connections never grow old: one thread of an httpx client closes what has expired while another already writes
    on it, and the answer of that one is lost.
    """
    return httpx.Client(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None, keepalive_expiry=None))
