"""The benchmark of whole paths without a GPU: torch's peers, agreement, what is built and run, and what becomes of it."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import normgate
import pytest
import torch
from bench_records import MACHINE, RATES, a_record, a_spec, with_paths
from normgate import reference
from torch import Tensor

from codegen.arch import ARCHS
from codegen.bench import against, ahead, build, check, page, path_agreement, path_inputs, paths, record, tables
from codegen.bench import run as bench_run
from codegen.bench.agreement import Agreement
from codegen.bench.chain import Candidate, Graph, Measured, Outputs, Timing, Weights
from codegen.bench.inputs import random_rows, random_weights
from codegen.bench.native import PathArgs
from codegen.bench.path_agreement import ROUNDED_TIE, UNROUNDED_TIE
from codegen.bench.peers import PATH_NAMES, BenchFunctions, chosen
from codegen.bench.record import Record
from codegen.bench.rotation import Rotation
from codegen.errors import CheckFailed
from codegen.families import Apart
from codegen.problem import Problem
from codegen.protocol import Protocol
from codegen.spec import Groups, Norm, Renormalize, Residual, RouterSpec, Routing, Tid2Eid, load_specs

ROOT = Path(__file__).parents[2]


def a_path(**routing: Any) -> RouterSpec:
    """A model with all stages, and an fp32 gate: two-byte rows into fp32 logits exist on CUDA only."""
    fields = {"top_k": 2, "e_score_correction_bias": True, "scoring": "sigmoid", **routing}
    return a_spec(residual=Residual(), gate_weight_dtype="float32", routing=Routing(**fields))


GROUPED = {"groups": Groups(n_group=4, topk_group=2, score="top2_sum"), "renormalize": Renormalize(epsilon=1e-20)}
ROUTINGS: dict[str, dict[str, Any]] = {
    "sigmoid": {"renormalize": Renormalize(), "routed_scaling_factor": 2.5},
    "groups": GROUPED,
    "groups by the best": {**GROUPED, "groups": Groups(n_group=4, topk_group=2, score="max")},
    "softmax": {"scoring": "softmax", "e_score_correction_bias": False, "renormalize": Renormalize()},
    "softmax as it is": {"scoring": "softmax", "e_score_correction_bias": False, "softcap": 5.0},
    "softmax of chosen": {"scoring": "softmax_of_chosen", "e_score_correction_bias": False},
    "sqrtsoftplus": {
        "scoring": "sqrtsoftplus",
        "tid2eid": Tid2Eid(vocab_size=10),
        "renormalize": Renormalize(floor=1e-12),
        "ids_dtype": "int64",
    },
    "a scale per expert": {"per_expert_scale": True, "renormalize": Renormalize()},
    "a bias of images": {"e_score_correction_bias_vl": True},
    "top 1": {"top_k": 1, "weights_dtype": "bfloat16", "e_score_correction_bias": False},
}


class PretendChain:
    """Runs the last pair on the CPU when its graph is replayed, and fills in what a graph writes."""

    def __init__(self, spec: RouterSpec, tokens: int = 64) -> None:
        self.path = path_inputs.path_args(spec, tokens, "cpu")
        self.weights = [random_weights(spec, "cpu")]
        self.source = random_rows(spec, tokens, "cpu")
        self.x = torch.empty_like(self.source)
        path = self.path
        self.outputs = Outputs(torch.empty_like(self.x), None, path.residual_out, path.topk_weights, path.topk_ids)

    def inputs_of_last(self, pairs: int, weight_sets: int) -> tuple[Weights, Tensor]:
        return self.weights[0], self.source

    def capture(self, candidate: Candidate, pairs: int, weight_sets: int) -> Graph:
        def run() -> Outputs:
            self.x.copy_(self.source)
            return candidate.launch(self.weights[0], self.x, self.outputs, 0)

        def replay() -> None:
            for tensor, again in zip(last.all, run().all, strict=True):
                if tensor is not None and again is not None and tensor is not again:
                    tensor.copy_(again)

        last = run()
        return Graph(SimpleNamespace(replay=replay), last)


@pytest.fixture(autouse=True)
def no_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codegen.bench.agreement._synchronize", lambda: None)


def agreement_of(spec: RouterSpec, of: Callable[[PathArgs], Candidate], tokens: int = 64) -> Agreement:
    chain: Any = PretendChain(spec, tokens)
    right = path_agreement.Right(spec, normgate, chain, chain.path)
    return path_agreement.agree(of(chain.path), chain, right)


def our_op(spec: RouterSpec) -> Callable[[PathArgs], Candidate]:
    return lambda path: paths.ours(spec, normgate, "v", path)


def changed(spec: RouterSpec, change: Callable[[Outputs], None], **fields: Any) -> Callable[[PathArgs], Candidate]:
    """Our op's result after `change`."""

    def of(path: PathArgs) -> Candidate:
        right = our_op(spec)(path)

        def launch(weights: Weights, x: Tensor, outputs: Outputs, stream: int) -> Outputs:
            got = right.launch(weights, x, outputs, stream)
            change(got)
            return got

        return dataclasses.replace(right, launch=launch, **fields)

    return of


# Candidates, and whether they are right.


@pytest.mark.parametrize("routing", ROUTINGS)
def test_our_op_agrees(routing: str) -> None:
    spec = a_path(**ROUTINGS[routing])
    found = agreement_of(spec, our_op(spec))
    assert found.problem == "" and found.normed_ulps is not None
    assert found.error is not None and found.error < (1e-6 if routing != "top 1" else 1e-2)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("order", ["A", "B", "G"])
def test_torch_peers_compute_the_path(routing: str, order: str) -> None:
    spec = a_path(**ROUTINGS[routing]).model_copy(update={"norm": Norm(order=order, eps=1e-6)})
    functions = paths.torch_functions(spec, ("torch_eager",))
    found = agreement_of(spec, lambda path: paths.torch_candidate("torch_eager", functions["torch_eager"], path))
    assert found.problem == ""


def test_paths_without_stages() -> None:
    scaled = a_path().model_copy(update={"residual": Residual(multiplier=0.5, stream_multiplier=3.5)})
    bare = a_path().model_copy(update={"residual": None, "norm": None})
    unchosen = a_path().model_copy(update={"routing": Routing(top_k=2, e_score_correction_bias=False)})
    for spec in (scaled, bare, unchosen):
        functions = paths.torch_functions(spec, ("torch_eager",))

        def peer(path: PathArgs, function: Any = functions["torch_eager"]) -> Candidate:
            return paths.torch_candidate("torch_eager", function, path)

        if spec is bare:
            weights, x = random_weights(spec, "cpu"), random_rows(spec, 3, "cpu")
            got = peer(path_inputs.path_args(spec, 3, "cpu")).launch(weights, x, Outputs(None, None), 0)
            assert (got.normed_x, got.residual_out) == (None, None) and got.topk_ids is not None
        else:
            assert agreement_of(spec, peer).problem == ""


def swap_first_two(outputs: Outputs) -> None:
    assert outputs.topk_ids is not None
    outputs.topk_ids.copy_(outputs.topk_ids.flip(1))


def no_expert(outputs: Outputs) -> None:
    assert outputs.topk_ids is not None
    outputs.topk_ids[3, 0] = 16


def twice(outputs: Outputs) -> None:
    assert outputs.topk_ids is not None
    outputs.topk_ids[5, 0] = outputs.topk_ids[5, 1]


def another(outputs: Outputs) -> None:
    assert outputs.topk_ids is not None
    taken = set(outputs.topk_ids[7].tolist())
    outputs.topk_ids[7, 1] = next(expert for expert in range(15, -1, -1) if expert not in taken)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (swap_first_two, "rows have other experts than a tie of 1e-06 allows"),
        (no_expert, "an expert's id is out of range"),
        (twice, "an expert is chosen twice"),
        (another, "1 of 64 rows have other experts"),
        (lambda got: got.topk_weights.add_(2e-5), "topk_weights are off by 2.0e-05, allowed 1e-05"),
        (lambda got: got.topk_weights[0, 0].fill_(math.nan), "not every element"),
        (lambda got: got.residual_out.view(torch.int16)[2, 3].add_(1), "residual_out is not the rounded sum"),
        (lambda got: got.normed_x.view(torch.int16)[2, 3].add_(2), "normed_x is off by 2 units"),
    ],
)
def test_what_is_wrong_is_noticed(change: Callable[[Outputs], None], problem: str) -> None:
    assert problem in agreement_of(a_path(), changed(a_path(), change)).problem


def test_order_among_the_chosen_is_ours_to_keep() -> None:
    def flip(outputs: Outputs) -> None:
        swap_first_two(outputs)
        assert outputs.topk_weights is not None
        outputs.topk_weights.copy_(outputs.topk_weights.flip(1))

    assert "other experts" in agreement_of(a_path(), changed(a_path(), flip)).problem
    assert agreement_of(a_path(), changed(a_path(), flip, ours=False)).problem == ""


def test_ties_are_allowed() -> None:
    """Of equal choices another expert may be chosen; its weight is then the right one."""
    spec = a_path(renormalize=Renormalize())
    chain: Any = PretendChain(spec)
    right = path_agreement.Right(spec, normgate, chain, chain.path)
    ids = right.routed.topk_ids.clone()
    first, other = int(ids[0, 0]), next(e for e in range(16) if e not in ids[0].tolist())
    right.choice[0, other] = right.choice[0, first] + 5e-7
    ids[0, 0] = other
    assert right.problem_of_ids(ids, UNROUNDED_TIE, True) == ""
    right.choice[0, other] = right.choice[0, first] - 5e-4
    assert "1 of 64 rows" in right.problem_of_ids(ids, UNROUNDED_TIE, False)
    assert right.problem_of_ids(ids, ROUNDED_TIE, False) == ""
    weights = right.weights_of(ids)
    scores = reference.score(right.routed.router_logits, "sigmoid").gather(1, ids.long())
    torch.testing.assert_close(weights, (scores / scores.sum(-1, keepdim=True)).float())


def test_groups_that_tie_excuse_a_row() -> None:
    spec = a_path(**GROUPED)
    chain: Any = PretendChain(spec)
    right = path_agreement.Right(spec, normgate, chain, chain.path)
    outside = int(right.choice[0].isinf().nonzero()[0])
    ids = right.routed.topk_ids.clone()
    ids[0, 0] = outside
    assert right.problem_of_ids(ids, UNROUNDED_TIE, True)
    assert right.group_gap is not None
    right.group_gap[0] = 1e-6
    assert right.problem_of_ids(ids, UNROUNDED_TIE, True) == ""


class PretendLibrary:
    """Launches nothing; the arguments it was launched with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def select(self, kernel: str, sm: int, num_tokens: int) -> str:
        return f"{kernel}_gemv_sm{sm}"

    def workspace(self, function: str, num_tokens: int) -> Tensor:
        return torch.zeros(1)

    def row_norm(self, args: Any) -> None:
        self.calls.append(("row_norm", args))

    def add_row_norm(self, args: Any) -> None:
        self.calls.append(("add_row_norm", args))

    def launch(self, function: str, args: Any) -> None:
        self.calls.append((function, args))


def own_names(spec: RouterSpec, functions: BenchFunctions, names: Sequence[str] = PATH_NAMES) -> list[Candidate]:
    library: Any = PretendLibrary()
    path = path_inputs.path_args(spec, 3, "cpu")
    return list(paths.own(names, spec, normgate, library, library, functions, ("gate", "whole"), 90, path, 3))


def test_own_candidates() -> None:
    functions = BenchFunctions(row_norm=True, apart={3: "whole_apart_gemv_sm90"}, after_norm={3: ["one", "two"]})
    found = own_names(a_path(), functions)
    assert [one.name for one in found] == ["ours", "norm_gate", "apart", "one_by_one_one", "one_by_one_two"]
    assert [one.variant for one in found[:3]] == ["whole_gemv_sm90", "gate_gemv_sm90", "whole_apart_gemv_sm90"]
    assert [one.checks for one in found] == ["path", "router", "path", "path", "path"]
    assert [one.best_of for one in found[2:]] == ["", "one_by_one", "one_by_one"]
    assert [one.tolerance for one in found if one.checks == "path"] == [UNROUNDED_TIE] * 2 + [ROUNDED_TIE] * 2
    # What is dispatched is not timed twice, whatever target it was built for.
    same = dataclasses.replace(functions, apart={3: "whole_gemv_sm80"}, after_norm={})
    assert [one.name for one in own_names(a_path(), same)] == ["ours", "norm_gate"]
    assert [one.name for one in own_names(a_path(), functions, ("norm_gate",))] == ["norm_gate"]


@pytest.mark.parametrize("adds", [True, False])
def test_one_by_one_launches_norm_and_the_rest(adds: bool) -> None:
    spec = a_path() if adds else a_path().model_copy(update={"residual": None})
    library, path = PretendLibrary(), path_inputs.path_args(spec, 3, "cpu")
    bench: Any = library
    weights, x = random_weights(spec, "cpu"), random_rows(spec, 3, "cpu")
    outputs = Outputs(torch.empty_like(x), None, path.residual_out, path.topk_weights, path.topk_ids)
    paths.one_by_one(spec, bench, "gate_select", path, 3).launch(weights, x, outputs, 0)
    (first, norm), (second, rest) = library.calls
    assert (first, second) == ("add_row_norm" if adds else "row_norm", "gate_select")
    assert outputs.normed_x is not None and path.topk_ids is not None and path.e_score_correction_bias is not None
    assert (norm.x, norm.normed_x, rest.x) == (x.data_ptr(), outputs.normed_x.data_ptr(), outputs.normed_x.data_ptr())
    assert (norm.residual is not None, norm.residual_out is not None) == (adds, adds)
    assert (rest.residual, rest.residual_out, rest.normed_x, rest.norm_weight) == (None, None, None, None)
    assert (rest.topk_ids, rest.e_score_correction_bias) == (
        path.topk_ids.data_ptr(),
        path.e_score_correction_bias.data_ptr(),
    )


def test_stages_in_words() -> None:
    assert a_path(**GROUPED).stages == "add, RMSNorm, gate, sigmoid, top 2 of the best 2 of 4 groups"
    assert a_path(**ROUTINGS["softmax of chosen"]).stages == "add, RMSNorm, gate, top 2, softmax"
    assert a_spec(norm=None).stages == "gate"


def test_candidates_of_both_kinds_are_chosen_by_name() -> None:
    assert chosen(("one_by_one", "ours", "seed"), PATH_NAMES) == ("ours", "one_by_one")
    assert chosen(("one_by_one", "ours", "seed")) == ("ours", "seed")


# What is built.


@pytest.mark.parametrize("model", ["kimi-k2", "deepseek-v4-pro", "gpt-oss-120b"])
def test_what_is_built_is_in_the_plan(model: str) -> None:
    (spec,) = load_specs([ROOT / "specs" / f"{model}.yaml"])
    plan, built = build._plan(spec, (1, 16), (1, 16, 512), ARCHS[90])
    there = {
        f"{kernel.name}_{variant.name}_sm90" for kernel in plan.all_kernels for variant in kernel.groups[0].served_by
    }
    wanted = [*built.apart.values(), *(one for ways in built.after_norm.values() for one in ways)]
    assert {*wanted, *built.seed.values(), *built.gate_gemv.values()} <= there
    assert {count: len(ways) for count, ways in built.after_norm.items()} == {1: 2, 16: 2, 512: 1}
    assert list(built.apart) == [1, 16, 512]
    for path in plan.paths:
        gate = plan.gate_of(path).groups[0].variants
        assert all(isinstance(variant, Apart) and variant.inner in gate for variant in path.groups[0].served_by)
    files = build.package_files(spec, plan, ARCHS[90])
    norms = {name.rpartition("/")[2] for name in files if name.endswith("row_norm.cu")}
    assert norms == ({"row_norm.cu", "add_row_norm.cu"} if spec.residual else {"row_norm.cu"})
    for name in norms:
        text = files[f"csrc/kernels/{name}"]
        assert f"int bench_{name.removesuffix('.cu')}(" in (text if isinstance(text, str) else text.decode())


def test_gates_alone_are_built_without_paths() -> None:
    (spec,) = load_specs([ROOT / "specs" / "kimi-k2.yaml"])
    plan, built = build._plan(spec, (1, 16), (), ARCHS[90])
    assert (plan.paths, built.apart, built.after_norm) == ((), {}, {})
    plan, built = build._plan(spec, (), (1,), ARCHS[90])
    assert (built.seed, built.gate_gemv, list(built.apart)) == ({}, {}, [1])
    assert Problem.of(spec) in {path.problem for path in plan.paths}


# The run, with the chip pretended.


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    answers: dict[str, Any] = {}

    def measure(candidates: Sequence[Candidate], protocol: Protocol) -> Measured:
        timings = {
            one.name: Timing(9.0 - n if "one_by_one" in one.name else 4.0 + n, 0.1) for n, one in enumerate(candidates)
        }
        return Measured(Rotation(40, 40, True), timings)

    def agree(one: Candidate, *_: Any) -> Agreement:
        found = answers.get(one.name, Agreement(3e-7, 0))
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, Agreement)
        return found

    chain = SimpleNamespace(measure=measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(record, "machine", lambda: MACHINE)
    monkeypatch.setattr(bench_run, "weight_sets", lambda *_: [None])
    monkeypatch.setattr(bench_run, "chain_of", lambda *_: chain)
    monkeypatch.setattr(bench_run.path_inputs, "path_args", lambda *_: PathArgs())
    monkeypatch.setattr(bench_run.path_agreement, "Right", lambda *_: "right")
    monkeypatch.setattr(bench_run.path_agreement, "agree", agree)
    monkeypatch.setattr(bench_run.ahead, "processes", lambda jobs: jobs)
    monkeypatch.setattr(bench_run.ahead, "compiled", lambda jobs, processes: iter(jobs))
    monkeypatch.setattr(bench_run.chip, "measure", lambda l2_bytes: RATES)
    monkeypatch.setattr(bench_run.host, "measure", lambda spec, weights: {})
    monkeypatch.setattr(bench_run.agreement, "expected", lambda *_: Outputs(None, None))
    monkeypatch.setattr(bench_run.agreement, "last_inputs", lambda *_: ())
    monkeypatch.setattr(bench_run.agreement, "agree", agree)
    return answers


def do_run(out: Path, tokens: Sequence[int] = (), path_tokens: Sequence[int] = (1, 512), **changes: Any) -> Record:
    library: Any = PretendLibrary()
    functions = BenchFunctions(
        row_norm=True,
        apart={1: "whole_apart_sm90", 512: "whole_gemv_sm90"},
        after_norm={1: ["one", "two"], 512: ["three"]},
    )
    model = bench_run.Model(a_path(), "gate", library, functions, "whole")
    given: dict[str, Any] = {"package": normgate, "library": library, "out": out, "repository": out.parent}
    given |= {"budget_s": 60.0, "unrounded_tokens": (), "path_tokens": path_tokens, **changes}
    return bench_run.run([model], tokens, **given)


def test_run_measures_paths(pretended: dict[str, Any], tmp_path: Path) -> None:
    done = do_run(tmp_path / "r.json")
    assert record.read(tmp_path / "r.json") == done
    model = done.models["a-model"]
    assert model.points == {} and model.path is not None
    assert (model.path.kernel, model.path.stages) == ("whole", "add, RMSNorm, gate, sigmoid, top 2")
    assert list(model.path.points) == [1, 512]
    one, many = (model.path.points[count].candidates for count in (1, 512))
    assert list(one) == ["ours", "norm_gate", "apart", "torch_eager", "torch_compiled", "one_by_one"]
    assert list(many) == ["ours", "norm_gate", "torch_eager", "torch_compiled", "one_by_one"]
    assert (one["one_by_one"].variant, many["one_by_one"].variant) == ("row_norm + two", "row_norm + three")
    assert one["one_by_one"].error == 3e-7


def test_run_measures_both_and_resumes(pretended: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    gates = do_run(out, (16,), (), candidates=("ours",))
    assert gates.models["a-model"].path is None
    both = do_run(out, (16,), (1,), path_candidates=("ours", "norm_gate"), resume=True)
    model = both.models["a-model"]
    assert list(model.points) == [16] and model.path is not None
    assert list(model.path.points[1].candidates) == ["ours", "norm_gate"]
    pretended["ours"] = Agreement(problem="not asked again")
    assert do_run(out, (16,), (1,), resume=True) == both


def test_run_refuses_a_wrong_path(pretended: dict[str, Any], tmp_path: Path) -> None:
    pretended["apart"] = Agreement(problem="topk_weights are off")
    with pytest.raises(CheckFailed, match=r"a-model, whole path, 1 tokens, apart \(whole_apart_sm90\): topk_weights"):
        do_run(tmp_path / "r.json")


def test_a_way_that_a_chip_has_no_place_for_is_left_out(pretended: dict[str, Any], tmp_path: Path) -> None:
    pretended["one_by_one_two"] = RuntimeError("two: invalid cluster size")
    pretended["torch_compiled"] = Agreement(problem="normed_x is off")
    path = do_run(tmp_path / "r.json").models["a-model"].path
    assert path is not None
    assert path.points[1].candidates["one_by_one"].variant == "row_norm + one"
    assert path.points[1].left_out == {
        "one_by_one_two": "RuntimeError: two: invalid cluster size",
        "torch_compiled": "normed_x is off",
    }
    pretended["ours"] = RuntimeError("no")
    with pytest.raises(RuntimeError):
        do_run(tmp_path / "r.json")


def test_run_compiles_paths_ahead(pretended: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int, bool]] = []

    def compiled(jobs: Sequence[ahead.Job], processes: int) -> Iterator[ahead.Job]:
        asked.extend((job.peer, job.num_tokens, job.whole) for job in jobs)
        yield from jobs

    monkeypatch.setattr(bench_run.ahead, "compiled", compiled)
    do_run(tmp_path / "r.json", (16,))
    assert asked == [
        ("torch_compiled", 16, False),
        ("torch_compiled", 1, True),
        ("torch_compiled", 512, True),
    ]


def test_a_path_is_compiled_as_the_run_will_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    spec = a_path(**GROUPED)
    ahead.compile_one(ahead.Job(spec, "torch_compiled", 3, whole=True), "cpu")
    hits, graphs = ahead.from_cache()
    dynamo: Any = torch._dynamo
    dynamo.reset()
    weights, x, path = random_weights(spec, "cpu"), random_rows(spec, 3, "cpu"), path_inputs.path_args(spec, 3, "cpu")
    function = paths.torch_functions(spec, ("torch_compiled",))["torch_compiled"]
    got = paths.torch_candidate("torch_compiled", function, path).launch(weights, x, Outputs(None, None), 0)
    assert got.topk_ids is not None and got.topk_ids.dtype == torch.int32
    assert ahead.from_cache() == (hits + 1, graphs + 1)


# Records, tables, the check, the guard and the page.


def test_record_of_paths_round_trips(tmp_path: Path) -> None:
    written = with_paths(a_record(models=2))
    record.write(written, tmp_path / "r.json")
    assert record.read(tmp_path / "r.json") == written
    path = written.models["model-1"].path
    assert path is not None and list(path.points) == [1, 16, 256]


def test_records_from_before_paths_are_read() -> None:
    text = json.loads(a_record().model_dump_json())
    del text["models"]["model-0"]["path"]
    old = Record.model_validate_json(json.dumps(text))
    assert old.models["model-0"].path is None
    assert "whole path" not in page.text(old, "r.json")
    now = with_paths(a_record())
    assert {change.base for change in against.compare(now, old)} == {"probe"}


def test_path_tables() -> None:
    path = with_paths(a_record()).models["model-0"].path
    assert path is not None
    headings, rows = tables.path_rows(path)
    assert headings == [
        "tokens",
        "normgate route",
        "over norm + gate",
        "one by one",
        "apart",
        "torch eager",
        "torch.compile",
        "best other / normgate",
    ]
    assert rows[1] == ["16", "6.32", "-1.00", "8.32", "9.32", "10.32", "11.32", f"{8.32 / 6.32:.2f}"]
    assert set(tables.PATH_LABELS) == set(PATH_NAMES)


def test_path_tables_without_peers() -> None:
    path = with_paths(a_record(), ("ours",)).models["model-0"].path
    assert path is not None
    assert tables.path_rows(path)[1][0] == ["1", "6.02", "-", "-", "-", "-", "-", "-"]


def test_check_lists_faster_ways_of_the_path() -> None:
    check.require_fastest(with_paths(a_record()))
    check.require_fastest(with_paths(a_record(), norm_gate=1.0))  # does less
    with pytest.raises(CheckFailed) as failed:
        check.require_fastest(with_paths(a_record(), one_by_one=6.2))
    assert str(failed.value) == "model-0, whole path, 256 tokens: 11.12 us, one by one 6.20 us"


def test_guard_holds_paths_against_norm_and_gate() -> None:
    before, slow = with_paths(a_record(), norm_gate=4.0), with_paths(a_record(), norm_gate=4.0, ours=20.0)
    against.require_no_regression(against.compare(before, before))
    with pytest.raises(CheckFailed, match=r"model-0, whole path, 1 tokens: 20.00 us, 5.00 times norm \+ gate; before"):
        against.require_no_regression(against.compare(slow, before))


def test_page_has_a_section_of_paths() -> None:
    found = with_paths(a_record(models=2), norm_gate=5.0)
    text = page.text(found, "r.json").split("## The whole path\n")[1]
    assert "| model-1 | add, RMSNorm, gate, sigmoid, top 2 | 1.02 to 1.32 |" in text
    section = text.split("### model-1, the whole path\n")[1]
    assert "| 16 | **6.32** | 1.32 | 8.32 | 9.32 | 10.32 | 11.32 |" in section
    faster = page.text(with_paths(a_record(), apart=3.0), "r.json")
    assert "| model-0, whole path | apart | 16 | 6.32 | 3.00 | 2.11 |" in faster
    assert "| **3.00** |" in faster.split("## The whole path\n")[1]


def test_page_of_paths_alone() -> None:
    alone = json.loads(with_paths(a_record()).model_dump_json())
    alone["models"]["model-0"]["points"] = {}
    alone["models"]["model-0"]["path"]["points"]["1"]["left_out"] = {"one_by_one": "RuntimeError: no"}
    text = page.text(Record.model_validate_json(json.dumps(alone)), "r.json")
    assert "### model-0, the whole path" in text and "### model-0\n" not in text
    assert "- one by one (whole path), at 1 points: RuntimeError: no" in text


def test_the_recorded_run_is_read_still() -> None:
    found = record.read(ROOT / "docs/measured/h200-bench.json")
    assert page.text(found, "measured/h200-bench.json").startswith("# Performance")
