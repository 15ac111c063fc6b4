"""A running server as the commands see it: JSON in, JSON out, errors as :class:`CommandFailed`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import httpx
import typer

from mappers.errors import InterlockError

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT = httpx.Timeout(60.0, connect=5.0)
CHUNK_BYTES = 1 << 20

Url = Annotated[str, typer.Option("--url", envvar="INTERLOCK_URL", help="Server to talk to.", show_default=True)]
Key = Annotated[
    str | None,
    typer.Option("--api-key", envvar="INTERLOCK_API_KEY", help="Key to send; prefer the variable.", show_default=False),
]


class CommandFailed(InterlockError):
    """The server could not be reached or refused; the message is what the user is shown."""


class Client:
    """One connection to a server at ``url``. Every method raises CommandFailed; use it as a context manager."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT)
        except (httpx.InvalidURL, ValueError) as error:
            raise CommandFailed(f"--url: {url!r} is not a URL: {error}") from None
        self._url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int | None) -> dict[str, Any]:
        """The JSON object at ``path``; parameters that are None are left out."""
        return self._json(self._send("GET", path, params=_given(query)))

    def text(self, path: str) -> str:
        """The body at ``path`` as text."""
        return self._send("GET", path).text

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, **query: str | int | float | None
    ) -> dict[str, Any]:
        """Sends ``body`` as JSON."""
        return self._json(self._send("POST", path, json=body, params=_given(query)))

    def put(
        self, path: str, body: Mapping[str, Any] | None = None, **query: str | int | float | None
    ) -> dict[str, Any]:
        """Replaces what ``path`` names by ``body``, as JSON."""
        return self._json(self._send("PUT", path, json=body, params=_given(query)))

    def delete(self, path: str) -> None:
        """Deletes what ``path`` names."""
        self._send("DELETE", path)

    def upload(self, path: str, file: Path, content_type: str, **query: str) -> dict[str, Any]:
        """Sends the file as a raw body, read in chunks."""
        headers = {"Content-Type": content_type, "Content-Length": str(file.stat().st_size)}
        return self._json(self._send("POST", path, params=query, content=_chunks(file), headers=headers))

    def download(self, path: str, target: Path, **query: str | None) -> int:
        """Writes the body at ``path`` to ``target`` under a temporary name first; returns its size in bytes."""
        partial = target.with_name(target.name + ".partial")
        try:
            with self._http.stream("GET", path, params=_given(query)) as response, partial.open("wb") as sink:
                if response.is_error:
                    response.read()
                    self._raise_for(response)
                for chunk in response.iter_bytes():
                    sink.write(chunk)
            partial.replace(target)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        finally:
            partial.unlink(missing_ok=True)
        return target.stat().st_size

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None
        if response.is_error:
            self._raise_for(response)
        return response

    def _unreachable(self, error: Exception) -> CommandFailed:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return CommandFailed(f"no server answers at {self._url}: start one with `interlock serve`, or set --url")
        return CommandFailed(f"talking to {self._url} failed: {str(error) or type(error).__name__}")

    def _raise_for(self, response: httpx.Response) -> None:
        error = _error_object(response)
        message = str(error.get("message") or f"{response.status_code} {response.reason_phrase}")
        if response.status_code == httpx.codes.UNAUTHORIZED:
            message += " (set INTERLOCK_API_KEY)"
        request_id = response.headers.get("x-request-id")
        raise CommandFailed(message + (f" [request {request_id}]" if request_id else ""))

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise CommandFailed(f"{self._url} did not answer with a JSON object: is it an Interlock server?")
        return value


def _error_object(response: httpx.Response) -> dict[str, Any]:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _given(query: Mapping[str, str | int | float | None]) -> dict[str, str | int | float]:
    return {name: value for name, value in query.items() if value is not None}


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
