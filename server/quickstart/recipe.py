"""What the quickstart runs: organisms, sites and settings, chosen by behaviour over sites and strengths."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """Names and settings of one quickstart; layers are 0-based block outputs."""

    target: str = "qwen2-medium-backdoor"
    base: str = "qwen2-medium-base"
    source: str = "llama-small-backdoor"
    switch_layer: int = 2
    switch_steps: int = 200
    switch_rows: int = 16
    switch_learning_rate: float = 3e-3
    source_layer: int = 3
    target_layer: int = 2
    ridge: float = 1e-3
    vector_strength: float = -1.3
    """Negative: the vector points from clean to triggered prompts, and is taken away."""
    switch_prompts: int = 512
    pairs: int = 256
    texts: int = 640
    held_out: int = 210
    max_tokens: int = 40
    seed: int = 0
