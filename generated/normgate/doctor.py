"""``python -m normgate doctor``: what runs here, which kernel each model gets, and a test against the reference.

Exit code 0: all is well; 1: something is wrong, which the last lines say. Without a CUDA device the CPU's operators
are tested, and that is no fault.
"""

import argparse
import ctypes
import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__, dispatch, ops
from .checking import WrongResult, checked
from .layer import NormGateLinear

TOKENS = (1, 16, 128, 1024)
"""Of which the variants are told: a decoding batch or two, and prefilling."""
_TESTED_TOKENS = (1, 17)


def main(arguments: list[str]) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__} doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args(arguments).json
    found = examine()
    print(json.dumps(found, indent=1) if as_json else text(found))
    return 1 if found["problems"] else 0


def examine() -> dict[str, Any]:
    """Everything that is told, as plain data; ``problems`` is empty where all is well."""
    chip = _chip()
    sm = None if chip is None else int(chip["sm"])
    library = _library()
    tests = {model: _self_test(model, "cpu" if chip is None else "cuda") for model in dispatch.models()}
    problems = [f"self-test of {model}: {failure}" for model, failure in tests.items() if failure]
    if chip is not None:
        problems += _misfits(chip, library)
    return {
        "versions": {
            "normgate": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda_runtime": torch.version.cuda,
            "cuda_driver": None if chip is None else chip["driver"],
        },
        "chip": chip,
        "library": library,
        "variants": {} if sm is None else {model: _variants(model, sm) for model in dispatch.models()},
        "self_test": {
            "device": "cpu" if chip is None else "cuda",
            "models": {model: failure or "right" for model, failure in tests.items()},
        },
        "problems": problems,
    }


def text(found: dict[str, Any]) -> str:
    """What :func:`examine` found, for a terminal."""
    chip, library, test = found["chip"], found["library"], found["self_test"]
    lines = ["versions", *(f"  {name:<14}{version or 'none'}" for name, version in found["versions"].items())]
    lines += ["chip", f"  {chip['name']}, sm_{chip['sm']}" if chip else "  no CUDA device"]
    lines += ["library"]
    if library["file"] is None:
        lines.append("  none beside the package; `python build.py` compiles it")
    else:
        code = [*(f"sm_{sm}" for sm in library["sms"]), *(f"PTX of sm_{sm}" for sm in library["ptx_sms"])]
        sms = ", ".join(code) or "SMs unknown: libnormgate.build.json is missing"
        symbol = "found" if library["stream_symbol"] else "not found (a CPU build of torch has none)"
        lines += [f"  {library['file']}", f"  {sms}", f"  torch's stream symbol: {symbol}"]
    for model, kernels in found["variants"].items():
        lines.append(f"variants of {model}")
        for kernel, served in kernels.items():
            lines.append(f"  {kernel}")
            lines += [f"    {tokens:>6} tokens  {variant}" for tokens, variant in served.items()]
    lines.append(f"self-test against float64 on {test['device']}, {' and '.join(map(str, _TESTED_TOKENS))} tokens")
    lines += [f"  {model:<24}{outcome}" for model, outcome in test["models"].items()]
    lines += [f"PROBLEM: {problem}" for problem in found["problems"]] or ["no problem found"]
    return "\n".join(lines)


def _chip() -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        return None
    driver_version: Any = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)
    version = driver_version()
    return {
        "name": torch.cuda.get_device_name(),
        "sm": dispatch.current_sm(),
        "driver": f"{version // 1000}.{version % 1000 // 10}" if version else None,
    }


def _library() -> dict[str, Any]:
    """The loaded file, the SMs that compiling wrote beside it, and whether it found torch's current stream."""
    if ops.LIBRARY is None:
        return {"file": None, "sms": [], "ptx_sms": [], "stream_symbol": False}
    try:
        stamp = json.loads(Path(ops.LIBRARY).with_name("libnormgate.build.json").read_text())
    except (OSError, ValueError):
        stamp = {}
    has_symbol = ctypes.CDLL(str(ops.LIBRARY)).normgate_has_stream_symbol
    return {
        "file": str(ops.LIBRARY),
        "sms": stamp.get("sms", []),
        "ptx_sms": stamp.get("ptx_sms", []),
        "stream_symbol": bool(has_symbol()),
    }


def _misfits(chip: dict[str, Any], library: dict[str, Any]) -> list[str]:
    """What keeps the kernels from running on a chip."""
    if library["file"] is None:
        return ["there is a CUDA device and no libnormgate.so; `python build.py --sm native` compiles it"]
    problems = []
    sm = chip["sm"]
    own = any(built <= sm and built // 10 == sm // 10 for built in library["sms"])
    known = library["sms"] or library["ptx_sms"]
    if known and not own and not any(built <= sm for built in library["ptx_sms"]):
        problems.append(f"the library holds no code for sm_{sm}; `python build.py --sm {sm}` compiles it")
    if not library["stream_symbol"]:
        problems.append(
            f"the library does not find the current stream of torch {torch.__version__}; torch 2.10 or newer has it"
        )
    return problems


def _variants(model: str, sm: int) -> dict[str, dict[int, str]]:
    """By kernel and token count: of the model's norm and gate, and of its whole path where there is one."""
    table = dispatch.model_table(model)
    kernels = [table.kernel, *([table.path_kernel] if table.path_kernel else [])]
    return {kernel: {tokens: dispatch.explain(kernel, tokens, sm).variant for tokens in TOKENS} for kernel in kernels}


def _self_test(model: str, device: str) -> str | None:
    """Calls of the model's layer on random inputs, each checked; what was wrong."""
    routes = dispatch.model_table(model).path_kernel is not None
    try:
        layer = NormGateLinear.from_model(model, routes=routes, device=device)
        _fill(layer)
        for tokens in _TESTED_TOKENS:
            _call(layer, tokens, device)
    except (WrongResult, RuntimeError) as error:
        return str(error)
    return None


def _fill(layer: NormGateLinear) -> None:
    for name, parameter in layer.named_parameters():
        if parameter.is_floating_point():
            scale = 1.0 if name.startswith("norm") else layer.hidden_size**-0.5
            parameter.normal_(std=scale)


def _call(layer: NormGateLinear, tokens: int, device: str) -> None:
    dtype = layer.gate.weight.dtype if layer.norm is None else layer.norm.weight.dtype

    def rows() -> Tensor:
        return torch.randn(tokens, layer.hidden_size, device=device).to(dtype)

    x = rows()
    residual = None if layer.residual_multiplier is None else rows()
    with torch.no_grad(), checked():
        if device == "cuda":
            torch.cuda.synchronize()  # weights may be read early
        image_mask = (
            None if layer.gate.e_score_correction_bias_vl is None else torch.arange(tokens, device=device) % 2 == 1
        )
        layer(x, residual, image_mask=image_mask)
