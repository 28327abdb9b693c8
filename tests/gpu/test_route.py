"""The operator of the whole path and the layers that call it, on a GPU.

Against the reference in float64; eager, compiled, in graphs, exported; what the dispatch and the fallback make of it.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import normgate
import pytest
import torch
from normgate import NormGateLinear, Routed, reference
from packages import OTHERS, packages
from path_calls import run, same, strided
from path_oracle import Numbers, Outputs, PathInputs, check_selection, select
from test_numerics import SIGNIFICANDS, TIES

_seeds = itertools.count(5000)
# Each model with its layers that score, and those that look experts up.
LAYERS = [
    (model, hash_layer)
    for model in normgate.models()
    if (table := normgate.dispatch.model_table(model)).path_kernel
    for hash_layer in (False, True)
    if not hash_layer or table.tid2eid_vocab_size
]
COUNTS = (1, 5, 16, 17, 40, 65, 3000)
pytestmark = pytest.mark.skipif(bool(OTHERS), reason="operators are tested with the shipped package")
each = pytest.mark.parametrize(
    ("model", "hash_layer"), LAYERS, ids=[f"{model}{'-hash' * hash_layer}" for model, hash_layer in LAYERS]
)


@pytest.fixture(autouse=True)
def _library_loaded() -> None:
    assert normgate.ops.LIBRARY is not None, "the package under test has no library: python build.py"


def path_of(model: str) -> Any:
    return normgate.dispatch.kernel_table(normgate.dispatch.model_table(model).path_kernel)


def make_layer(model: str, hash_layer: bool = False) -> NormGateLinear:
    """The model's layer with random weights, its logits spread by about 1."""
    layer = NormGateLinear.from_model(model, routes=True, hash_layer=hash_layer, device="cuda")
    generator = torch.Generator("cuda").manual_seed(next(_seeds))
    for name, parameter in layer.named_parameters():
        if name == "gate.tid2eid":
            # Distinct in a row: 37 is coprime to the number of experts of every model.
            drawn = torch.randint(0, layer.num_experts, (len(parameter), 1), generator=generator, device="cuda")
            parameter.copy_((drawn + 37 * torch.arange(layer.top_k, device="cuda")) % layer.num_experts)
            continue
        values = torch.randn(parameter.shape, generator=generator, device="cuda")
        if name == "norm.weight":
            values = 0.3 * values + (0.0 if layer.norm_order == "G" else 1.0)
        elif name == "gate.weight":
            values *= layer.hidden_size**-0.5
        elif name.startswith("gate.e_score_correction_bias"):
            values *= 0.25
        elif name == "gate.per_expert_scale":
            values = 0.5 + values.abs()
        parameter.copy_(values)
    torch.cuda.synchronize()  # a kernel may read weights before the launch ahead of it has ended
    return layer


def make_rows(layer: NormGateLinear, count: int) -> dict[str, torch.Tensor]:
    """What a call of the layer takes, by name."""
    generator = torch.Generator("cuda").manual_seed(next(_seeds))
    dtype = layer.gate.weight.dtype if layer.norm is None else layer.norm.weight.dtype

    def normal() -> torch.Tensor:
        return torch.randn(count, layer.hidden_size, generator=generator, device="cuda").to(dtype)

    rows = {"x": normal()}
    if layer.residual_multiplier is not None:
        rows["residual"] = normal()
    if layer.gate.tid2eid is not None:
        vocabulary = len(layer.gate.tid2eid)
        rows["input_ids"] = torch.randint(0, vocabulary, (count,), generator=generator, device="cuda")
    if layer.gate.e_score_correction_bias_vl is not None:
        rows["image_mask"] = torch.rand(count, generator=generator, device="cuda") < 0.5
    return rows


def inputs_of(layer: NormGateLinear, rows: dict[str, torch.Tensor]) -> PathInputs:
    return PathInputs(
        x=rows["x"],
        residual=rows.get("residual"),
        norm_weight=None if layer.norm is None else layer.norm.weight,
        gate_weight=layer.gate.weight,
        gate_bias=layer.gate.bias,
        correction_bias=layer.gate.e_score_correction_bias,
        tid2eid=layer.gate.tid2eid,
        input_ids=rows.get("input_ids"),
        correction_bias_vl=layer.gate.e_score_correction_bias_vl,
        image_mask=rows.get("image_mask"),
        per_expert_scale=layer.gate.per_expert_scale,
    )


def numbers_of(model: str) -> Numbers:
    table = normgate.dispatch.model_table(model)
    return replace(Numbers.of(table), eps=table.eps)


def arguments_of(layer: NormGateLinear, rows: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The layer's call as one of `normgate.route` and of the reference."""
    has_residual = layer.residual_multiplier is not None
    return {
        **rows,
        "gate_weight": layer.gate.weight,
        "gate_bias": layer.gate.bias,
        "norm_weight": layer.norm.weight,
        "eps": layer.eps,
        "norm_order": layer.norm_order,
        "residual_multiplier": layer.residual_multiplier if has_residual else 1.0,
        "stream_multiplier": layer.stream_multiplier,
        "e_score_correction_bias": layer.gate.e_score_correction_bias,
        "e_score_correction_bias_vl": layer.gate.e_score_correction_bias_vl,
        "per_expert_scale": layer.gate.per_expert_scale,
        "tid2eid": layer.gate.tid2eid,
        "routing": layer.routing,
        "logits_from": layer.logits_from,
    }


def outputs_of(routed: Routed) -> Outputs:
    return Outputs(**routed._asdict())


def equal(one: Routed, other: Routed) -> bool:
    """Field by field, bit for bit, with None only where the other has it."""
    pairs = zip(one, other, strict=True)
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def check(kernel: Any, arguments: dict[str, Any], numbers: Numbers, got: Routed, what: str) -> tuple[int, float]:
    """Against the reference in float64: how many rows have other ids, by ties, and the error of the weights."""
    wide = {"logits_dtype": torch.float64, "compute_dtype": torch.float64}
    right = reference.route(**{**arguments, **wide})
    for name, tensor in outputs_of(got).given.items():
        assert tensor.is_contiguous() and len(tensor) == len(arguments["x"]), f"{what}: {name} is {tensor.shape}"
    assert (got.residual_out is None) == (right.residual_out is None), what
    assert right.residual_out is None or torch.equal(got.residual_out, right.residual_out), f"{what}: residual_out"
    difference = (got.normed_x.double() - right.normed_x.double()).abs()
    dtype = kernel.activation_dtype
    # Two roundings, at a tie of either of which fp32 may go the other way.
    beyond = int((difference > right.normed_x.double().abs() * 4 / SIGNIFICANDS[dtype]).sum())
    assert beyond == 0, f"{what}: {beyond} elements of normed_x"
    if not len(difference):
        return 0, 0.0
    differs = (difference > 0).double().mean().item()
    most = max(TIES[dtype], 3 / SIGNIFICANDS[dtype] / len(difference))
    assert differs < most, f"{what}: {differs:.1e} of normed_x differ"
    inputs = PathInputs(
        **{name: arguments.get(name) for name in ("x", "residual", "norm_weight", "gate_weight", "gate_bias")},
        correction_bias=arguments["e_score_correction_bias"],
        tid2eid=arguments["tid2eid"],
        input_ids=arguments.get("input_ids"),
        correction_bias_vl=arguments["e_score_correction_bias_vl"],
        image_mask=arguments.get("image_mask"),
        per_expert_scale=arguments["per_expert_scale"],
    )
    selected = select(kernel.selection, right.router_logits, inputs, numbers)
    found = check_selection(kernel, selected, inputs, numbers, outputs_of(got), what)
    others = (got.topk_ids != right.topk_ids).any(1)
    assert int(others.sum()) <= found.ties, f"{what}: {int(others.sum())} rows have not the reference's ids"
    assert torch.allclose(got.topk_weights[~others], right.topk_weights[~others], rtol=1e-5, atol=1e-5), what
    return found.ties, found.weight_error


@each
def test_layer_is_the_reference_and_takes_what_explain_says(
    model: str, hash_layer: bool, sm: int, record: dict[str, Any]
) -> None:
    kernel, numbers, layer = path_of(model), numbers_of(model), make_layer(model, hash_layer)
    shipped = next(package for package in packages() if model in package.models)
    ties, weight_error = 0, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no fallback
        for count in COUNTS:
            rows = make_rows(layer, count)
            got = layer(**rows)
            what = f"{model} at {count} tokens{', hashed' * hash_layer}"
            more, error = check(kernel, arguments_of(layer, rows), numbers, got, what)
            ties, weight_error = ties + more, max(weight_error, error)
            told = normgate.explain(kernel.kernel, count, sm)
            forced = run(shipped, kernel, told.function, inputs_of(layer, rows), numbers)
            differ = same(outputs_of(got), forced)
            assert not differ, f"{what}: {differ} are not those of {told.variant}, which explain names"
            assert equal(normgate.route(**arguments_of(layer, rows)), got), f"{what}: normgate.route"
    record.update(ties=ties, weight_error=weight_error)


@each
def test_no_tokens(model: str, hash_layer: bool) -> None:
    layer = make_layer(model, hash_layer)
    rows = make_rows(layer, 0)
    got, right = layer(**rows), reference.route(**arguments_of(layer, rows))
    for one, other in zip(got, right._replace(router_logits=None), strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one.shape, one.dtype) == (other.shape, other.dtype)
    assert got.topk_ids.shape == (0, layer.top_k)


@each
def test_rows_with_strides(model: str, hash_layer: bool) -> None:
    """Those that 16-byte loads can read, and others; of two dimensions more; repeated by a stride of 0."""
    layer = make_layer(model, hash_layer)
    for count, (before, after) in itertools.product((1, 6, 40, 65), ((8, 16), (1, 0), (8, 4), (3, 5))):
        rows = make_rows(layer, count)
        wide = {name: strided(t, before, after) if t.dim() == 2 else t for name, t in rows.items()}
        if "residual" in rows:
            wide["residual"] = strided(rows["residual"], after, before)
        assert equal(layer(**wide), layer(**rows)), f"{model} at {count} tokens, {before} before and {after} after"
    rows = make_rows(layer, 12)
    got = layer(**{name: tensor.unflatten(0, (2, 1, 6)) for name, tensor in rows.items()})
    flat = Routed(*(field if field is None else field.flatten(0, 2) for field in got))
    assert equal(flat, layer(**rows)), f"{model}: [2, 1, 6, hidden_size]"
    once = {name: tensor[:1].expand(5, *tensor.shape[1:]) for name, tensor in rows.items()}
    for name in once.keys() & {"input_ids", "image_mask"}:
        once[name] = once[name].contiguous()
    dense = {name: tensor.contiguous() for name, tensor in once.items()}
    assert equal(layer(**once), layer(**dense)), f"{model}: one row five times"


@each
def test_compiled_is_eager(model: str, hash_layer: bool) -> None:
    layer = make_layer(model, hash_layer)

    def step(rows: dict[str, torch.Tensor]) -> Routed:
        return layer(**{**rows, "x": rows["x"] * 2})

    torch._dynamo.reset()  # layers share their code, and only so many versions of it are kept
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for count in (5, 17, 65):
        rows = make_rows(layer, count)
        got = compiled(rows)
        assert type(got) is Routed and equal(got, step(rows)), f"{model} at {count} tokens"


@each
def test_cuda_graph_replays_follow_changed_inputs(model: str, hash_layer: bool) -> None:
    layer = make_layer(model, hash_layer)
    for count in (1, 5, 17, 65, 3000):
        rows = make_rows(layer, count)
        layer(**rows)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = layer(**rows)
        for replay in range(3):
            fresh = make_rows(layer, count)
            right = layer(**fresh)
            for name, tensor in rows.items():
                tensor.copy_(fresh[name])
            got.topk_ids.fill_(-1)
            got.topk_weights.fill_(float("nan"))
            got.normed_x.fill_(float("nan"))
            graph.replay()
            assert equal(got, right), f"{model} at {count} tokens, replay {replay}"


@pytest.mark.parametrize("model", ["deepseek-v3", "gpt-oss-120b"])
def test_exported_is_eager(model: str) -> None:
    layer = make_layer(model)
    tokens = {0: torch.export.Dim("tokens", min=2, max=8192)}
    example = make_rows(layer, 6)
    program = torch.export.export(layer, (), example, dynamic_shapes=dict.fromkeys(example, tokens)).module()
    for count in (6, 2, 33, 300):
        rows = make_rows(layer, count)
        assert equal(program(**rows), layer(**rows)), f"{model} at {count} tokens"


@pytest.mark.parametrize("count", [1, 8, 40, 100])
def test_back_to_back_calls_wait_for_each_other(count: int) -> None:
    """Overlapping launches: each call reads rows that the call before wrote, both of them."""
    layer = make_layer("deepseek-v3")
    rows = make_rows(layer, count)

    def chain(waits: Callable[[], None]) -> list[Routed]:
        x, residual = rows["x"], rows["residual"]
        results = []
        for _ in range(50):
            routed = layer(x, residual)
            waits()
            x, residual = routed.normed_x, routed.residual_out
            results.append(routed)
        return results

    expected = chain(torch.cuda.synchronize)
    for step, (one, other) in enumerate(zip(expected, chain(lambda: None), strict=True)):
        assert equal(one, other), f"call {step} of {count} tokens"


def test_routing_nobody_generated_falls_back_once_and_is_right() -> None:
    layer = make_layer("deepseek-v3")
    routing = replace(layer.routing, top_k=7, renormalize_floor=1.0)
    table = path_of("deepseek-v3")
    kernel = table._replace(selection=table.selection._replace(top_k=7))
    numbers = replace(numbers_of("deepseek-v3"), renormalize_floor=1.0)
    rows = make_rows(layer, 9)
    arguments = {**arguments_of(layer, rows), "routing": routing}
    with pytest.warns(RuntimeWarning, match="no kernel was generated for it.*build.py") as caught:
        got = normgate.route(**arguments)
    assert len(caught) == 1
    check(kernel, arguments, numbers, got, "the fallback")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(normgate.route(**arguments), got)


def test_wrong_calls_say_what_is_wrong_and_leave_the_process_well() -> None:
    scored, hashed = make_layer("deepseek-v3"), make_layer("deepseek-v4-flash", hash_layer=True)
    rows, tokens = make_rows(scored, 4), make_rows(hashed, 4)
    of_scored, of_hashed = arguments_of(scored, rows), arguments_of(hashed, tokens)
    residual, bias = rows["residual"], scored.gate.e_score_correction_bias
    table, input_ids = hashed.gate.tid2eid, tokens["input_ids"]
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (of_scored, {"x": rows["x"].float()}, "x is float32"),
        (of_scored, {"residual": residual.float()}, "residual is float32"),
        (of_scored, {"residual": residual[:3]}, "residual"),
        (of_scored, {"residual": residual[:, :-8]}, "residual"),
        (of_scored, {"residual": residual.T.contiguous().T}, "residual"),
        (of_scored, {"residual": residual.cpu()}, "residual"),
        (of_scored, {"residual": None, "residual_multiplier": 0.5}, "residual_multiplier"),
        (of_scored, {"norm_weight": of_scored["norm_weight"].float()}, "norm_weight is float32"),
        (of_scored, {"eps": None}, "eps"),
        (of_scored, {"gate_weight": of_scored["gate_weight"][:, :-8]}, "gate_weight"),
        (of_scored, {"e_score_correction_bias": bias.bfloat16()}, "e_score_correction_bias"),
        (of_scored, {"e_score_correction_bias": bias[:-1]}, "e_score_correction_bias"),
        (of_scored, {"e_score_correction_bias": bias.cpu()}, "e_score_correction_bias"),
        (of_scored, {"routing": None}, "e_score_correction_bias"),
        (of_scored, {"routing": replace(scored.routing, n_group=7)}, "n_group"),
        (of_hashed, {"tid2eid": table.int()}, "tid2eid"),
        (of_hashed, {"tid2eid": table[:, 1:].contiguous()}, "tid2eid"),
        (of_hashed, {"tid2eid": table[:0]}, "tid2eid"),
        (of_hashed, {"tid2eid": table.cpu()}, "tid2eid"),
        (of_hashed, {"tid2eid": None}, "input_ids"),
        (of_hashed, {"input_ids": None}, "input_ids"),
        (of_hashed, {"input_ids": input_ids[:3]}, "input_ids"),
        (of_hashed, {"input_ids": input_ids.int()}, "input_ids"),
        (of_hashed, {"e_score_correction_bias": torch.zeros(256, device="cuda")}, "e_score_correction_bias|tid2eid"),
    ]
    right = scored(**rows), hashed(**tokens)
    for arguments, changes, match in cases:
        with pytest.raises(RuntimeError, match=match):
            normgate.route(**{**arguments, **changes})
        assert equal(scored(**rows), right[0]) and equal(hashed(**tokens), right[1]), f"the call after {list(changes)}"
