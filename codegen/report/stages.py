"""A router path as the stages of its launch: what each moves and computes, as the picture of a model shows it."""

from __future__ import annotations

from dataclasses import dataclass

from ..problem import ACTIVATION_BYTES, ELEMENT_BYTES, Problem, Selection

_ADD_FLOPS = {"add": 1, "scaled_add": 2, "scaled_sum": 3}  # of an element: the sum, and what is multiplied before


@dataclass(frozen=True)
class Stage:
    """key: add, norm, gate, scoring or choice. reads, writes: tensors, of memory; what a stage hands to the next stays
    on the chip. fixed_bytes: of a launch, whatever the token count; token_bytes, flops: of a token. work: what is done
    where that is no multiplying and adding.
    """

    key: str
    name: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    fixed_bytes: int = 0
    token_bytes: int = 0
    flops: int = 0
    work: str = ""

    def bytes_at(self, num_tokens: int) -> int:
        return self.fixed_bytes + num_tokens * self.token_bytes


def stages(problem: Problem) -> list[Stage]:
    """The stages in their order. Each tensor is counted once, at the first stage that reads it or the one that writes
    it: together they are the bytes of `bench.roofline`, and those of the stages around norm and gate.
    """
    hidden, experts, row = problem.hidden_size, problem.num_experts, problem.hidden_size * ACTIVATION_BYTES
    found = []
    if problem.residual:
        found.append(
            Stage(
                "add",
                "residual add",
                ("x", "residual"),
                ("residual_out",),
                token_bytes=3 * row,
                flops=hidden * _ADD_FLOPS[problem.residual],
            )
        )
    if problem.has_norm:
        # A square and its sum, the row's factor, the weight.
        reads = ("norm weight",) if found else ("x", "norm weight")
        token = row * (1 if found else 2)
        found.append(Stage("norm", "RMSNorm", reads, ("normed_x",), row, token, 4 * hidden))
    weight = experts * (hidden + problem.gate_bias) * problem.gate_weight_bytes
    found.append(
        Stage(
            "gate",
            "gate",
            ("x",) * (not found) + ("gate weight",) + ("gate bias",) * problem.gate_bias,
            ("router_logits",) * problem.returns_logits,
            weight,
            row * (not found) + experts * problem.logit_bytes * problem.returns_logits,
            2 * experts * hidden,
        )
    )
    if problem.selection:
        found += _selection(problem.selection, experts)
    return found


def _selection(chosen: Selection, experts: int) -> list[Stage]:
    softmax_of_chosen = chosen.scoring == "softmax_of_chosen"
    groups = f" of the best {chosen.topk_group} of {chosen.n_group} groups" if chosen.n_group > 1 else ""
    scoring = Stage(
        "scoring",
        "softmax" if softmax_of_chosen else chosen.scoring,
        work=f"{chosen.top_k if softmax_of_chosen else experts} scores a token",
    )
    choice = Stage(
        "choice",
        f"top {chosen.top_k}{groups}",
        ("correction bias",) * chosen.correction_bias + ("tid2eid (hash layers)",) * chosen.hashes,
        ("topk_weights", "topk_ids"),
        experts * 4 * chosen.correction_bias,
        chosen.top_k * (ELEMENT_BYTES[chosen.weights_dtype] + ELEMENT_BYTES[chosen.ids_dtype]),
        work=f"{chosen.top_k} of {experts} a token",
    )
    return [choice, scoring] if softmax_of_chosen else [scoring, choice]
