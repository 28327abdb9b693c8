"""Scoring and top-k: Routing's own rules, and the reference against a row at a time in Python floats."""

import dataclasses
import math

import pytest
import torch
from normgate import Routing, reference
from normgate.routing import SCORINGS, selection_key

N = 16
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(top_k=0), "top_k is 0, expected 1 to 32"),
        (dict(top_k=33), "top_k is 33, expected 1 to 32"),
        (
            dict(scoring="relu"),
            "scoring is 'relu', expected 'softmax' or 'softmax_of_chosen' or 'sigmoid' or 'sqrtsoftplus'",
        ),
        (dict(n_group=0), "n_group is 0, expected 1 or more"),
        (dict(topk_group=0, n_group=4), "topk_group is 0, expected 1 to n_group, 4"),
        (dict(topk_group=2), "topk_group is 2, expected 1 to n_group, 1"),
        (dict(n_group=4, group_score="mean"), "group_score is 'mean', expected 'top2_sum' or 'max'"),
        (dict(renormalize_epsilon=-1e-20), "renormalize_epsilon is -1e-20, expected 0 or more"),
        (dict(renormalize_floor=NAN), "renormalize_floor is nan, expected 0 or more"),
        (dict(softcap=-30.0), "softcap is -30.0, expected 0 or more"),
        (dict(routed_scaling_factor=0.0), "routed_scaling_factor is 0.0, expected more than 0"),
        (dict(ids_dtype=torch.int16), "ids_dtype is torch.int16, expected torch.int32 or torch.int64"),
        (
            dict(weights_dtype=torch.float16),
            "weights_dtype is torch.float16, expected torch.float32 or torch.bfloat16",
        ),
    ],
)
def test_values_that_do_not_fit(changes, message):
    with pytest.raises(ValueError) as refused:
        Routing(**{"top_k": 4, "scoring": "sigmoid", **changes})
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "routing, num_experts, message",
    [
        (Routing(8, "softmax"), 7, "top_k is 8, expected no more than the 7 experts that it chooses from"),
        (Routing(2, "softmax", n_group=4), 10, "n_group is 4, expected a divisor of 10 experts"),
        (
            Routing(5, "softmax", n_group=4, topk_group=2),
            8,
            "top_k is 5, expected no more than the 4 experts that it chooses from",
        ),
        (Routing(1, "sigmoid", n_group=8), 8, "n_group is 8, expected groups of 2 of the 8 experts or more"),
    ],
)
def test_experts_that_do_not_fit(routing, num_experts, message):
    with pytest.raises(ValueError) as refused:
        routing.check_num_experts(num_experts)
    assert str(refused.value) == message


def test_the_fewest_experts_that_fit():
    Routing(8, "softmax").check_num_experts(8)
    Routing(4, "softmax", n_group=4, topk_group=2).check_num_experts(8)
    Routing(1, "sigmoid", n_group=8, group_score="max").check_num_experts(8)


def test_selection_key_tells_apart_what_a_kernel_is_made_for():
    routing = Routing(8, "sigmoid", n_group=8, topk_group=4, renormalize=True, routed_scaling_factor=2.5)
    key = selection_key(routing, True, False, False)
    assert key == ("sigmoid", 8, True, 8, 4, "top2_sum", "sum", False, False, False, "int32", "float32", False, False)
    assert {key: 1}[tuple(key)] == 1, "hashable, as the plain tuple is"

    def changed(**changes):
        return selection_key(dataclasses.replace(routing, **changes), True, False, False)

    assert changed(routed_scaling_factor=1.0) == key, "a number of the call"
    assert changed(renormalize_epsilon=1e-20).renormalize == "bounded"
    assert changed(renormalize_floor=1e-12).renormalize == "bounded"
    assert changed(renormalize=False, renormalize_floor=1e-12).renormalize == ""
    assert changed(n_group=1, topk_group=1).group_score == ""
    assert changed(softcap=30.0).softcaps is True
    assert changed(ids_dtype=torch.int64, weights_dtype=torch.bfloat16)[10:12] == ("int64", "bfloat16")
    assert selection_key(routing, False, True, True)[2::7] == (False, True)


def scores_of(row, scoring):
    if scoring == "sigmoid":
        return [1 / (1 + math.exp(-value)) if value > -700 or value != value else 0.0 for value in row]
    if scoring == "sqrtsoftplus":
        return [math.sqrt(value if value > 700 else math.log1p(math.exp(value))) for value in row]
    largest = NAN if any(map(math.isnan, row)) else max(row)
    powers = [math.exp(value - largest) for value in row]
    return [power / sum(powers) for power in powers]


def best_first(values):
    """Places of the values from the largest to the smallest, NaN last, of equals the lower first."""
    return sorted(
        range(len(values)), key=lambda i: (math.isnan(values[i]), -values[i] if values[i] == values[i] else 0, i)
    )


def divide(a, b):
    return a / b if b else NAN if a == 0 or a != a else math.copysign(INF, a)


def by_definition(row, routing, bias=None, experts=None):
    """``(weights, ids)`` of one row of logits; ``experts`` is a hash layer's row of the table."""
    row = [-INF if value != value else value for value in row]
    if routing.softcap:
        row = [routing.softcap * math.tanh(value / routing.softcap) for value in row]
    by_logits = routing.scoring == "softmax_of_chosen"
    scores = row if by_logits else scores_of(row, routing.scoring)
    choices = [s + b for s, b in zip(scores, bias, strict=True)] if bias else scores
    ids = experts
    if ids is None:
        size = len(row) // routing.n_group
        groups = [choices[start : start + size] for start in range(0, len(row), size)]
        if routing.group_score == "max":
            group_scores = [group[best_first(group)[0]] for group in groups]
        else:
            group_scores = [sum(group[i] for i in best_first(group)[:2]) for group in groups]
        kept = set(range(routing.n_group))
        if routing.n_group > 1:
            kept = set(best_first(group_scores)[: routing.topk_group])
        ids = [i for i in best_first(choices) if i // size in kept][: routing.top_k]
    weights = [scores[i] for i in ids]
    if by_logits:
        weights = scores_of(weights, "softmax")
    weights = [0.0 if weight != weight else weight for weight in weights]
    if routing.renormalize:
        total = max(sum(weights) + routing.renormalize_epsilon, routing.renormalize_floor)
        weights = [divide(weight, total) for weight in weights]
    weights = [weight * routing.routed_scaling_factor for weight in weights]
    return [weight if math.isfinite(weight) else 0.0 for weight in weights], ids


GROUPS = {
    "no groups": {},
    "top2_sum": dict(n_group=4, topk_group=2),
    "max": dict(n_group=4, topk_group=3, group_score="max"),
}
WEIGHTS = {
    "as scored": {},
    "sum": dict(renormalize=True),
    "epsilon": dict(renormalize=True, renormalize_epsilon=0.25, routed_scaling_factor=2.5),
    "floor": dict(renormalize=True, renormalize_floor=0.9, routed_scaling_factor=0.5),
}


def agrees(logits, routing, bias=None, compute_dtype=torch.float64, tolerance=1e-13):
    weights, ids = reference.choose_experts(logits, routing, bias, compute_dtype=compute_dtype)
    wanted = [by_definition(row, routing, None if bias is None else bias.tolist()) for row in logits.tolist()]
    assert ids.tolist() == [ids for _, ids in wanted]
    wanted_weights = torch.tensor([weights for weights, _ in wanted], dtype=torch.float64).to(weights.dtype)
    torch.testing.assert_close(weights, wanted_weights, rtol=tolerance, atol=tolerance)
    return weights, ids


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("bias", [False, True])
def test_experts_and_weights_are_those_of_the_definition(bias, scoring, groups, weights, softcap):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20, N, generator=generator)
    bias = torch.randn(N, generator=generator) / 4 if bias else None
    routing = Routing(5, scoring, **GROUPS[groups], **WEIGHTS[weights], softcap=softcap)
    # Weights are float32 at least; what is computed in float64 differs by their rounding.
    oracle = agrees(logits, routing, bias, torch.float64, 1e-7)
    found = agrees(logits, routing, bias, torch.float32, 2e-6)
    assert oracle[0].dtype == found[0].dtype == torch.float32 and found[1].dtype == torch.int32
    assert found[0].is_contiguous() and found[1].is_contiguous()


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("scoring", SCORINGS)
def test_of_equals_the_lower_id_comes_first(scoring, groups):
    logits = torch.randint(0, 4, (200, N), generator=torch.Generator().manual_seed(0)).float()
    agrees(logits, Routing(6, scoring, **GROUPS[groups]), None, torch.float32, 1e-6)
    _, ids = agrees(torch.ones(3, N), Routing(6, scoring, **GROUPS[groups]), None, torch.float32, 1e-6)
    assert ids.tolist() == 3 * [list(range(6))]
    _, ids = agrees(torch.tensor([[-0.0, 0.0] * (N // 2)]), Routing(6, scoring), None, torch.float32, 1e-6)
    assert ids.tolist() == [list(range(6))], "-0 is 0"


@pytest.mark.parametrize("groups", GROUPS)
def test_equal_choices_of_unequal_scores(groups):
    # Scores in quarters, and biases that make up for them: every choice is 1.
    logits = torch.tensor([[math.log(p / (1 - p)) for p in (0.25, 0.5, 0.75, 0.5)] * 4])
    scores = logits.sigmoid()[0]
    routing = Routing(6, "sigmoid", **GROUPS[groups])
    weights, ids = reference.choose_experts(logits, routing, 1 - scores)
    assert ids.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert torch.equal(weights[0], scores[:6])


def spiked(*values):
    """Rows of ordinary logits with ``values`` in them, everywhere in turn."""
    rows = torch.linspace(-2, 2, N).repeat(N, 1)[:, torch.randperm(N, generator=torch.Generator().manual_seed(1))]
    for i in range(N):
        for step, value in enumerate(values):
            rows[i, (i + 3 * step) % N] = value
    return rows


SPECIAL = {
    "NaN": spiked(NAN),
    "three NaN": spiked(NAN, NAN, NAN),
    "-inf and NaN": spiked(-INF, NAN),
    "inf": spiked(INF),
    "two inf": spiked(INF, INF, -INF),
    "-inf": spiked(-INF, -INF),
    "large": spiked(1e4, -1e4),
    "all NaN": torch.full((2, N), NAN),
    "all inf": torch.full((2, N), INF),
    "all -inf": torch.full((2, N), -INF),
    "mostly NaN": torch.where(torch.arange(N) % 5 == 4, torch.arange(N).float(), NAN)[None],
    "mostly -inf": torch.where(torch.arange(N) % 5 == 4, torch.arange(N).float(), -INF)[None],
    "NaN and -inf": torch.where(torch.arange(N) % 2 == 0, NAN, -INF)[None],
}


@pytest.mark.parametrize("rows", SPECIAL)
@pytest.mark.parametrize("weights", ["as scored", "sum", "floor"])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("scoring", SCORINGS)
def test_ids_are_distinct_and_weights_finite_whatever_the_logits(scoring, groups, weights, rows):
    routing = Routing(6, scoring, **GROUPS[groups], **WEIGHTS[weights])
    # Softmax is chosen by logits, which know an order where scores have become NaN or 0.
    by_logits = scoring == "softmax" and groups != "top2_sum"
    found, ids = reference.choose_experts(SPECIAL[rows], routing)
    if not by_logits:
        agrees(SPECIAL[rows], routing, None, torch.float32, 1e-6)
    assert all(len(set(row)) == 6 and set(row) <= set(range(N)) for row in ids.tolist())
    assert found.isfinite().all()
    if rows == "all NaN":
        assert ids.tolist() == 2 * [list(range(6))]
        assert not found.any()


def test_a_nan_logit_counts_as_the_least_and_weighs_nothing():
    logits = torch.tensor([[NAN, -INF, -50.0, NAN, 1.0, -1.0]])
    for scoring in ("sigmoid", "sqrtsoftplus"):
        weights, ids = reference.choose_experts(logits, Routing(6, scoring, renormalize=True))
        assert ids.tolist() == [[4, 5, 2, 0, 1, 3]]
        assert weights[0, 3:].tolist() == [0, 0, 0] and weights.sum().item() == pytest.approx(1)
    # Its correction bias lifts it as any other's, and still it weighs nothing.
    bias = torch.tensor([100.0, 0, 0, 0, 0, 0])
    weights, ids = reference.choose_experts(logits, Routing(4, "sigmoid"), bias)
    assert ids.tolist() == [[0, 4, 5, 2]] and weights[0, 0] == 0


def test_softmax_is_chosen_by_logits_where_scores_are_equal():
    logits = torch.tensor([[100.0, -30.0, -20.0, -10.0, -20.0]])  # all but the first score 0 in float32
    weights, ids = reference.choose_experts(logits, Routing(4, "softmax"))
    assert ids.tolist() == [[0, 3, 2, 4]]
    assert weights.tolist() == [[1, 0, 0, 0]]


def test_nothing_overflows_and_nothing_small_is_lost():
    logits = torch.tensor([[1e30, 88.0, 90.0, -30.0, -80.0]])
    weights, ids = reference.choose_experts(logits, Routing(5, "sqrtsoftplus"))
    assert ids.tolist() == [[0, 2, 1, 3, 4]]
    wanted = [1e15, math.sqrt(90), math.sqrt(88), math.exp(-15), math.exp(-40)]
    assert weights[0].tolist() == pytest.approx(wanted, rel=1e-6)
    weights, _ = reference.choose_experts(logits, Routing(5, "softmax_of_chosen"))
    assert weights.tolist() == [[1, 0, 0, 0, 0]]


def test_renormalizing_nothing_gives_nothing():
    logits = torch.full((1, 4), -INF)
    weights, _ = reference.choose_experts(logits, Routing(2, "sigmoid", renormalize=True))
    assert weights.tolist() == [[0, 0]], "0 / 0"
    weights, _ = reference.choose_experts(-logits, Routing(2, "sqrtsoftplus", renormalize=True))
    assert weights.tolist() == [[0, 0]], "inf / inf"


def test_weights_are_rounded_once_to_their_dtype():
    logits = torch.randn(50, N, generator=torch.Generator().manual_seed(0))
    narrow = Routing(4, "softmax", renormalize=True, weights_dtype=torch.bfloat16, ids_dtype=torch.int64)
    weights, ids = reference.choose_experts(logits, narrow)
    wide = reference.choose_experts(logits, dataclasses.replace(narrow, weights_dtype=torch.float32))
    assert (weights.dtype, ids.dtype) == (torch.bfloat16, torch.int64)
    assert torch.equal(weights, wide[0].bfloat16()) and torch.equal(ids, wide[1])
    assert ids.is_contiguous()


def test_logits_are_read_as_they_were_rounded():
    logits = torch.tensor([[1.0, 1.0 + 2**-9, 0.5]])
    assert reference.choose_experts(logits, Routing(2, "sigmoid"))[1].tolist() == [[1, 0]]
    assert reference.choose_experts(logits.bfloat16(), Routing(2, "sigmoid"))[1].tolist() == [[0, 1]]


@pytest.mark.parametrize("scoring", SCORINGS)
def test_hash_layers_take_their_experts_from_the_table(scoring):
    generator = torch.Generator().manual_seed(0)
    tid2eid = torch.stack([torch.randperm(N, generator=generator)[:4] for _ in range(10)])
    tid2eid[3] = torch.tensor([-1, N, 2**40, 5])
    input_ids = torch.tensor([0, 9, 10, -1, 2**40, -(2**40), 3, 4])
    logits = torch.randn(len(input_ids), N, generator=generator)
    routing = Routing(4, scoring, renormalize=True, routed_scaling_factor=1.5)
    weights, ids = reference.choose_experts(logits, routing, None, tid2eid, input_ids)
    rows = [0, 9, 0, 0, 0, 0, 3, 4]
    experts = tid2eid[rows].tolist()
    experts[6] = [0, N - 1, N - 1, 5]
    assert ids.tolist() == experts
    wanted = [by_definition(row, routing, None, list_)[0] for row, list_ in zip(logits.tolist(), experts, strict=True)]
    torch.testing.assert_close(weights, torch.tensor(wanted), rtol=1e-6, atol=1e-7)


def test_no_rows():
    routing = Routing(4, "sigmoid", n_group=4, topk_group=2, renormalize=True)
    weights, ids = reference.choose_experts(torch.empty(0, N), routing, torch.zeros(N))
    assert weights.shape == ids.shape == (0, 4)
