"""How times are taken, in tuned tables and in records of the benchmark alike."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Protocol:
    """How the chain is run.

    pairs: at least so many (producer, op) pairs in a graph, fewer where graph_ms asks for it;
    repeats: interleaved rounds that are timed, after `warmups` that are not;
    cold_factor: a weight set comes round again only after this many times the L2 cache has been touched;
    graph_ms: a graph takes no longer than about this; max_weight_bytes: memory all weight sets of a model may
    take.
    """

    pairs: int = 40
    repeats: int = 25
    warmups: int = 3
    cold_factor: float = 3.0
    graph_ms: float = 20.0
    max_weight_bytes: int = 4 << 30


class ProtocolRecord(BaseModel):
    """How it was measured: `Protocol`, in words a reader of the file needs no code for."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    text: str
    pairs: int
    repeats: int
    warmups: int
    cold_factor: float
    graph_ms: float

    @classmethod
    def of(cls, protocol: Protocol) -> ProtocolRecord:
        return cls(
            text="CUDA graph of (producer, op) pairs, programmatic stream serialization, weight sets in "
            "rotation, less the same graph of producers alone; candidates interleaved round robin; median "
            "and interquartile range of the rounds, microseconds an op",
            pairs=protocol.pairs,
            repeats=protocol.repeats,
            warmups=protocol.warmups,
            cold_factor=protocol.cold_factor,
            graph_ms=protocol.graph_ms,
        )
