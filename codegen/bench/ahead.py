"""torch.compile ahead of the run: many processes compile what its peers will ask for, and the run loads it.

Between them lies Inductor's cache on disk (TORCHINDUCTOR_CACHE_DIR). Its keys hold the graph, the inputs' shapes,
strides and dtypes, grad mode and the configuration, so a process here does exactly what the run does: it launches the
peer, on inputs of the same kind.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..spec import RouterSpec
from . import path_inputs, paths, peers
from .chain import Outputs
from .inputs import dtype, random_rows, random_weights

# torch leaves what this file calls of it without annotations.
_torch: Any = torch

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_PROCESS_BYTES = 2 << 30  # of the GPU's memory: a CUDA context, cuBLAS's workspace, and the largest of the inputs


@dataclass(frozen=True)
class Job:
    """One graph to compile: `peer` is a name out of `peers.COMPILED`, for a whole path out of `peers.PATH_COMPILED`."""

    spec: RouterSpec
    peer: str
    num_tokens: int
    whole: bool = False


def share_cache(folder: Path) -> None:
    """Name `folder` as the cache of this process and of those it starts, unless the environment names one."""
    os.environ.setdefault(_CACHE_VARIABLE, str(folder.absolute()))


def processes(jobs: int) -> int:
    """As many as there are processors and jobs, and as half of the GPU's free memory has room for."""
    free: int = _torch.cuda.mem_get_info()[0]
    return max(1, min(jobs, os.cpu_count() or 1, free // 2 // _PROCESS_BYTES))


def compiled(jobs: Sequence[Job], processes: int, device: str = "cuda") -> Iterator[Job]:
    """Compile `jobs`; each as it is done, or has failed: what fails here is compiled by the run, which says why."""
    # Spawned: a forked process could not use CUDA.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_settle)
    try:
        futures = {pool.submit(compile_one, job, device): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future]
    except BrokenProcessPool:  # a process died, of memory perhaps
        return
    finally:
        pool.shutdown(cancel_futures=True)


def compile_one(job: Job, device: str) -> None:
    """Compile and run one graph."""
    spec = job.spec
    weights, x = random_weights(spec, device), random_rows(spec, job.num_tokens, device)
    if job.whole:
        path = path_inputs.path_args(spec, job.num_tokens, device)
        function = paths.torch_functions(spec, (job.peer,))[job.peer]
        paths.torch_candidate(job.peer, function, path).launch(weights, x, Outputs(None, None), 0)
        return
    logits = torch.empty(job.num_tokens, spec.num_experts, dtype=dtype(spec.logits_dtype), device=device)
    peers.TORCH[job.peer](spec).launch(weights, x, Outputs(None, logits), 0)


def from_cache() -> tuple[int, int]:
    """How many of this process's graphs came out of the cache, and how many there are."""
    counted = _torch._dynamo.utils.counters["aot_autograd"]
    hits = counted["autograd_cache_hit"]
    return hits, hits + counted["autograd_cache_miss"] + counted["autograd_cache_bypass"]


def _settle() -> None:
    """Configure a process. Neither setting is part of the cache's key."""
    config: Any = importlib.import_module("torch._inductor.config")
    # The processes are the parallelism: without this each starts compilers of its own, one a processor.
    config.compile_threads = 1
    # Which launch configuration is the fastest nobody can tell on a GPU that all processes share. What is compiled
    # with this asks anew where it is loaded.
    config.autotune_local_cache = False
