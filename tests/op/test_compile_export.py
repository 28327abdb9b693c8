"""torch.compile and torch.export see one operator, with any number of tokens."""

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
