"""The one rule for names that clients choose: artifacts, datasets, jobs."""

import re

from mappers.manifest import NAME_PATTERN
from server.errors import InvalidRequest

_NAME = re.compile(NAME_PATTERN.removesuffix("$"))
_ID = re.compile("art_[0-9a-f]{24}")


def check_name(name: str, *, param: str = "name") -> str:
    """Returns ``name`` if it may name an artifact; raises InvalidRequest(``param``) otherwise."""
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(
            f"{param} must be 1 to 96 letters, digits, '.', '_' or '-' and start with a letter or digit, "
            f"got {name[:96]!r}",
            param=param,
        )
    if _ID.fullmatch(name) is not None:
        raise InvalidRequest(f"{param} {name!r} has the form of an artifact's id: choose another", param=param)
    return name
