"""Activations, mappers and steering vectors: everything that needs no server."""
