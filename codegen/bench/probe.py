"""The streaming probe: its geometries for a shape, and what templates/bench/probe.cu.j2 is rendered with."""

from __future__ import annotations

from dataclasses import dataclass

from ..arch import MAX_REGISTERS, REGISTERS_PER_SM

_THREADS = (128, 256, 512, 1024)
_CHUNK_BYTES = 16
_CHUNKS_IN_FLIGHT = 4  # chunks of x that a thread loads before it stores the first
_OTHER_REGISTERS = 28  # addresses, counters and the fold, beside the data held in registers
_WAVE = 128  # CTAs that fit the multiprocessors of a large chip once


@dataclass(frozen=True)
class Geometry:
    """One instance of the probe: `ctas` blocks of `threads`, each reading `experts` experts' weights."""

    experts: int
    threads: int
    ctas: int

    @property
    def name(self) -> str:
        return f"e{self.experts}_t{self.threads}"

    @property
    def function(self) -> str:
        """Name of its `extern "C"` kernel."""
        return f"normgate_bench_probe_{self.name}"


def geometries(hidden_size: int, num_experts: int, gate_weight_bytes: int) -> tuple[Geometry, ...]:
    """The geometries worth trying: from one expert a CTA to as many as fill a large chip once.

    Only such as hold a CTA's weights in registers without spilling; at least one for every shape a spec may
    have unless a row of gate weights is too large for 1024 threads, where the tuple is empty.
    """
    filling = -(-num_experts // _WAVE)
    found = []
    for experts in sorted({1, min(2, filling), filling}):
        for threads in _THREADS:
            chunks = experts * hidden_size * gate_weight_bytes // _CHUNK_BYTES
            loads = -(-chunks // threads)
            registers = 4 * (loads + _CHUNKS_IN_FLIGHT) + _OTHER_REGISTERS
            idle = threads > 128 and chunks <= threads // 2
            if registers <= min(MAX_REGISTERS, REGISTERS_PER_SM // threads) and not idle:
                found.append(Geometry(experts, threads, -(-num_experts // experts)))
    return tuple(found)


def template_values(
    hidden_size: int, num_experts: int, gate_weight_bytes: int, logits_bytes: int, *, pdl: bool
) -> dict[str, object]:
    """The variables of templates/bench/probe.cu.j2; `pdl` is true for SM targets from 90."""
    return {
        "hidden_size": hidden_size,
        "num_experts": num_experts,
        "gate_weight_bytes": gate_weight_bytes,
        "logits_bytes": logits_bytes,
        "pdl": pdl,
        "chunks_in_flight": _CHUNKS_IN_FLIGHT,
        "geometries": geometries(hidden_size, num_experts, gate_weight_bytes),
    }


def kernel_names(hidden_size: int, num_experts: int, gate_weight_bytes: int) -> list[str]:
    """Every kernel in the rendered file, as a manifest's `functions` lists them."""
    probes = [g.function for g in geometries(hidden_size, num_experts, gate_weight_bytes)]
    return [*probes, "normgate_bench_producer", "normgate_bench_empty"]
