"""`python -m tests.models.ops PACKAGE MODEL...`: layers of a generated package against the oracle, a JSON line a model.

PACKAGE is a folder of `build.py generate`; where it holds a compiled library, that is loaded, and asked for the
functions of each model's kernels. On a GPU the kernels have to serve what `explain` says they do, without a fallback. The
oracle is that of tests/gpu: float64, written from the definitions.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
TOKENS = {"cpu": (1, 33), "cuda": (1, 2, 7, 16, 33, 65, 300, 2000)}
LOOKED_UP = (1, 16, 300, 8192)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.models.ops", description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--device", choices=TOKENS, default="cpu")
    given = parser.parse_args()
    os.environ["NORMGATE_TEST_PACKAGES"] = str(given.package)
    sys.path[:0] = [str(given.package.parent), str(ROOT), str(ROOT / "tests" / "gpu")]
    import normgate

    assert Path(normgate.__file__).resolve().parent == given.package.resolve(), f"{normgate.__file__} was imported"
    if given.device == "cuda":
        warnings.simplefilter("error", RuntimeWarning)  # that of a fallback
    for number, model in enumerate(given.models):
        torch.manual_seed(number)
        with torch.no_grad(), torch.device(given.device):
            print(json.dumps({"model": model, **_try(normgate, model, given.device)}), flush=True)
    return 0


def _try(normgate: Any, model: str, device: str) -> dict[str, Any]:
    """What the op's results were off by; `wrong` says where they were not right."""
    from path_oracle import Found

    table, found = normgate.dispatch.model_table(model), Found()
    try:
        if device == "cpu":
            _look_up(normgate, [name for name in (table.kernel, table.path_kernel) if name])
        for routes in (False, True) if table.path_kernel else (False,):
            for hash_layer in (False, True) if table.tid2eid_vocab_size else (False,):
                layer = normgate.NormGateLinear.from_model(model, routes=routes, hash_layer=hash_layer)
                _fill(layer)
                kernel = normgate.dispatch.kernel_table(table.path_kernel if routes else table.kernel)
                for tokens in TOKENS[device]:
                    if device == "cpu" or normgate.explain(kernel.kernel, tokens).variant != "reference":
                        found.include(_call(layer, kernel, table, tokens, f"{model}, {tokens} tokens"))
    except Exception as error:  # whatever it is, the other models are tried
        return {"wrong": f"{type(error).__name__}: {error}"}
    return {"logits_error": found.logits_error, "weight_error": found.weight_error, "ties": found.ties}


def _look_up(normgate: Any, kernels: list[str]) -> None:
    """AssertionError where the library, if there is one, has no function for these on an SM that it was built for."""
    if normgate.ops.LIBRARY is None:
        return
    from codegen.bench.native import Library

    library = Library(normgate.ops.LIBRARY)
    sms = [int(sm) for sm in library.built_sms().split("+")[0].split(",")]
    lacking = [(k, sm, n) for k in kernels for sm in sms for n in LOOKED_UP if library.select(k, sm, n) is None]
    assert not lacking, f"the library has no function for {lacking}"


def _fill(layer: Any) -> None:
    """Random weights; logits spread by about 1."""
    for name, parameter in layer.named_parameters():
        if name == "gate.tid2eid":
            first = torch.randint(0, layer.num_experts, (len(parameter), 1))
            parameter.copy_((first + 37 * torch.arange(layer.top_k)) % layer.num_experts)
            continue
        values = torch.randn(parameter.shape)
        if name == "norm.weight":
            values = 0.3 * values + (0.0 if layer.norm_order == "G" else 1.0)
        elif name == "gate.weight":
            values *= layer.hidden_size**-0.5
        elif name.startswith("gate.e_score"):
            values *= 0.25
        elif name == "gate.per_expert_scale":
            values = 0.5 + values.abs()
        parameter.copy_(values)


def _call(layer: Any, kernel: Any, table: Any, tokens: int, what: str) -> Any:
    """One call held against the oracle."""
    from path_oracle import Numbers, Oracle, Outputs, PathInputs

    dtype = getattr(torch, kernel.activation_dtype)

    def rows() -> Tensor:
        return torch.randn(tokens, layer.hidden_size).to(dtype)

    gate, routes = layer.gate, layer.routing is not None
    given: dict[str, Tensor | None] = {"x": rows(), "residual": None, "input_ids": None, "image_mask": None}
    if layer.residual_multiplier is not None:
        given["residual"] = rows()
    if routes and gate.tid2eid is not None:
        given["input_ids"] = torch.randint(0, len(gate.tid2eid), (tokens,))
    if routes and gate.e_score_correction_bias_vl is not None:
        given["image_mask"] = torch.arange(tokens) % 2 == 1
    got = layer(**given)
    if isinstance(got, Tensor):
        got = Outputs(None, None, None, None, got)
    elif len(got) == 2:
        got = Outputs(got[0], None, None, None, got[1])
    else:
        got = Outputs(**got._asdict())
    inputs = PathInputs(
        **given,
        norm_weight=None if layer.norm is None else layer.norm.weight,
        gate_weight=gate.weight,
        gate_bias=gate.bias,
        correction_bias=gate.e_score_correction_bias if routes else None,
        tid2eid=gate.tid2eid if routes else None,
        correction_bias_vl=gate.e_score_correction_bias_vl if routes else None,
        per_expert_scale=gate.per_expert_scale if routes else None,
    )
    numbers = replace(Numbers.of(table), eps=layer.eps or 0.0)
    return Oracle(kernel, inputs, numbers).check(got, what)


if __name__ == "__main__":
    sys.exit(main())
