"""Errors raised by :mod:`mappers`; :mod:`server.errors` grows the same tree.

InterlockError
├── UnsupportedArchitecture   a model this project cannot read or serve exactly
├── ArtifactError             a stored mapper, vector or dataset that cannot be used
│   ├── ArtifactCorrupt       files missing, changed or not what the manifest says
│   └── ArtifactMismatch      intact, but for another model, width or site
├── DataError                 prompts or texts that cannot be used for a fit
├── TrainingError             a fit that cannot give a usable result (not finite, no tokens)
└── OutOfMemory               more memory is needed than is free
"""


class InterlockError(Exception):
    """Base of every error of this project; the message names the field and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UnsupportedArchitecture(InterlockError):
    """The model's structure cannot be discovered, or it cannot be served exactly."""


class ArtifactError(InterlockError):
    """A stored mapper, vector or dataset cannot be used."""


class ArtifactCorrupt(ArtifactError):
    """Files are missing, changed, or not what the manifest says."""


class ArtifactMismatch(ArtifactError):
    """The artifact is intact but belongs to another model, width or site."""


class DataError(InterlockError):
    """Prompts or texts cannot be used for a fit; says which and why."""


class TrainingError(InterlockError):
    """A fit cannot give a usable result."""


class OutOfMemory(InterlockError):
    """More memory is needed than is free; says how to need less."""
