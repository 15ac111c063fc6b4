"""The models that jobs may use: names the operator gave at start, never anything a request says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.errors import InvalidRequest
from server.types import ModelInfo


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """The served model, where it was loaded from, and the references: name -> folder or hub id."""

    served: ModelInfo
    served_location: str
    references: Mapping[str, str]

    def locations(self) -> dict[str, str]:
        """Name -> folder or hub id of every model; the served model's name wins."""
        return {**self.references, self.served.name: self.served_location}

    def require(self, name: str, param: str, *, reference: bool = False) -> None:
        """Raises InvalidRequest(``param``) unless the model is known (``reference``: and another than the served)."""
        if name in self.references or (name == self.served.name and not reference):
            return
        known = sorted(self.references) if reference else sorted(self.locations())
        what = "reference models" if reference else "models"
        raise InvalidRequest(
            f"{param} names {name[:96]!r}, which is none of this server's {what} "
            f"({', '.join(known) or 'there are none'}): start it with --reference NAME=PATH_OR_HUB_ID",
            param=param,
        )
