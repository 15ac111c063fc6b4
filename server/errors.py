"""Errors a caller can meet, grown on :class:`mappers.errors.InterlockError`; HTTP codes live in ``api/errors.py``.

RequestError (message, param, code)
├── InvalidRequest            a field is wrong: named in ``param``
│   └── ContextLengthExceeded prompt and max_tokens do not fit the model
├── NotAuthenticated          no key, or a key nobody issued
├── NotPermitted              the key lacks a scope
├── NotFound                  no such artifact, job or generation
├── Conflict                  the state does not allow it now
├── PayloadTooLarge           body over its limit
├── HeadTooLarge              path and headers over their limit
├── RequestTimeout            the request did not arrive in time
├── Overloaded                queue full: try again after ``retry_after_s``
└── Unavailable               loading, draining or out of memory: ``retry_after_s``
GenerationFailed              a running generation ended in an error (``code`` says which)
"""

from mappers.errors import InterlockError


class RequestError(InterlockError):
    """A request cannot be carried out; ``param`` names the offending field, ``code`` is stable for programs."""

    default_code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or self.default_code


class InvalidRequest(RequestError):
    """A field has a value that cannot be used."""


class ContextLengthExceeded(InvalidRequest):
    """Prompt and max_tokens together do not fit the model's context."""

    default_code = "context_length_exceeded"


class NotAuthenticated(RequestError):
    """No API key was sent, or it is unknown."""

    default_code = "invalid_api_key"


class NotPermitted(RequestError):
    """The key is known but lacks the scope the request needs."""

    default_code = "not_permitted"


class NotFound(RequestError):
    """There is no such artifact, job, generation or route."""

    default_code = "not_found"


class Conflict(RequestError):
    """The object's state does not allow the request now."""

    default_code = "conflict"


class PayloadTooLarge(RequestError):
    """The body is larger than its limit."""

    default_code = "payload_too_large"


class HeadTooLarge(RequestError):
    """Path, query and headers together are larger than their limit."""

    default_code = "head_too_large"


class RequestTimeout(RequestError):
    """The client took too long to send its request."""

    default_code = "request_timeout"


class Overloaded(RequestError):
    """All places are taken; the same request may succeed after ``retry_after_s`` seconds."""

    default_code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(RequestError):
    """The server is loading, draining or out of memory."""

    default_code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: int = 5, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class GenerationFailed(InterlockError):
    """A generation ended in an error; ``code`` is one of non_finite, intervention_failed, engine_failed, shutdown."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code
