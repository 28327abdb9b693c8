"""Whether a checkpoint's gate weight is quantized, by what its config says of the quantization."""

from __future__ import annotations

import re

from .config import Config

_GATE = re.compile(r"(^|\.)(gate|router|wg|classifier)(\.(weight|wg|proj|classifier))*$")


def quantizes_gate(config: Config) -> str:
    """The method that quantizes every layer that it can, the gate among them; "" where the gate is left as it is.

    bitsandbytes takes each Linear but those that llm_int8_skip_modules names (transformers
    integrations/bitsandbytes.py); mlx_lm, which writes no quant_method, each but those it gives as false. The other
    methods (fp8, gptq, awq, mxfp4, NVFP4) leave the gate alone, as the engines do that read them.
    """
    for place in config.around:
        for key in ("quantization_config", "quantization"):
            said = place.get(key)
            if not isinstance(said, dict):
                continue
            if said.get("quant_method") == "bitsandbytes":
                kept = said.get("llm_int8_skip_modules")
                return "" if _names_gate(kept if isinstance(kept, list) else []) else "bitsandbytes"
            if "quant_method" not in said and "bits" in said and "group_size" in said:
                return "" if _names_gate([layer for layer, how in said.items() if how is False]) else "MLX"
    return ""


def _names_gate(layers: list[object]) -> bool:
    return any(isinstance(layer, str) and _GATE.search(layer) for layer in layers)
