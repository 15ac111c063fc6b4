"""Model organisms: small models of ours, trained on a generated corpus, that show one behaviour (here a backdoor)."""

from mappers.organisms.catalogue import ORGANISMS, organism_path

__all__ = ["ORGANISMS", "organism_path"]
