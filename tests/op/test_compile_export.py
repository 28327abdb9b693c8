"""torch.compile and torch.export see one operator, with any number of tokens."""

import io

import normgate
import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

EPS = 1e-6
K, N = 64, 12


def weights():
    torch.manual_seed(0)
    return torch.randn(K).bfloat16(), torch.randn(N, K).bfloat16(), torch.randn(N).bfloat16()


def normgate_calls(graph):
    return [str(node.target) for node in graph.nodes if "normgate" in str(node.target)]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize("logits_from", ["unrounded", "rounded"])
def test_compile_gives_one_op_and_equal_results(logits_from):
    norm_weight, gate_weight, gate_bias = weights()

    def function(x):
        return normgate.norm_gate(
            2 * x, norm_weight, gate_weight, gate_bias, eps=EPS, norm_order="A", logits_from=logits_from
        )

    graphs = []

    def keep(module, _inputs):
        graphs.append(module.graph)
        return module.forward

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=aot_autograd(fw_compiler=keep))
    for tokens in (5, 2, 33, 16, 17):
        x = torch.randn(tokens, K).bfloat16()
        assert all(torch.equal(a, b) for a, b in zip(compiled(x), function(x), strict=True))
    assert [normgate_calls(graph) for graph in graphs] == [["normgate.norm_gate.default"]]


def test_token_count_does_not_recompile():
    norm_weight, gate_weight, _ = weights()

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def function(x):
        normed_x, _ = normgate.norm_gate(x, norm_weight, gate_weight, eps=EPS, norm_order="B")
        return normgate.gate(normed_x, gate_weight)

    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (4, 3, 64, 1000):
            assert function(torch.randn(tokens, K).bfloat16()).shape == (tokens, N)


def test_unbacked_token_count():
    # Not even 0 and 1 are compiled apart where the caller asks for one graph.
    norm_weight, gate_weight, _ = weights()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x):
        return normgate.norm_gate(x, norm_weight, gate_weight, eps=EPS, norm_order="B")[1]

    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (4, 1, 0, 17):
            x = torch.randn(tokens, K).bfloat16()
            torch._dynamo.decorators.mark_unbacked(x, 0)
            assert function(x).shape == (tokens, N)


def test_compiled_call_keeps_a_row_stride():
    norm_weight, gate_weight, _ = weights()

    def function(wide):
        return normgate.norm_gate(wide[:, :K], norm_weight, gate_weight, eps=EPS, norm_order="B")

    wide = torch.randn(6, 3 * K).bfloat16()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(wide), function(wide), strict=True))


def test_bad_call_under_compile_names_the_argument():
    norm_weight, gate_weight, _ = weights()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x):
        return normgate.norm_gate(x, norm_weight, gate_weight, eps=EPS, norm_order="B")

    with pytest.raises(Exception, match="x has dtype torch.float32, expected torch.bfloat16"):
        function(torch.randn(4, K))


ROUTING = normgate.Routing(
    4, "sigmoid", n_group=4, topk_group=2, renormalize=True, renormalize_epsilon=1e-20, routed_scaling_factor=2.5
)


def equal(found, wanted):
    pairs = list(zip(found, wanted, strict=True))
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def test_compiled_route_is_one_op_with_the_fields_asked_for():
    norm_weight, gate_weight, gate_bias = weights()
    bias = torch.randn(N)

    def function(x, residual):
        return normgate.route(
            2 * x,
            gate_weight,
            norm_weight=norm_weight,
            eps=EPS,
            norm_order="A",
            residual=residual,
            gate_bias=gate_bias,
            e_score_correction_bias=bias,
            routing=ROUTING,
        )

    graphs = []

    def keep(module, _inputs):
        graphs.append(module.graph)
        return module.forward

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=aot_autograd(fw_compiler=keep))
    for tokens in (5, 2, 33, 16, 17):
        x, residual = torch.randn(2, tokens, K).bfloat16()
        found = compiled(x, residual)
        assert type(found) is normgate.Routed and found.router_logits is None
        assert equal(found, function(x, residual))
    assert [normgate_calls(graph) for graph in graphs] == [["normgate.route.default"]]


def test_token_count_of_route_does_not_recompile():
    norm_weight, gate_weight, _ = weights()
    table = torch.stack([torch.randperm(N)[:4] for _ in range(20)])
    routing = normgate.Routing(4, "sqrtsoftplus", renormalize=True)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x, residual, input_ids):
        arguments = dict(norm_weight=norm_weight, eps=EPS, norm_order="B", routing=routing)
        hashed = dict(tid2eid=table, input_ids=input_ids)
        return normgate.route(x, gate_weight, residual=residual, **arguments, **hashed).topk_weights

    # Not even 0 and 1 are compiled apart, nor is a residual with as many rows as x.
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (4, 1, 0, 17):
            x, residual = torch.randn(2, tokens, K).bfloat16()
            rows = (x, residual, torch.randint(0, 20, (tokens,)))
            for tensor in rows:
                torch._dynamo.decorators.mark_unbacked(tensor, 0)
            assert function(*rows).shape == (tokens, 4)


def test_compiled_route_keeps_the_row_strides():
    norm_weight, gate_weight, _ = weights()

    def function(wide):
        x, residual = wide[:, :K], wide[:, K : 2 * K]
        arguments = dict(norm_weight=norm_weight, eps=EPS, norm_order="B", routing=ROUTING)
        return normgate.route(x, gate_weight, residual=residual, residual_multiplier=0.5, **arguments)

    wide = torch.randn(6, 3 * K).bfloat16()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    assert equal(compiled(wide), function(wide))


def test_bad_route_under_compile_names_the_argument():
    _, gate_weight, _ = weights()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x):
        return normgate.route(x, gate_weight, residual=x.float(), routing=ROUTING)

    with pytest.raises(Exception, match="normgate::route: residual has dtype torch.float32, expected torch.bfloat16"):
        function(torch.randn(4, K).bfloat16())


@pytest.mark.parametrize("model, hash_layer", [("routed", False), ("hashed", False), ("hashed", True)])
def test_export_of_a_whole_path(example_tables, model, hash_layer):
    layer = normgate.NormGateLinear.from_model(model, hash_layer=hash_layer, routes=True)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    if hash_layer:
        layer.gate.tid2eid.copy_(torch.stack([torch.randperm(N)[:6] for _ in range(100)]))

    def inputs(tokens):
        x, residual = torch.randn(2, tokens, K).bfloat16()
        if hash_layer:
            return dict(x=x, input_ids=torch.randint(0, 100, (tokens,)))
        return dict(x=x, residual=residual) if model == "routed" else dict(x=x)

    rows = {0: torch.export.Dim("num_tokens", min=0, max=1 << 20)}
    example = inputs(8)
    program = torch.export.export(layer, (), example, dynamic_shapes=dict.fromkeys(example, rows))
    assert normgate_calls(program.graph) == ["normgate.route.default"]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for tokens in (0, 1, 8, 100):
        given = inputs(tokens)
        found = loaded(**given)
        assert type(found) is normgate.Routed
        assert equal(found, layer(**given))


@pytest.mark.parametrize("model", ["hashed", "biased", "normed-before"])
def test_export_with_any_number_of_tokens(example_tables, model):
    layer = normgate.NormGateLinear.from_model(model)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    dynamic = ({0: torch.export.Dim("num_tokens", min=0, max=1 << 20)},)
    program = torch.export.export(layer, (torch.randn(8, K).bfloat16(),), dynamic_shapes=dynamic)
    assert len(normgate_calls(program.graph)) == 1
    for tokens in (0, 1, 8, 100):
        x = torch.randn(tokens, K).bfloat16()
        found, wanted = as_tuple(program.module()(x)), as_tuple(layer(x))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def as_tuple(outputs):
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
