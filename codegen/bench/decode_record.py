"""What a run of decode loops leaves: how it was measured, and what came, by model and number of sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .record import Frozen, Machine, Source, sound

WINDOW = 128
"""Positions of the static cache. Attention reads all of them at each step and masks those ahead, as transformers does
with a static cache: what a step takes does not depend on its position."""


class Protocol(Frozen):
    """How it is measured; text: the same in words."""

    steps: int = 32
    least_rounds: int = 7
    most_rounds: int = 25
    seconds: float = 4.0
    window: int = WINDOW
    text: str = (
        "transformers' own model, random bfloat16 weights, every size the model's but the number of layers; a step "
        "of greedy decoding (embedding, layers, head, argmax) is one CUDA graph, which reads tokens and position "
        "from the GPU's memory and writes the next; static KV cache of `window` positions, all of which are read "
        "at each step; a round is `steps` replays from position 0, wall clock from a synchronized GPU to a "
        "synchronized GPU, divided by `steps`: the time per output token of a sequence; rounds of before and after "
        "take turns, the first of each not counted, at least `least_rounds`, then more until `seconds` have passed "
        "or there are `most_rounds`; before reads the tokens that it chose, after reads the same ones, so that "
        "both route the same tokens, and writes its own beside; experts run in that of transformers' "
        "implementations which is the fastest there for the model before; medians and interquartile ranges of the "
        "rounds"
    )


class Timing(Frozen):
    """Microseconds per output token: median and interquartile range of the rounds."""

    median_us: float
    spread_us: float


class Point(Frozen):
    """One number of sequences. after_over_before: median and interquartile range of the rounds' ratios.

    experts: how the experts ran; experts_us: what a step took before with each way that was tried; experts_left_out:
    the others, and why. same_tokens: the share of equal choices given the same tokens; logits_error: ||after - before||
    / ||before|| of a token's logits, the median of all steps' tokens.
    """

    rounds: int
    before: Timing
    after: Timing
    after_over_before: float
    after_over_before_spread: float
    experts: str
    experts_us: dict[str, float]
    experts_left_out: dict[str, str]
    same_tokens: float
    logits_error: float


class DecodeModel(Frozen):
    """One model: its sizes, in transformers' words, how many of its layers ran fused, and points by sequences."""

    sizes: dict[str, int]
    fused_layers: int
    points: dict[int, Point] = {}


class DecodeRecord(Frozen):
    """A run."""

    schema_version: Literal[1] = 1
    verb: str = "decode"
    machine: Machine
    transformers: str
    source: Source
    protocol: Protocol
    models: dict[str, DecodeModel] = {}


def read(path: Path) -> DecodeRecord:
    """Read a record. BadInput names what does not fit."""
    return sound(DecodeRecord, path)
