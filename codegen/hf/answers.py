"""What may be asked of whoever runs `add`: a flag for each thing that a config.json may leave open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..spec import RIGHT, SCORINGS
from ..strict_yaml import plain_value, shown

TID2EID = "routing.tid2eid.vocab_size"
CORRECTION = "routing.e_score_correction_bias"
IMAGE_BIAS = "routing.e_score_correction_bias_vl"
SCALES = "routing.per_expert_scale"
RENORMALIZE = "routing.renormalize"
N_GROUP = "routing.groups.n_group"
TOPK_GROUP = "routing.groups.topk_group"
GROUP_SCORE = "routing.groups.score"
SOFTCAP = "routing.softcap"


@dataclass(frozen=True)
class Answer:
    """A flag of `add`.

    key: the spec's key it answers; help: for the command line; choices: the words it takes and their meaning,
    or None where it takes a number of type `number`; needed: whether it is asked for where nothing says it.
    """

    key: str
    help: str
    choices: Mapping[str, object] | None = None
    number: type[int | float] = int
    needed: bool = True

    @property
    def kind(self) -> type:
        """Type of the values that a config's keys give for it, other than words."""
        return bool if self.choices else self.number

    @property
    def metavar(self) -> str:
        """What follows the flag: the choices, or N."""
        return "|".join(self.choices) if self.choices else "N"


DTYPES = {"bfloat16": "bfloat16", "float16": "float16"}
_YES_NO = {"yes": True, "no": False}

ANSWERS: dict[str, Answer] = {
    "hidden-size": Answer("hidden_size", "the router's input width"),
    "num-experts": Answer("num_experts", "rows of the gate weight"),
    "top-k": Answer("routing.top_k", "experts chosen for a token"),
    "norm-order": Answer(
        "norm.order",
        "A: weight * round(xhat), as Llama; B: round(weight * xhat); G: round((1 + weight) * xhat), as "
        "Gemma; none: the kernel before has normed x already",
        {"A": "A", "B": "B", "G": "G", "none": None},
    ),
    "norm-eps": Answer("norm.eps", "added to the mean square, such as 1e-6", number=float),
    "residual": Answer("residual", "whether x is to be added to a residual before the norm", _YES_NO),
    "residual-multiplier": Answer(
        "residual.multiplier", "multiplies x before that add (1 when left out)", number=float, needed=False
    ),
    "residual-stream-multiplier": Answer(
        "residual.stream_multiplier", "multiplies the residual before it (1 when left out)", number=float, needed=False
    ),
    "activation-dtype": Answer("dtypes.activation", "dtype of x and normed_x", DTYPES),
    "gate-weight-dtype": Answer(
        "dtypes.gate_weight",
        "dtype of the gate weight as stored: the safetensors header tells",
        {**DTYPES, "float32": "float32"},
    ),
    "logits-dtype": Answer(
        "dtypes.logits",
        "dtype of router_logits (float32 when left out)",
        {"float32": "float32", "bfloat16": "bfloat16"},
        needed=False,
    ),
    "gate-bias": Answer("gate_bias", "whether the gate is a Linear with a bias", _YES_NO),
    "e-score-correction-bias": Answer(CORRECTION, "whether a bias per expert takes part in choosing", _YES_NO),
    "tid2eid-vocab-size": Answer(TID2EID, "rows of the hash layers' tid2eid table; 0, or left out: no hash layers"),
    "scoring": Answer(
        "routing.scoring",
        "an expert's score: softmax over all, then top k; softmax_of_chosen: top k of the logits, then softmax over "
        "these; none: the engine chooses experts itself, from the logits",
        {"none": None} | {scoring: scoring for scoring in SCORINGS},
    ),
    "n-group": Answer(N_GROUP, "groups of experts, of which only the best are chosen from; 1: no groups"),
    "topk-group": Answer(TOPK_GROUP, "groups chosen from"),
    "group-score": Answer(
        GROUP_SCORE,
        "a group's own score: the sum of its two best experts' or the best one's",
        {"top2_sum": "top2_sum", "max": "max"},
    ),
    "renormalize": Answer(RENORMALIZE, "whether the chosen experts' weights are divided by their sum", _YES_NO),
    "renormalize-epsilon": Answer(
        f"{RENORMALIZE}.epsilon", "added to that sum, such as 1e-20 (0 when left out)", number=float, needed=False
    ),
    "renormalize-floor": Answer(
        f"{RENORMALIZE}.floor",
        "that sum is at least this, such as 1e-12 (0 when left out)",
        number=float,
        needed=False,
    ),
    "routed-scaling-factor": Answer("routing.routed_scaling_factor", "multiplies the weights, such as 1", number=float),
    "softcap": Answer(
        SOFTCAP,
        "logits become N * tanh(logits / N) before the scoring; 0, or left out: they do not",
        number=float,
        needed=False,
    ),
    "e-score-correction-bias-vl": Answer(
        IMAGE_BIAS,
        "whether tokens of images are chosen for by a correction bias of their own (no when left out)",
        _YES_NO,
        needed=False,
    ),
    "per-expert-scale": Answer(
        SCALES,
        "whether weights are multiplied by a factor of their expert's at the end (no when left out)",
        _YES_NO,
        needed=False,
    ),
    "router-logits": Answer(
        "routing.router_logits",
        "whether logits are an output beside the chosen (no when left out)",
        _YES_NO,
        needed=False,
    ),
    "ids-dtype": Answer(
        "routing.ids_dtype",
        "dtype of the chosen ids (int32 when left out)",
        {"int32": "int32", "int64": "int64"},
        needed=False,
    ),
    "weights-dtype": Answer(
        "routing.weights_dtype",
        "dtype of the chosen weights (float32 when left out)",
        {"float32": "float32", "bfloat16": "bfloat16"},
        needed=False,
    ),
}
"""The flags of `add` by name, without dashes in front: the answers to what a config does not say."""

FLAGS = {answer.key: flag for flag, answer in ANSWERS.items()}

OF_SELECTION = frozenset(
    key
    for key in FLAGS
    if key.startswith("routing.") and key not in ("routing.top_k", CORRECTION, TID2EID, "routing.scoring")
)
"""Keys that say how experts are chosen, and so nothing where the engine does it itself."""


def answered(answers: Mapping[str, str], problems: list[str]) -> dict[str, object]:
    """The answers by the spec's keys, their words turned into values; `...` for a word that is no answer."""
    values: dict[str, object] = {}
    for flag, word in answers.items():
        answer = ANSWERS.get(flag)
        if answer is None:
            problems.append(f"--{flag}: unknown, one of --{', --'.join(ANSWERS)} would be right")
            continue
        value = answer.choices.get(word, ...) if answer.choices else plain_value(word)
        if answer.number is float and type(value) is int:
            value = float(value)
        if answer.choices is None and type(value) is not answer.number:
            value = ...
        if value is ...:
            right = ", ".join(answer.choices) if answer.choices else RIGHT[answer.key]
            problems.append(f"--{flag}: {shown(word)} given, {right} would be right")
        values[answer.key] = None if answer.key == TID2EID and value == 0 else value
    return values
