"""The benchmark without a GPU: arithmetic, records, tables, pictures, and a run on a pretended chip."""

import ctypes
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_records import H200_L2, MACHINE, MB, RATES, a_record, a_spec

from codegen.bench import against, ahead, flashinfer, record, verb
from codegen.bench import build as bench_build
from codegen.bench import run as bench_run
from codegen.bench.agreement import Agreement, agree, expected, tolerance, ulp_limit
from codegen.bench.chain import Candidate, Graph, Measured, Outputs, Timing, Weights
from codegen.bench.native import LaunchArgs, launch_args
from codegen.bench.peers import chosen, seed_allows, torch_eager
from codegen.bench.probe import geometries, kernel_names, template_values
from codegen.bench.record import HostCost, Record, Source
from codegen.bench.rotation import Rotation, rotation
from codegen.compile import LIBRARY
from codegen.errors import BadInput, CheckFailed, ToolError
from codegen.protocol import Protocol
from codegen.spec import Norm, RouterSpec

# Rotation.


@pytest.mark.parametrize("weight_bytes", [MB // 2, MB, 3 * MB, 5505024, 11 * MB, 64 * MB, 512 * MB])
@pytest.mark.parametrize("activation_bytes", [0, MB, 40 * MB, 360 * MB])
@pytest.mark.parametrize("pair_us", [0.0, 5.0, 700.0, 5000.0])
def test_rotation(weight_bytes: int, activation_bytes: int, pair_us: float) -> None:
    protocol = Protocol()
    turn = rotation(weight_bytes, activation_bytes, H200_L2, protocol, pair_us)
    assert turn.weight_sets >= 2
    assert turn.pairs % turn.weight_sets == 0
    assert turn.cold == (turn.weight_sets * weight_bytes + activation_bytes >= 3 * H200_L2)
    if pair_us == 0:
        assert turn.cold
        assert protocol.pairs <= turn.pairs
    else:
        assert turn.pairs == 2 or turn.pairs * pair_us <= protocol.graph_ms * 1000
    # The weight sets made for one token are enough for every point.
    assert turn.weight_sets <= rotation(weight_bytes, 0, H200_L2, protocol).weight_sets


def test_rotation_respects_memory() -> None:
    turn = rotation(MB, 0, H200_L2, Protocol(max_weight_bytes=20 * MB))
    assert turn == Rotation(pairs=40, weight_sets=20, cold=False)


def test_timing_is_median_and_quartiles() -> None:
    timing = Timing.of([5.0, 1.0, 2.0, 100.0, 3.0])
    assert (timing.median_us, timing.spread_us) == (3.0, 3.0)


# The probe.


@pytest.mark.parametrize(
    "shape", [(7168, 384, 2), (4096, 256, 2), (2880, 128, 2), (3072, 256, 4), (8, 1, 2), (2688, 1000, 2)]
)
def test_probe_geometries(shape: tuple[int, int, int]) -> None:
    found = geometries(*shape)
    assert found
    assert len({geometry.function for geometry in found}) == len(found)
    for geometry in found:
        assert (geometry.ctas - 1) * geometry.experts < shape[1] <= geometry.ctas * geometry.experts
    assert kernel_names(*shape)[: len(found)] == [geometry.function for geometry in found]


def test_probe_template_renders_everything_it_is_given() -> None:
    jinja2 = pytest.importorskip("jinja2")
    text = (Path(__file__).parents[2] / "templates/bench/probe.cu.j2").read_text()
    values = template_values(7168, 384, 2, 4, pdl=True)
    rendered = jinja2.Template(text, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True).render(
        values
    )
    for name in kernel_names(7168, 384, 2):
        assert f" {name}(" in rendered


# The C interface.


def test_launch_args_match_the_header() -> None:
    header = (Path(__file__).parents[2] / "templates/include/normgate.h").read_text()
    body = header.split("struct normgate_args {")[1].split("};")[0]
    names = [line.split(";")[0].replace("*", " ").split()[-1] for line in body.splitlines() if ";" in line]
    assert names == [name for name, *_ in LaunchArgs._fields_]
    assert ctypes.sizeof(LaunchArgs) == 28 * 8


def test_launch_args_take_tensors() -> None:
    x = torch.zeros(3, 32, dtype=torch.bfloat16)[:, :16]
    gate_weight = torch.zeros(4, 16)
    given: dict[str, Any] = {
        "router_logits": None,
        "normed_x": None,
        "norm_weight": None,
        "gate_bias": None,
        "eps": 0.5,
        "stream": 0,
    }
    args = launch_args(x=x, gate_weight=gate_weight, **given)
    assert (args.num_tokens, args.x_row_stride, args.eps) == (3, 32, 0.5)
    assert (args.x, args.gate_weight, args.gate_bias) == (x.data_ptr(), gate_weight.data_ptr(), None)
    with pytest.raises(ValueError, match="contiguous"):
        launch_args(x=x, gate_weight=gate_weight.t(), **given)


# Agreement, with a chain whose graph is a Python function.


class PretendChain:
    """Runs the last pair on the CPU when its graph is replayed."""

    def __init__(self, spec: RouterSpec, tokens: int = 3) -> None:
        draw = torch.Generator().manual_seed(0)
        rows, dtype = (tokens, spec.hidden_size), getattr(torch, spec.activation_dtype)
        norm_weight = torch.rand(spec.hidden_size, generator=draw).to(dtype) if spec.norm else None
        gate_weight = torch.randn(spec.num_experts, spec.hidden_size, generator=draw)
        gate_weight = gate_weight.to(getattr(torch, spec.gate_weight_dtype))
        self.weights = [Weights(norm_weight, gate_weight, None)]
        self.source = torch.randn(rows, generator=draw).to(dtype)
        self.x = torch.empty_like(self.source)
        self.outputs = Outputs(torch.empty_like(self.x), torch.empty(tokens, spec.num_experts))

    def inputs_of_last(self, pairs: int, weight_sets: int) -> tuple[Weights, torch.Tensor]:
        return self.weights[0], self.source

    def capture(self, candidate: Candidate, pairs: int, weight_sets: int) -> Graph:
        def run() -> Outputs:
            self.x.copy_(self.source)
            return candidate.launch(self.weights[0], self.x, self.outputs, 0)

        def replay() -> None:
            again = run()  # a graph writes the tensors of its capture
            last.router_logits.copy_(again.router_logits)
            if last.normed_x is not None and again.normed_x is not None:
                last.normed_x.copy_(again.normed_x)

        last = run()
        return Graph(SimpleNamespace(replay=replay), last)


def oracle() -> Any:
    from normgate import reference

    return reference


def candidate_writing(spec: RouterSpec, change: Any = None, **fields: Any) -> Candidate:
    """The right answer written to the outputs, then `change(outputs)`."""

    def launch(weights: Weights, x: torch.Tensor, outputs: Outputs, stream: int) -> Outputs:
        right = expected(spec, oracle(), weights, x)
        outputs.router_logits.copy_(right.router_logits)
        if outputs.normed_x is not None and right.normed_x is not None:
            outputs.normed_x.copy_(right.normed_x)
        if change:
            change(outputs)
        return outputs

    return Candidate("one", launch, **{"tolerance": tolerance(spec, "unrounded"), **fields})


def agreement_of(candidate: Candidate, spec: RouterSpec, monkeypatch: pytest.MonkeyPatch) -> Agreement:
    monkeypatch.setattr("codegen.bench.agreement._synchronize", lambda: None)
    chain: Any = PretendChain(spec)
    return agree(candidate, chain, spec, expected(spec, oracle(), *chain.inputs_of_last(1, 1)))


def test_agreement_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = agreement_of(candidate_writing(a_spec()), a_spec(), monkeypatch)
    assert (found.problem, found.normed_ulps) == ("", 0)
    assert found.error is not None and found.error < 1e-6


def next_up(values: torch.Tensor, steps: int) -> None:
    values.view(torch.int16)[0, 0] += steps


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda outputs: outputs.router_logits[2, 15].fill_(math.nan), "not every element"),
        (lambda outputs: outputs.normed_x[0, 7].fill_(math.nan), "not every element"),
        (lambda outputs: outputs.router_logits.mul_(1 + 1e-5), "logits are off by 1.0e-05, allowed 2.0e-06"),
        (lambda outputs: next_up(outputs.normed_x, 2), "normed_x is off by 2 units"),
    ],
)
def test_agreement_notices(change: Any, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem in agreement_of(candidate_writing(a_spec(), change), a_spec(), monkeypatch).problem


def test_agreement_allows_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    def tie(outputs: Outputs) -> None:
        assert outputs.normed_x is not None
        next_up(outputs.normed_x, 1)

    found = agreement_of(candidate_writing(a_spec(), tie), a_spec(), monkeypatch)
    assert (found.problem, found.normed_ulps) == ("", 1)
    assert ulp_limit(a_spec(norm=Norm(order="A", eps=1e-6))) == 2


def test_agreement_of_a_probe_wants_x_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = a_spec()
    assert agreement_of(candidate_writing(spec, checks="copy"), spec, monkeypatch).problem

    def copy(weights: Weights, x: torch.Tensor, outputs: Outputs, stream: int) -> Outputs:
        assert outputs.normed_x is not None
        outputs.normed_x.copy_(x)
        outputs.router_logits.fill_(1.0)
        return outputs

    assert not agreement_of(Candidate("probe", copy, checks="copy"), spec, monkeypatch).problem


@pytest.mark.parametrize("order", ["A", "B", "G"])
def test_torch_peers_compute_the_model(order: str) -> None:
    # An fp32 gate: the product of two-byte rows into fp32 logits exists on CUDA only.
    spec = a_spec(norm=Norm(order=order, eps=1e-6), gate_weight_dtype="float32")
    chain = PretendChain(spec)
    right = expected(spec, oracle(), chain.weights[0], chain.source)
    peer = torch_eager(spec)
    got = peer.launch(chain.weights[0], chain.source, chain.outputs, 0)
    assert not peer.ours
    error = float((got.router_logits.double() - right.router_logits).norm() / right.router_logits.norm())
    assert error <= peer.tolerance
    assert got.normed_x is not None and right.normed_x is not None
    torch.testing.assert_close(got.normed_x, right.normed_x, rtol=2**-7, atol=0)


def test_logits_of_another_dtype_are_a_peers_to_declare(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = a_spec()

    def launch(weights: Weights, x: torch.Tensor, outputs: Outputs, stream: int) -> Outputs:
        right = expected(spec, oracle(), weights, x)
        normed_x = outputs.normed_x
        assert normed_x is not None and right.normed_x is not None
        normed_x.copy_(right.normed_x)
        return Outputs(normed_x, right.router_logits.to(torch.bfloat16))

    one = Candidate("one", launch, tolerance=tolerance(spec, "rounded"))
    assert "torch.bfloat16 (3, 16), not torch.float32" in agreement_of(one, spec, monkeypatch).problem
    found = agreement_of(replace(one, logits_dtype=torch.bfloat16), spec, monkeypatch)
    assert (found.problem, found.normed_ulps) == ("", 0)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A FlashInfer that computes nothing; the calls it gets."""
    calls: list[str] = []

    def norm(name: str) -> Any:
        def run(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> torch.Tensor:
            calls.append(name)
            return out

        return run

    def tinygemm(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, bias: None, use_pdl: bool) -> None:
        calls.append(f"tinygemm_bf16 {out.dtype}")

    def router_gemm(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, launch_with_pdl: bool) -> None:
        assert weight.stride(0) == 1
        calls.append(f"mm_M1_16_K7168_N384 {out.dtype}")

    norms = SimpleNamespace(rmsnorm=norm("rmsnorm"), gemma_rmsnorm=norm("gemma_rmsnorm"))
    gemms = SimpleNamespace(tinygemm_bf16=tinygemm, mm_M1_16_K7168_N384=router_gemm)
    monkeypatch.setitem(sys.modules, "flashinfer.norm", norms)
    monkeypatch.setitem(sys.modules, "flashinfer.gemm", gemms)
    return calls


@pytest.mark.parametrize(
    ("shape", "tokens", "sm", "order", "calls"),
    [
        (
            (7168, 384),
            16,
            90,
            "B",
            ["rmsnorm", "mm_M1_16_K7168_N384 torch.float32", "rmsnorm", "tinygemm_bf16 torch.bfloat16"],
        ),
        ((7168, 384), 17, 90, "B", ["rmsnorm", "tinygemm_bf16 torch.bfloat16"]),
        ((7168, 384), 16, 120, "G", ["gemma_rmsnorm", "tinygemm_bf16 torch.bfloat16"]),
        ((4096, 128), 1, 90, "A", ["rmsnorm", "tinygemm_bf16 torch.bfloat16"]),
    ],
)
def test_flashinfer_runs_the_gemms_that_fit(
    installed: list[str], shape: tuple[int, int], tokens: int, sm: int, order: str, calls: list[str]
) -> None:
    spec = a_spec(hidden_size=shape[0], num_experts=shape[1], norm=Norm(order=order, eps=1e-6))
    chain = PretendChain(spec, tokens)
    for peer in flashinfer.candidates(spec, tokens, sm):
        got = peer.launch(chain.weights[0], chain.source, chain.outputs, 0)
        assert got.router_logits.dtype == (peer.logits_dtype or chain.outputs.router_logits.dtype)
        assert (peer.best_of, peer.ours) == ("flashinfer", False)
    assert installed == calls


def test_flashinfer_says_why_it_does_not_run(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(tokens: int) -> None:
        chain = PretendChain(a_spec(), tokens)
        [peer] = flashinfer.candidates(a_spec(), tokens, 90)
        peer.launch(chain.weights[0], chain.source, chain.outputs, 0)

    with pytest.raises(ValueError, match="for few tokens, timed up to 64"):
        launch(65)
    monkeypatch.setitem(sys.modules, "flashinfer.norm", None)
    with pytest.raises(ImportError, match="flashinfer"):
        launch(1)


def test_seed_only_where_its_shape_rules_allow() -> None:
    assert seed_allows(a_spec(hidden_size=7168))
    assert not seed_allows(a_spec(hidden_size=2880))
    assert not seed_allows(a_spec(hidden_size=3072, gate_weight_dtype="float32"))


def test_candidates_are_chosen_by_name() -> None:
    assert chosen(("torch_eager", "ours")) == ("ours", "torch_eager")
    with pytest.raises(ToolError, match="no such candidate: cublas"):
        chosen(("ours", "cublas"))


# Records.


def test_record_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "measured" / record.file_name("NVIDIA H200", "bench")
    written = a_record(models=2)
    record.write(written, path)
    assert record.read(path) == written
    assert list(written.models["model-0"].points) == [1, 16, 256]
    assert path.name == "h200-bench.json"
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_records_from_before_rates_and_host_costs_are_read() -> None:
    text = json.loads(a_record().model_dump_json())
    del text["rates"], text["models"]["model-0"]["host"]
    old = Record.model_validate_json(json.dumps(text))
    assert (old.rates, old.models["model-0"].host) == (None, {})
    assert old.models["model-0"].points == a_record().models["model-0"].points


def test_record_with_a_mistake_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    record.write(a_record(), path)
    path.write_text(path.read_text().replace('"verb"', '"verbs"'))
    with pytest.raises(BadInput, match="verb: Field required"):
        record.read(path)
    with pytest.raises(BadInput, match="cannot be read"):
        record.read(tmp_path / "none.json")


def test_record_continues_only_itself() -> None:
    one = a_record()
    warmer = one.machine.model_copy(update={"clocks": {"clocks.sm": "345 MHz"}})
    assert one.continues(one.model_copy(update={"machine": warmer, "models": {}}))
    assert not one.continues(one.model_copy(update={"source": Source(commit="0123abc", dirty=True)}))


def test_a_named_commit_goes_before_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a checkout may carry the git of an older commit."""
    monkeypatch.setenv("NORMGATE_COMMIT", "abc123")
    assert record.source(Path(__file__).parents[2]) == Source(commit="abc123", dirty=False)


def test_source_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMGATE_COMMIT", "abc123-dirty")
    assert record.source(tmp_path) == Source(commit="abc123", dirty=True)
    monkeypatch.delenv("NORMGATE_COMMIT")
    assert record.source(tmp_path).commit == "unknown"


# The regression guard.


def slowed(run: Record, ours: float = 1.0, probe: float = 1.0) -> Record:
    """The run, with normgate and the probe of every point taking so many times as long."""
    factors = {"ours": ours, "probe": probe}
    text = json.loads(run.model_dump_json())
    for model in text["models"].values():
        for point in model["points"].values():
            for name, factor in factors.items():
                if name in point["candidates"]:
                    point["candidates"][name]["median_us"] *= factor
    return Record.model_validate_json(json.dumps(text))


def test_slower_than_the_spread_fails_and_is_named() -> None:
    before = a_record()
    changes = against.compare(slowed(before, ours=2.0), before)
    assert changes and all(change.regressed for change in changes)
    with pytest.raises(CheckFailed, match=r"model-0, 1 tokens: 8.04 us, .* before 4.02 us"):
        against.require_no_regression(changes)


@pytest.mark.parametrize(("ours", "probe"), [(1.0, 1.0), (2.0, 2.0), (1.0, 0.5), (0.5, 1.0), (1.04, 1.0)])
def test_what_is_no_regression_passes(ours: float, probe: float) -> None:
    """The same again, lower clocks, a lucky probe, a faster kernel, a change within the spread."""
    before = a_record()
    against.require_no_regression(against.compare(slowed(before, ours, probe), before))


def test_records_that_cannot_be_compared_are_refused() -> None:
    one = a_record()
    other_chip = one.model_copy(update={"machine": one.machine.model_copy(update={"chip": "NVIDIA Other"})})
    with pytest.raises(CheckFailed, match="no ratio compares chips"):
        against.compare(one, other_chip)
    with pytest.raises(CheckFailed, match="shares no point"):
        against.compare(one, one.model_copy(update={"models": {}}))


# The run, with the chip pretended.


HOST = HostCost(norm_gate_us=12.0, rms_norm_us=14.0)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[str, Agreement]:
    """`run` on no GPU; what a candidate's agreement is to be can be set by name."""
    answers: dict[str, Agreement] = {}

    def measure(candidates: Sequence[Candidate], protocol: Protocol) -> Measured:
        return Measured(Rotation(40, 40, True), {one.name: Timing(4.0 + n, 0.1) for n, one in enumerate(candidates)})

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(record, "machine", lambda: MACHINE)
    monkeypatch.setattr(bench_run, "weight_sets", lambda *_: [None])
    monkeypatch.setattr(bench_run, "chain_of", lambda *_: SimpleNamespace(measure=measure))
    monkeypatch.setattr(bench_run.ahead, "processes", lambda jobs: jobs)
    monkeypatch.setattr(bench_run.ahead, "compiled", lambda jobs, processes: iter(jobs))
    monkeypatch.setattr(bench_run.chip, "measure", lambda l2_bytes: RATES)
    monkeypatch.setattr(bench_run.host, "measure", lambda spec, weights: {16: HOST})
    monkeypatch.setattr(bench_run.agreement, "expected", lambda *_: None)
    monkeypatch.setattr(bench_run.agreement, "last_inputs", lambda *_: ())
    monkeypatch.setattr(bench_run.agreement, "agree", lambda one, *_: answers.get(one.name, Agreement(3e-7, 0)))
    return answers


def do_run(out: Path, **changes: Any) -> Record:
    library: Any = SimpleNamespace(select=lambda *_: "gemv_1", workspace=lambda *_: None)
    given: dict[str, Any] = {
        "package": SimpleNamespace(reference=None),
        "library": library,
        "out": out,
        "repository": out.parent,
        "budget_s": 60.0,
        "unrounded_tokens": (17,),
    }
    model = bench_run.Model(changes.pop("spec", a_spec()), "kernel", library)
    return bench_run.run([model], [1, 17], **{**given, **changes})


def test_run_writes_each_point(pretended: dict[str, Agreement], tmp_path: Path) -> None:
    pretended["torch_eager"] = Agreement(problem="RuntimeError: no")
    done = do_run(tmp_path / "r.json")
    assert record.read(tmp_path / "r.json") == done
    points = done.models["a-model"].points
    assert list(points) == [1, 17]
    assert list(points[1].candidates) == ["ours", "empty", "torch_compiled", "probe", "flashinfer"]
    assert list(points[17].candidates) == [
        "ours",
        "empty",
        "torch_compiled",
        "torch_compiled_unrounded",
        "probe",
        "flashinfer",
    ]
    assert points[1].left_out == {
        "torch_compiled_unrounded": "not asked for at this count",
        "torch_eager": "RuntimeError: no",
    }
    assert points[17].left_out == {"torch_eager": "RuntimeError: no"}
    assert (done.rates, done.models["a-model"].host) == (RATES, {16: HOST})
    assert points[1].candidates["ours"].variant == "gemv_1"
    assert points[1].candidates["probe"].variant == "e1_t128"


def test_run_times_a_peer_in_the_ways_that_agree(pretended: dict[str, Agreement], tmp_path: Path) -> None:
    spec = a_spec(hidden_size=7168, num_experts=384)

    def flashinfer_at(tokens: int) -> tuple[str | None, str | None]:
        done = do_run(tmp_path / "r.json", spec=spec, candidates=("ours", "flashinfer"))
        point = done.models["a-model"].points[tokens]
        timed = point.candidates.get("flashinfer")
        return timed and timed.variant.split(",")[0], point.left_out.get("flashinfer")

    assert flashinfer_at(1) == ("rmsnorm + mm_M1_16_K7168_N384", None)  # the first of the pretended timings
    pretended["flashinfer_mm_M1_16_K7168_N384"] = Agreement(problem="no such kernel")
    assert flashinfer_at(1) == ("rmsnorm + tinygemm_bf16", None)
    pretended["flashinfer_tinygemm_bf16"] = Agreement(problem="weight must be bfloat16")
    assert flashinfer_at(1)[0] is None
    assert flashinfer_at(17) == (None, "weight must be bfloat16")


def test_run_compiles_ahead_what_it_will_ask_for(
    pretended: dict[str, Agreement], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def compiled(jobs: Sequence[ahead.Job], processes: int) -> Iterator[ahead.Job]:
        asked.extend((job.peer, job.num_tokens) for job in jobs)
        yield from jobs

    monkeypatch.setattr(bench_run.ahead, "compiled", compiled)
    do_run(tmp_path / "r.json")
    assert asked == [("torch_compiled", 1), ("torch_compiled", 17), ("torch_compiled_unrounded", 17)]
    asked.clear()
    do_run(tmp_path / "other.json", candidates=("ours", "torch_eager"))
    assert not asked


def test_run_refuses_to_time_what_is_wrong(pretended: dict[str, Agreement], tmp_path: Path) -> None:
    pretended["ours"] = Agreement(problem="logits are off by 1, allowed 2.0e-06")
    with pytest.raises(CheckFailed, match="a-model, 1 tokens, ours \\(gemv_1\\): logits are off"):
        do_run(tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_run_resumes(pretended: dict[str, Agreement], tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    do_run(out, budget_s=0.0)
    assert not out.exists()
    first = do_run(out, candidates=("ours",))
    pretended["ours"] = Agreement(problem="not asked again")
    assert do_run(out, resume=True) == first
    other = replace(Protocol(), repeats=5)
    with pytest.raises(ToolError, match="another machine, commit or protocol"):
        do_run(out, resume=True, protocol=other)


def test_run_wants_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(ToolError, match="needs a GPU"):
        do_run(tmp_path / "r.json")


def test_a_build_that_fails_leaves_no_index_of_the_one_before(tmp_path, monkeypatch):
    """Its packages are replaced one by one; what an older index names may be gone."""
    monkeypatch.setattr(bench_build, "compile_package", lambda folder, **_: (folder / LIBRARY).write_bytes(b"made"))
    bench_build.build([a_spec()], (1,), (), 90, tmp_path)
    assert bench_build.built_before(tmp_path).sm == 90

    def fails(folder, **_):
        raise ToolError("compiling failed")

    monkeypatch.setattr(bench_build, "compile_package", fails)
    with pytest.raises(ToolError, match="compiling failed"):
        bench_build.build([a_spec()], (1, 2), (), 90, tmp_path)
    with pytest.raises(ToolError, match=r"bench.json: no benchmark was built there; build it where"):
        bench_build.built_before(tmp_path)


def test_a_chip_older_than_every_target_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(ToolError, match="the GPU here is sm_75, and the oldest target is sm_80: no kernel runs on it"):
        verb.target(None)
