"""Specs of models that nobody has, drawn from all that a spec may say.

    python tests/gpu/random_specs.py [--seed 0] [--count 12] DIR
    python build.py $(printf -- '--spec %s ' DIR/*.yaml) --out build/random --sm native
    NORMGATE_TEST_PACKAGES=build/random/normgate python -m pytest tests/gpu

What models have in common, whole tiles of rows and experts in fours, hides what goes wrong without it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from random import Random
from typing import Any

from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from codegen import output  # noqa: E402
from codegen.spec import SCORINGS, RouterSpec, dump_spec  # noqa: E402

SM_TARGETS = (80, 90)


def random_spec(random: Random, name: str) -> RouterSpec:
    """A legal one. What one key says may forbid what another does; then all are drawn again."""
    while True:
        try:
            return RouterSpec.model_validate(_drawn(random, name))
        except ValidationError:
            continue


def _drawn(random: Random, name: str) -> dict[str, Any]:
    def one(*choices: Any) -> Any:
        return random.choice(choices)

    def seldom(value: Any, otherwise: Any = None) -> Any:
        return value if random.random() < 0.25 else otherwise

    activation = one("bfloat16", "bfloat16", "float16")
    num_experts = one(
        random.randint(2, 40), random.randint(41, 1024), 12 * random.randint(2, 60), 8 * random.randint(2, 128)
    )
    divisors = [n for n in range(2, 17) if num_experts % n == 0]
    n_group = random.choice(divisors) if divisors and random.random() < 0.5 else None
    groups = (
        {"n_group": n_group, "topk_group": random.randint(1, n_group), "score": one("max", "top2_sum")}
        if n_group
        else None
    )
    normed = random.random() < 0.9
    return {
        "name": name,
        "sources": ("drawn at random",),
        "hidden_size": one(
            8 * random.randint(1, 60),
            8 * random.randint(61, 1024),
            32 * random.randint(16, 256),
            1024 * random.randint(1, 8),
        ),
        "num_experts": num_experts,
        "activation_dtype": activation,
        "gate_weight_dtype": one(activation, activation, "float32"),
        "logits_dtype": seldom("bfloat16", "float32"),
        "residual": one(None, {}, {}, {"multiplier": 0.22}, {"multiplier": -0.5, "stream_multiplier": 1.75})
        if normed
        else None,
        "norm": {"order": one("A", "B", "G"), "eps": one(1e-5, 1e-6)} if normed else None,
        "gate_bias": seldom(True, False),
        "logits_from": seldom("rounded", "unrounded") if normed else "unrounded",
        "routing": {
            "top_k": min(one(1, 2, 3, 5, 6, 8, 10, 16, 22, 32), num_experts),
            "e_score_correction_bias": one(True, False),
            "scoring": one(*SCORINGS),
            "groups": groups,
            "renormalize": seldom({"epsilon": one(0.0, 1e-20, 1e-6)}),
            "routed_scaling_factor": seldom(2.5, 1.0),
            "softcap": seldom(one(2.0, 30.0)),
            "per_expert_scale": seldom(True, False),
            "router_logits": seldom(True, False),
            "ids_dtype": seldom("int64", "int32"),
            "weights_dtype": seldom("bfloat16", "float32"),
        },
        "sm_targets": SM_TARGETS,
        "batch_invariant": seldom(True, False),
        # What spills is as right as what does not, and the build need not note it among the shipped specs.
        "allow_spills": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=12)
    asked = parser.parse_args()
    random = Random(asked.seed)
    specs = [random_spec(random, f"random-{asked.seed}-{number}") for number in range(asked.count)]
    asked.folder.mkdir(parents=True, exist_ok=True)
    for spec in specs:
        output.replace_whole(asked.folder / f"{spec.name}.yaml", dump_spec(spec).encode())


if __name__ == "__main__":
    main()
