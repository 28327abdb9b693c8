"""The decode loop around transformers' models, small, on the CPU, where a step is not a graph: what it reads, writes and
compares. What it takes is measured on a GPU only.
"""

import importlib
import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers", reason="transformers is not installed; it comes with the extra `test`")

from codegen.bench import decode, decode_loop
from codegen.bench.record import Machine
from codegen.errors import CheckFailed, ToolError
from codegen.places import specs_folder
from codegen.spec import load_spec

LITTLE = dict(
    num_hidden_layers=2,
    hidden_size=64,
    intermediate_size=32,
    moe_intermediate_size=32,
    num_attention_heads=2,
    num_key_value_heads=2,
    vocab_size=50,
)
MLA = dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
SMALL = {
    "deepseek-v3": decode_loop.Shape(
        "DeepseekV3Config",
        dict(
            **LITTLE,
            **MLA,
            first_k_dense_replace=1,
            n_routed_experts=16,
            n_group=4,
            topk_group=2,
            num_experts_per_tok=4,
        ),
    ),
    "qwen3-235b-a22b": decode_loop.Shape(
        "Qwen3MoeConfig", dict(**LITTLE, head_dim=16, num_experts=16, num_experts_per_tok=4, norm_topk_prob=True)
    ),
}
QUICK = decode.Protocol(steps=2, least_rounds=2, most_rounds=2)


@pytest.fixture(params=SMALL)
def shape(request: pytest.FixtureRequest) -> decode_loop.Shape:
    return SMALL[request.param]


@pytest.fixture
def integration() -> Any:
    return importlib.import_module("normgate.integrations.transformers")


def test_the_loop_decodes_greedily_from_its_own_tokens(shape: decode_loop.Shape) -> None:
    model = decode_loop.make(shape.config(initializer_range=0.3), "cpu", torch.float32)
    tokens = torch.randint(50, (3, 9))
    loop = decode_loop.Loop(model, tokens, tokens)
    for first in torch.randint(50, (2, 3)):  # the second time over a cache that was used
        loop.restart()
        tokens[:, 0] = first
        for _ in range(8):
            loop.step()
        with torch.no_grad():
            logits = model(tokens[:, :-1], use_cache=False).logits  # the whole sequence at once, without a cache
        assert torch.equal(tokens[:, 0], first)
        assert torch.equal(tokens[:, 1:], logits.argmax(-1))
        assert torch.allclose(loop.logits, logits[:, -1], atol=1e-4)
        assert len(tokens.unique()) > 4  # a model that repeats itself would agree with much


def test_a_loop_that_reads_anothers_tokens_leaves_them_alone(shape: decode_loop.Shape) -> None:
    model = decode_loop.make(shape.config(initializer_range=0.3), "cpu", torch.float32)
    given = torch.randint(50, (2, 6))
    kept, chosen = given.clone(), torch.full_like(given, -1)
    loop = decode_loop.Loop(model, given, chosen)
    for _ in range(5):
        loop.step()
    with torch.no_grad():
        expected = model(given[:, :-1], use_cache=False).logits.argmax(-1)
    assert torch.equal(given, kept)
    assert torch.equal(chosen[:, 1:], expected)


def test_a_twin_shares_every_tensor_and_no_module(shape: decode_loop.Shape, integration: Any) -> None:
    model = decode_loop.make(shape.config(), "cpu")
    twin = decode_loop.twin(model)
    for (name, one), (same, other) in zip(model.state_dict().items(), twin.state_dict().items(), strict=True):
        assert name == same and one.data_ptr() == other.data_ptr()
    assert not {id(module) for module in model.modules()} & {id(module) for module in twin.modules()}
    integration.apply(twin)
    assert not any("forward" in vars(module) for module in model.modules())
    assert any("forward" in vars(module) for module in twin.modules())


class Seen(TorchDispatchMode):
    """The operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.names.add(str(function.overloadpacket))
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("way", [*decode.EXPERTS, "eager"])
def test_a_step_asks_for_no_value_that_a_graph_could_not_know(
    shape: decode_loop.Shape, integration: Any, way: str
) -> None:
    model = decode_loop.make(shape.config(), "cpu")
    fused = decode_loop.twin(model)
    integration.apply(fused)
    for one in (model, fused):
        one.set_experts_implementation(way)
        loop = decode_loop.Loop(one, torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64))
        loop.step()
        with Seen() as seen:
            loop.step()
        asked = seen.names & {"aten._local_scalar_dense", "aten.nonzero", "aten.lift_fresh", "aten.unique2"}
        assert ("normgate.route" in seen.names) == (one is fused)
        assert bool(asked) == (way == "eager")  # which is why no graph is asked for with it


def test_a_model_is_measured_before_and_after(shape: decode_loop.Shape, integration: Any) -> None:
    first, measured = decode.measure(shape, (1, 6), integration, device="cpu", protocol=QUICK)
    assert set(first.points) == {1} and set(measured.points) == {1, 6}
    config = shape.config()
    assert measured.fused_layers == config.num_hidden_layers - getattr(config, "first_k_dense_replace", 0)
    assert measured.sizes["hidden_size"] == 64 and measured.sizes["num_hidden_layers"] == 2
    for count, tried in ((1, {"grouped_mm", "batched_mm"}), (6, {"grouped_mm"})):  # 6 sequences of 4 experts: 24 of 16
        point = measured.points[count]
        assert set(point.experts_us) == tried and point.experts in tried
        assert set(point.experts_left_out) == set(decode.EXPERTS) - tried
        assert point.rounds == QUICK.most_rounds
        assert point.logits_error < 0.02
    assert measured.points[6].same_tokens > 0.5
    assert decode.DecodeModel.model_validate_json(measured.model_dump_json()) == measured
    assert decode.table("small", measured).row_count == 2


def test_another_result_than_before_is_refused(shape: decode_loop.Shape) -> None:
    def spoil(model: Any) -> Any:
        model.model.norm.register_forward_hook(lambda _module, _arguments, output: 2 * output)
        return SimpleNamespace(fused=("a layer",), left={})

    spoiling: Any = SimpleNamespace(apply=spoil)
    with pytest.raises(CheckFailed, match="1 sequences: fused, logits are off by 1.0$"):
        list(decode.measure(shape, (1,), spoiling, device="cpu", protocol=QUICK))


def test_a_layer_that_is_left_is_an_error_with_the_command(shape: decode_loop.Shape) -> None:
    class Report:
        fused, left = ("one",), {"another": "no kernel"}

        def __str__(self) -> str:
            return "one of two"

    leaving: Any = SimpleNamespace(apply=lambda _: Report())
    with pytest.raises(ToolError, match="^one of two\n.*python -m codegen.bench.decode build$"):
        next(decode.measure(shape, (1,), leaving, device="cpu", protocol=QUICK))


def test_the_specs_are_of_the_models_own_routers(integration: Any, tmp_path: Path) -> None:
    found = decode.specs(decode_loop.SHAPES, integration)
    for (name, text), model in zip(found.items(), decode_loop.SHAPES, strict=True):
        (tmp_path / name).write_text(text)
        spec = load_spec(tmp_path / name)
        known = load_spec(specs_folder() / f"{model}.yaml")
        assert (spec.hidden_size, spec.num_experts) == (known.hidden_size, known.num_experts)
        assert spec.logits_from == "rounded"
        assert spec.routing is not None and known.routing is not None
        for field in ("top_k", "scoring", "groups", "e_score_correction_bias", "routed_scaling_factor"):
            assert getattr(spec.routing, field) == getattr(known.routing, field), field


def test_a_way_to_run_experts_that_fails_is_left_out_with_its_reason(
    shape: decode_loop.Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step_us(_model: Any, _tokens: torch.Tensor, way: str, _steps: int) -> float:
        if way == "grouped_mm":
            raise RuntimeError("cannot be captured\nat length")
        return 7.0

    monkeypatch.setattr(decode, "_step_us", step_us)
    model, tokens = decode_loop.make(shape.config(), "cpu"), torch.zeros(1, 5)
    assert decode._tried(model, tokens, decode.EXPERTS, 4) == (
        {"batched_mm": 7.0},
        {"grouped_mm": "cannot be captured"},
    )
    with pytest.raises(ToolError, match="no way to run experts"):
        decode._tried(model, tokens, ("grouped_mm",), 4)


def test_a_run_writes_the_record(integration: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(
        chip="NVIDIA H200", sm=90, multiprocessors=1, l2_bytes=1, driver="1", torch="2", cuda_runtime="13", clocks={}
    )

    def measure(shape: decode_loop.Shape, _: Any, integration: Any, protocol: decode.Protocol) -> Any:
        assert protocol == decode.Protocol()
        return decode_measure(shape, (1, 2), integration, device="cpu", protocol=QUICK)

    decode_measure = decode.measure
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for name, instead in (("machine", lambda: machine), ("package_of", str), ("SHAPES", SMALL), ("measure", measure)):
        monkeypatch.setattr(decode, name, instead)
    monkeypatch.setenv("NORMGATE_COMMIT", "abc-dirty")
    command = ["run", "--out", str(tmp_path), "--record", str(tmp_path / "record.json")]
    with pytest.raises(ToolError, match="libnormgate.so: missing; build it: python -m codegen.bench.decode build$"):
        decode.cli.main(command, standalone_mode=False)
    (tmp_path / "normgate").mkdir()
    (tmp_path / "normgate" / "libnormgate.so").touch()
    decode.cli.main(command, standalone_mode=False)
    record = decode.DecodeRecord.model_validate_json((tmp_path / "record.json").read_bytes())
    assert (record.machine, record.source.commit, record.source.dirty) == (machine, "abc", True)
    assert record.transformers == importlib.metadata.version("transformers")
    assert {name: list(model.points) for name, model in record.models.items()} == dict.fromkeys(SMALL, [1, 2])


def test_a_transformers_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("transformers"), "__version__", "5.17.0")
    with pytest.raises(ToolError, match=r"^transformers 5\.17\.0 is installed, 5\.24 or newer is needed; install it"):
        decode_loop.transformers()
