"""What a benchmark run leaves: one JSON file that says what was measured, on what, and how."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import BadInput, Problem
from ..output import replace_whole
from ..problem import Problem as RouterPath
from ..protocol import ProtocolRecord
from ..spec import RouterSpec

_Read = TypeVar("_Read", bound=BaseModel)

_CLOCK_QUERIES = (
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "clocks.max.mem",
    "power.limit",
    "persistence_mode",
)


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Machine(Frozen):
    """The chip and what runs on it. clocks: as found before the run, in nvidia-smi's words; none were set."""

    chip: str
    sm: int
    multiprocessors: int
    l2_bytes: int
    driver: str
    torch: str
    cuda_runtime: str
    clocks: dict[str, str]


class Source(Frozen):
    """The commit that was measured; dirty: with changes on top that are in no commit."""

    commit: str
    dirty: bool


class Measurement(Frozen):
    """One candidate at one point: median and interquartile range of the rounds, microseconds an op.

    error: ||logits - ref|| / ||ref|| against float64, of a whole path the same of its weights; normed_ulps: the largest
    distance of an element of normed_x in units of its last place; None where there is nothing to compare. variant: the
    kernel that ran.
    """

    median_us: float
    spread_us: float
    error: float | None = None
    normed_ulps: int | None = None
    variant: str = ""


class ChipRates(Frozen):
    """What the chip reaches, measured in the run itself; medians.

    copy_bytes_per_s: a copy within the GPU's memory, bytes read and written; gemm_flops_per_s: torch.mm of two random
    bf16 matrices of 8192 x 8192.
    """

    copy_bytes_per_s: float
    gemm_flops_per_s: float


class HostCost(Frozen):
    """What an eager call costs the host, microseconds: normgate.norm_gate's operator, and F.rms_norm on the same x."""

    norm_gate_us: float
    rms_norm_us: float


class Point(Frozen):
    """One token count: the rotation, what was measured by candidate, what was left out and why."""

    pairs: int
    weight_sets: int
    cold: bool
    candidates: dict[str, Measurement]
    left_out: dict[str, str] = {}


class PathRecord(Frozen):
    """A model's whole path: the kernel's name, its stages in words, its points by token count."""

    kernel: str
    stages: str
    points: dict[int, Point] = {}


class ModelRecord(Frozen):
    """One model: what its spec computes, points and what calls cost the host by token count, all of norm and gate; and
    its whole path, where that was measured.
    """

    hidden_size: int
    num_experts: int
    activation_dtype: str
    gate_weight_dtype: str
    logits_dtype: str
    norm_order: str
    gate_bias: bool
    logits_from: str
    points: dict[int, Point] = {}
    host: dict[int, HostCost] = {}
    path: PathRecord | None = None

    @property
    def problem(self) -> RouterPath:
        """What norm and gate compute. Whether weights were loaded early the record does not say."""
        return RouterPath(
            hidden_size=self.hidden_size,
            num_experts=self.num_experts,
            activation_dtype=self.activation_dtype,
            gate_weight_dtype=self.gate_weight_dtype,
            logits_dtype=self.logits_dtype,
            norm_order=self.norm_order,
            gate_bias=self.gate_bias,
            logits_from=self.logits_from if self.norm_order else "unrounded",
            early_weight_loads=True,
        )

    @classmethod
    def of(cls, spec: RouterSpec) -> ModelRecord:
        return cls(
            hidden_size=spec.hidden_size,
            num_experts=spec.num_experts,
            activation_dtype=spec.activation_dtype,
            gate_weight_dtype=spec.gate_weight_dtype,
            logits_dtype=spec.logits_dtype,
            norm_order=spec.norm.order if spec.norm else "",
            gate_bias=spec.gate_bias,
            logits_from=spec.logits_from,
        )


class Record(Frozen):
    """A run. Frozen: `with_point` and its like give a new one. Older records have no rates, host costs or paths."""

    schema_version: Literal[1] = 1
    verb: str
    machine: Machine
    source: Source
    protocol: ProtocolRecord
    rates: ChipRates | None = None
    models: dict[str, ModelRecord] = {}

    def with_point(self, spec: RouterSpec, num_tokens: int, point: Point) -> Record:
        """This record and one more point (or another one in its place), token counts ascending."""
        model = self.models.get(spec.name, ModelRecord.of(spec))
        points = dict(sorted({**model.points, num_tokens: point}.items()))
        return self._with_model(spec.name, model.model_copy(update={"points": points}))

    def with_path_point(self, spec: RouterSpec, path: PathRecord, num_tokens: int, point: Point) -> Record:
        """This record and one more point of a whole path, which is `path` where it has none yet."""
        model = self.models.get(spec.name, ModelRecord.of(spec))
        path = model.path or path
        points = dict(sorted({**path.points, num_tokens: point}.items()))
        path = path.model_copy(update={"points": points})
        return self._with_model(spec.name, model.model_copy(update={"path": path}))

    def with_host(self, model: str, host: dict[int, HostCost]) -> Record:
        """This record and what the calls of a model that it holds cost the host."""
        return self._with_model(model, self.models[model].model_copy(update={"host": host}))

    def _with_model(self, name: str, model: ModelRecord) -> Record:
        return self.model_copy(update={"models": {**self.models, name: model}})

    def continues(self, other: Record) -> bool:
        """Whether both are of one state of the code, one machine and one protocol: they can share a file."""
        same_machine = self.machine.model_copy(update={"clocks": other.machine.clocks}) == other.machine
        return same_machine and (self.verb, self.source, self.protocol) == (
            other.verb,
            other.source,
            other.protocol,
        )


def write(record: Record, path: Path) -> None:
    """Write the record; a reader sees the old file or the new one, never a part."""
    replace_whole(path, text(record).encode())


def text(record: Record) -> str:
    """The record as its file has it."""
    return record.model_dump_json(indent=1) + "\n"


def read(path: Path) -> Record:
    """Read a record. BadInput names what does not fit."""
    return sound(Record, path)


def sound(kind: type[_Read], path: Path) -> _Read:
    """The record of this kind in a file. BadInput names what does not fit."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput([Problem(str(path), None, f"cannot be read: {error.strerror}")]) from error
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise BadInput(
            [Problem(str(path), None, f"{'.'.join(map(str, one['loc']))}: {one['msg']}") for one in found]
        ) from error


def slug(chip: str) -> str:
    """The chip's name as part of a file name: h200 for "NVIDIA H200"."""
    return re.sub(r"[^a-z0-9]+", "-", chip.lower().removeprefix("nvidia")).strip("-")


def file_name(chip: str, verb: str) -> str:
    """As in h200-bench.json."""
    return f"{slug(chip)}-{verb}.json"


def source(repository: Path) -> Source:
    """The commit that is measured: NORMGATE_COMMIT where it is set, for copies whose git, if any, does not know; else
    that of `repository`.

    The variable may end in -dirty. Without both, the commit is "unknown".
    """
    if named := os.environ.get("NORMGATE_COMMIT"):
        return Source(commit=named.removesuffix("-dirty"), dirty=named.endswith("-dirty"))

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", repository, *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # A checkout of its own: an installed normgate may lie inside some other project's.
    if (repository / ".git").exists() and (commit := git("rev-parse", "HEAD")):
        return Source(commit=commit, dirty=bool(git("status", "--porcelain")))
    return Source(commit="unknown", dirty=False)


def machine() -> Machine:
    """The current CUDA device and its software."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Machine(
        chip=properties.name,
        sm=10 * properties.major + properties.minor,
        multiprocessors=properties.multi_processor_count,
        l2_bytes=properties.L2_cache_size,
        driver=_nvidia_smi("driver_version").get("driver_version", "unknown"),
        torch=torch.__version__,
        cuda_runtime=str(torch.version.cuda),
        clocks=_nvidia_smi(*_CLOCK_QUERIES),
    )


def _nvidia_smi(*queries: str) -> dict[str, str]:
    """What the first GPU answers, by query; empty where nvidia-smi does not run."""
    command = ["nvidia-smi", f"--query-gpu={','.join(queries)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(queries, (value.strip() for value in done.stdout.splitlines()[0].split(",")), strict=False))
