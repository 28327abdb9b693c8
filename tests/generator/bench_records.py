"""What the benchmark's tests share: a spec, and a made-up record."""

import itertools
from collections.abc import Sequence
from typing import Any

from codegen.bench.peers import NAMES, PATH_NAMES
from codegen.bench.record import (
    ChipRates,
    HostCost,
    Machine,
    Measurement,
    PathRecord,
    Point,
    Record,
    Source,
)
from codegen.protocol import Protocol, ProtocolRecord
from codegen.spec import Norm, RouterSpec, Routing

MB = 1 << 20
H200_L2 = 60 * MB


def a_spec(**changes: Any) -> RouterSpec:
    fields: dict[str, Any] = {
        "name": "a-model",
        "sources": ("a test",),
        "hidden_size": 64,
        "num_experts": 16,
        "activation_dtype": "bfloat16",
        "gate_weight_dtype": "bfloat16",
        "norm": Norm(order="B", eps=1e-6),
        "gate_bias": False,
        "routing": Routing(top_k=2, e_score_correction_bias=False),
    }
    return RouterSpec(**{**fields, **changes})


MACHINE = Machine(
    chip="NVIDIA H200",
    sm=90,
    multiprocessors=132,
    l2_bytes=H200_L2,
    driver="580.1",
    torch="2.11.0",
    cuda_runtime="13.0",
    clocks={"clocks.sm": "1980 MHz"},
)


RATES = ChipRates(copy_bytes_per_s=4e12, gemm_flops_per_s=8e14)


def a_record(candidates: Sequence[str] = NAMES, models: int = 1) -> Record:
    """At 1, 16 and 256 tokens; each candidate takes a microsecond more than the one before it, ours 4 and more."""
    found = Record(
        verb="bench",
        machine=MACHINE,
        source=Source(commit="0123abc", dirty=False),
        protocol=ProtocolRecord.of(Protocol()),
    )
    for model, tokens in itertools.product(range(models), (16, 1, 256)):
        times = {
            name: Measurement(median_us=4.0 + place + tokens / 50, spread_us=0.1, error=3e-7, variant="v")
            for place, name in enumerate(candidates)
        }
        spec = a_spec(name=f"model-{model}")
        found = found.with_point(spec, tokens, Point(pairs=40, weight_sets=40, cold=True, candidates=times))
        found = found.with_host(spec.name, {1: HostCost(norm_gate_us=12.5, rms_norm_us=14.25)})
    return found.model_copy(update={"rates": RATES})


def with_paths(found: Record, candidates: Sequence[str] = PATH_NAMES, **median_us: float) -> Record:
    """The record with the whole path of each model at 1, 16 and 256 tokens: each candidate takes a microsecond more than
    the one before it, ours 6 and more; median_us: what one takes instead, at all counts.
    """
    path = PathRecord(kernel="a_kernel", stages="add, RMSNorm, gate, sigmoid, top 2")
    for name, tokens in itertools.product(found.models, (256, 16, 1)):
        times = {
            one: Measurement(median_us=median_us.get(one, 6.0 + place + tokens / 50), spread_us=0.1, variant="v")
            for place, one in enumerate(candidates)
        }
        point = Point(pairs=40, weight_sets=40, cold=True, candidates=times)
        found = found.with_path_point(a_spec(name=name), path, tokens, point)
    return found
