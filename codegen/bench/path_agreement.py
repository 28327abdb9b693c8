"""Does a whole path choose the right experts and weigh them right? Asked in the chain, of every row."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..spec import RouterSpec
from . import path_inputs
from .agreement import Agreement, last_inputs, relative_error, replayed, ulp_limit, ulps_between
from .chain import Candidate, Chain, Outputs
from .native import PathArgs

UNROUNDED_TIE = 1e-6
ROUNDED_TIE = 1e-2
"""What two experts' choices may differ by, relative to one that is above 1, and be a tie: for what keeps the norm in
fp32, and for what rounds on the way. Weights may be off by ten times that.
"""
_WEIGHTS = 10.0
_ROUNDED = 1e-2  # relative error of tensors that a peer makes of values rounded elsewhere than ours
_BF16 = 2.0**-8


class Right:
    """The right answer for the last inputs of a chain, in float64, and what experts are chosen by."""

    def __init__(self, spec: RouterSpec, package: ModuleType, chain: Chain, path: PathArgs) -> None:
        self.spec = spec
        self.reference = package.reference
        self.per_expert_scale = path.per_expert_scale
        self.routing = path_inputs.routing_for(spec, package)
        self.routed: Any = path_inputs.expected(spec, package, *last_inputs(chain), path)
        if self.routing is not None:
            self.choice, self.group_gap = self._choices(path.e_score_correction_bias)

    def _choices(self, correction_bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What experts are chosen by, -inf outside the best groups; how far a row's groups are from a tie."""
        routing, logits = self.routing, self.routed.router_logits
        if routing.softcap > 0:
            logits = routing.softcap * (logits / routing.softcap).tanh()
        choice: Tensor = self.reference.score(logits, routing.scoring)
        if correction_bias is not None:
            choice = choice + correction_bias.double()
        elif routing.scoring == "softmax" and (routing.n_group == 1 or routing.group_score == "max"):
            choice = logits
        if routing.n_group == 1:
            return choice, None
        by_group = choice.view(choice.shape[0], routing.n_group, -1)
        group_scores = by_group.topk(1 if routing.group_score == "max" else 2, dim=-1).values.sum(-1)
        ranked = group_scores.sort(dim=-1, descending=True, stable=True)
        outside = torch.ones_like(group_scores, dtype=torch.bool)
        outside.scatter_(1, ranked.indices[:, : routing.topk_group], False)
        choice = by_group.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(1)
        if routing.topk_group == routing.n_group:
            return choice, None
        return choice, ranked.values[:, routing.topk_group - 1] - ranked.values[:, routing.topk_group]

    def problem_of_ids(self, ids: Tensor, tie: float, ordered: bool) -> str:
        """What is wrong with ids [num_tokens, top_k]; ordered: whether the first has to be the largest."""
        ids, num_experts = ids.long(), self.choice.shape[1]
        if bool(((ids < 0) | (ids >= num_experts)).any()):
            return "an expert's id is out of range"
        in_order = ids.sort(dim=-1).values
        if bool((in_order[:, 1:] == in_order[:, :-1]).any()):
            return "an expert is chosen twice"
        wanted = self.choice.gather(1, self.routed.topk_ids.long())
        found = self.choice.gather(1, ids)
        if not ordered:
            found = found.sort(dim=-1, descending=True).values
        allowed = tie * wanted.abs().clamp(min=1.0)
        wrong = ((found - wanted).abs() > allowed).any(dim=1)
        if self.group_gap is not None:
            wrong &= self.group_gap > 2 * allowed.amax(dim=1)
        count = int(wrong.sum())
        return f"{count} of {wrong.numel()} rows have other experts than a tie of {tie:.0e} allows" if count else ""

    def weights_of(self, ids: Tensor) -> Tensor:
        """The right weights of these experts."""
        rows = torch.arange(ids.shape[0], device=ids.device)
        logits: Tensor = self.routed.router_logits
        weights: Tensor = self.reference.choose_experts(
            logits,
            self.routing,
            None,
            ids.long(),
            rows,
            compute_dtype=torch.float64,
            per_expert_scale=self.per_expert_scale,
        )[0]
        return weights


def agree(candidate: Candidate, chain: Chain, right: Right) -> Agreement:
    """Run a short chain and hold its last result against `right`. The error is that of the weights, or of logits where
    no experts are chosen.
    """
    got, problem = replayed(candidate, chain)
    if problem:
        return Agreement(problem=problem)
    spec, ulps = right.spec, None
    problem = _problem_of_rows(candidate, got, right)
    if candidate.ours and got.normed_x is not None:
        ulps = ulps_between(got.normed_x, right.routed.normed_x)
        if ulps > ulp_limit(spec):
            problem = problem or f"normed_x is off by {ulps} units in the last place, allowed {ulp_limit(spec)}"
    if right.routing is None:
        assert got.router_logits is not None
        error = relative_error(got.router_logits, right.routed.router_logits)
        allowed = _WEIGHTS * candidate.tolerance
        return Agreement(error, ulps, problem or ("" if error <= allowed else f"logits are off by {error:.1e}"))
    if got.topk_ids is None or got.topk_weights is None:
        return Agreement(problem="no experts are chosen")
    problem = problem or right.problem_of_ids(got.topk_ids, candidate.tolerance, candidate.ours)
    if problem:
        return Agreement(None, ulps, problem)
    wanted = right.weights_of(got.topk_ids).double()
    found = got.topk_weights.double()
    allowed = _WEIGHTS * candidate.tolerance + _BF16 * (got.topk_weights.dtype == torch.bfloat16)
    off = float((found - wanted).abs().max())
    if off > allowed:
        problem = f"topk_weights are off by {off:.1e}, allowed {allowed:.0e}"
    return Agreement(relative_error(found, wanted), ulps, problem)


def _problem_of_rows(candidate: Candidate, got: Outputs, right: Right) -> str:
    """What is wrong with residual_out and a peer's normed_x: ours have the sum's very bits."""
    for name, found, wanted in (
        ("residual_out", got.residual_out, right.routed.residual_out),
        ("normed_x", got.normed_x, right.routed.normed_x),
    ):
        if wanted is None:
            continue
        if found is None:
            return f"there is no {name}"
        if candidate.ours:
            if name == "residual_out" and not torch.equal(found, wanted):
                return "residual_out is not the rounded sum"
        elif relative_error(found, wanted) > _ROUNDED:
            return f"{name} is off by {relative_error(found, wanted):.1e}"
    return ""
