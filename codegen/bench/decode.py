"""Time per output token of models in transformers, as they are and with normgate.integrations.transformers applied.

python -m codegen.bench.decode build --sm 90  # where compilers are: these models' kernels, into build/decode
python -m codegen.bench.decode run            # on the GPU: writes docs/measured/CHIP-decode.json
"""

from __future__ import annotations

import gc
import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import click
import torch
from rich.console import Console
from rich.table import Table

from .. import places
from ..build import build_package
from ..compile import LIBRARY
from ..errors import CheckFailed, NormgateError, ToolError
from ..output import replace_whole
from .decode_loop import SHAPES, WINDOW, Loop, Shape, make, transformers, twin
from .record import Frozen, Machine, Source, file_name, machine, source
from .verb import package_of

# torch leaves what this file calls of it without annotations.
_torch: Any = torch
_cuda: Any = torch.cuda

SEQUENCES = (1, 4, 16, 64)
EXPERTS = ("grouped_mm", "batched_mm")  # transformers' ways to run experts that a CUDA graph can hold
_CHOOSING_ROUNDS = 3
# Logits that have nothing to do with each other are 1.4 apart. An expert chosen instead of one that ties with it, as
# bfloat16 logits often do, moves a sequence by some hundredths from then on.
_MOST_ERROR = 0.3


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


def specs(shapes: Mapping[str, Shape], integration: ModuleType) -> dict[str, str]:
    """File name -> the spec of each model's router path, as the integration itself reads it from the model."""
    found: dict[str, str] = {}
    for shape in shapes.values():
        found |= _apply(integration, make(shape.router_alone(), "cpu")).specs
    return found


def measure(
    shape: Shape,
    sequences: Sequence[int],
    integration: ModuleType,
    *,
    device: str = "cuda",
    experts: Sequence[str] = EXPERTS,
    protocol: Protocol | None = None,
) -> Iterator[DecodeModel]:
    """Measure one model: with each number of sequences, what is known by then.

    CheckFailed where the fused model computes something else.
    """
    protocol, config = protocol or Protocol(), shape.config()
    model = make(config, device)
    fused = twin(model)
    measured = DecodeModel(sizes=_sizes(config), fused_layers=len(_apply(integration, fused).fused))
    for count in sequences:
        point = _point(model, fused, count, experts, protocol)
        if not point.logits_error < _MOST_ERROR:
            raise CheckFailed(f"{config.model_type}, {count} sequences: fused, logits are off by {point.logits_error}")
        measured = measured.model_copy(update={"points": {**measured.points, count: point}})
        yield measured


def _point(model: Any, fused: Any, sequences: int, experts: Sequence[str], protocol: Protocol) -> Point:
    vocabulary: int = model.config.vocab_size
    tokens = torch.randint(vocabulary, (sequences, protocol.steps + 1), device=model.device)
    tried, left_out = _tried(model, tokens, experts, protocol.steps)
    fastest = min(tried, key=tried.__getitem__)
    for one in (model, fused):
        one.set_experts_implementation(fastest)
    before, after = Loop(model, tokens, tokens), Loop(fused, tokens, tokens.clone())
    same, error = _agreement(before, after, protocol.steps)
    times = _rounds(before, after, protocol)
    ratios = [fused_us / us for us, fused_us in times]
    return Point(
        rounds=len(times),
        before=_timing([us for us, _ in times]),
        after=_timing([fused_us for _, fused_us in times]),
        after_over_before=round(statistics.median(ratios), 4),
        after_over_before_spread=round(_spread(ratios), 4),
        experts=fastest,
        experts_us=tried,
        experts_left_out=left_out,
        same_tokens=round(same, 4),
        logits_error=float(f"{error:.2e}"),
    )


def _sizes(config: Any) -> dict[str, int]:
    """What the configuration says of how large the model is."""
    begins, ends = ("num_", "n_", "first_k_"), ("_size", "_rank", "_dim", "_group")
    known = {key: value for key, value in config.to_dict().items() if type(value) is int}
    return {key: value for key, value in known.items() if key.startswith(begins) or key.endswith(ends)}


def _apply(integration: ModuleType, model: Any) -> Any:
    """The report. ToolError where a layer is left: nothing would be measured there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        report = integration.apply(model)
    if report.left or not report.fused:
        raise ToolError(f"{report}\n  build what is missing: python -m codegen.bench.decode build")
    return report


def _tried(
    model: Any, tokens: torch.Tensor, experts: Sequence[str], steps: int
) -> tuple[dict[str, float], dict[str, str]]:
    """What a step takes with each way to run experts, and why others were left out. ToolError where none can run."""
    tried, left_out = {}, {}
    copies, there_are = len(tokens) * model.config.num_experts_per_tok, model.config.num_local_experts
    for way in experts:
        if way == "batched_mm" and copies > there_are:
            left_out[way] = f"would copy the weights of {copies} experts, of {there_are} that there are"
            continue
        try:
            tried[way] = _step_us(model, tokens, way, steps)
        except RuntimeError as error:
            left_out[way] = str(error).partition("\n")[0]
        if tokens.is_cuda:
            _cuda.empty_cache()  # batched_mm's copies
    if not tried:
        raise ToolError(f"no way to run experts can run: {left_out}; try another release of transformers")
    return tried, left_out


def _step_us(model: Any, tokens: torch.Tensor, way: str, steps: int) -> float:
    model.set_experts_implementation(way)
    loop = Loop(model, tokens, tokens)
    rounds = [_round_us(loop, steps) for _ in range(1 + _CHOOSING_ROUNDS)]
    return round(statistics.median(rounds[1:]), 1)


def _agreement(before: Loop, after: Loop, steps: int) -> tuple[float, float]:
    """The share of equal choices, and the median error of a token's logits."""
    errors = []
    before.restart()
    after.restart()
    for _ in range(steps):
        before.step()
        after.step()
        expected = before.logits.float()
        errors.append((after.logits.float() - expected).norm(dim=-1) / expected.norm(dim=-1))
    same = (after.writes[:, 1:] == before.writes[:, 1:]).float().mean()
    return float(same), float(_torch.cat(errors).median())


def _rounds(before: Loop, after: Loop, protocol: Protocol) -> list[tuple[float, float]]:
    """What a step took before and after, by round."""
    times: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(times) <= protocol.most_rounds:
        if len(times) > protocol.least_rounds and time.perf_counter() - begin > protocol.seconds:
            break
        times.append((_round_us(before, protocol.steps), _round_us(after, protocol.steps)))
    return times[1:]


def _round_us(loop: Loop, steps: int) -> float:
    synchronize = _cuda.synchronize if loop.reads.is_cuda else bool
    loop.restart()
    synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        loop.step()
    synchronize()
    return (time.perf_counter() - begin) / steps * 1e6


def _timing(samples: Sequence[float]) -> Timing:
    return Timing(median_us=round(statistics.median(samples), 1), spread_us=round(_spread(samples), 1))


def _spread(samples: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return high - low


def table(name: str, model: DecodeModel) -> Table:
    """A model's times per output token, for the terminal."""
    shown = Table("sequences", "before, us", "after, us", "after / before", "experts", "same tokens", title=name)
    for count, point in model.points.items():
        times = (f"{timing.median_us} ({timing.spread_us})" for timing in (point.before, point.after))
        shown.add_row(str(count), *times, f"{point.after_over_before:.3f}", point.experts, f"{point.same_tokens:.3f}")
    return shown


@click.group()
def cli() -> None:
    """Time per output token of models in transformers, as they are and fused: `build` where compilers are, `run` on
    the GPU.
    """


def _out_option(command: Any) -> Any:
    what = "The package is DIR/normgate.  [default: build/decode]"
    return click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help=what)(command)


@cli.command()
@_out_option
@click.option("--sm", default="native", show_default=True, metavar="native|90,100", help="SM targets to compile for.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at a time.")
def build(out: Path | None, sm: str, jobs: int | None) -> None:
    """Build the package with these models' kernels: needs no GPU."""
    out = out or _default_out()
    package_of(places.home() / "generated")
    files = {out / "specs" / name: text for name, text in specs(SHAPES, _integration()).items()}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(path, text.encode())
    report = build_package(tuple(files), out, sm=sm, jobs=jobs, console=Console())
    print(f"{places.shown(report.library)}; on the GPU: python -m codegen.bench.decode run")


@cli.command()
@_out_option
@click.option("--record", "file", type=click.Path(path_type=Path), metavar="FILE", help="The JSON record.")
def run(out: Path | None, file: Path | None) -> None:
    """Measure on the GPU here, and write docs/measured/CHIP-decode.json."""
    out = out or _default_out()
    if not torch.cuda.is_available():
        raise ToolError("a decode loop is timed on a GPU, with a CUDA build of torch")
    if not (out / places.PACKAGE / LIBRARY).is_file():
        raise ToolError(f"{out / places.PACKAGE / LIBRARY}: missing; build it: python -m codegen.bench.decode build")
    package_of(out)
    record = DecodeRecord(
        machine=machine(), transformers=transformers().__version__, source=source(places.home()), protocol=Protocol()
    )
    file = file or places.home() / "docs" / "measured" / file_name(record.machine.chip, record.verb)
    console = Console()
    for name, shape in SHAPES.items():
        for measured in measure(shape, SEQUENCES, _integration(), protocol=record.protocol):
            record = record.model_copy(update={"models": {**record.models, name: measured}})
            replace_whole(file, (record.model_dump_json(indent=1) + "\n").encode())
        console.print(table(name, record.models[name]))
        gc.collect()  # modules with a forward of their own refer to themselves
        _cuda.empty_cache()
    console.print(f"{places.shown(file)} written", soft_wrap=True)


def _default_out() -> Path:
    return places.home() / "build" / "decode"


def _integration() -> ModuleType:
    return importlib.import_module(f"{places.PACKAGE}.integrations.transformers")


if __name__ == "__main__":
    try:
        cli.main(prog_name="python -m codegen.bench.decode", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except NormgateError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
