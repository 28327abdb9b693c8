"""The plugins' contract with vLLM and SGLang, held against the engines' own source, which is read and never imported.

    python -m tests.integrations.contract            downloads both engines, pinned by hash, writes the record
    python -m tests.integrations.contract --check    writes nothing; exit code 1 where the record says otherwise

NORMGATE_VLLM_SOURCE and NORMGATE_SGLANG_SOURCE name a checkout, an installed package or an unpacked archive instead (the folder
that holds vllm/ or sglang/); then nothing is downloaded and nothing is recorded.
"""

import ast
import hashlib
import json
import os
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
RECORD = ROOT / "docs" / "measured" / "engine-contracts.json"
CACHE = ROOT / "build" / "engines"

Read = Callable[[str], str]  # a file of the engine by its path in the package


class Archive(NamedTuple):
    """A release on PyPI, and the folder of the engine's package in it."""

    engine: str
    version: str
    file: str
    sha256: str
    package: str


ARCHIVES = {
    "vllm": Archive(
        "vllm",
        "0.33.0",
        "vllm-0.33.0.tar.gz",
        "f4c33c2503d52bb411146afa9618a4f48bed68912f617e6803ac8d76e4c74112",
        "vllm-0.33.0/vllm/",
    ),
    "sglang": Archive(
        "sglang",
        "0.5.23",
        "sglang-0.5.23-cp312-cp312-manylinux_2_34_x86_64.whl",
        "8d257a319395b322bb1be327d05e5528859358153c8563b04c0a4a3c8af164b6",
        "sglang/",
    ),
}


def source_of(engine: str) -> Read | None:
    """What the environment names, or else the archive where it was downloaded before; else None."""
    named = os.environ.get(f"NORMGATE_{engine.upper()}_SOURCE")
    if named:
        return lambda path: (Path(named) / engine / path).read_text()
    archive = ARCHIVES[engine]
    path = CACHE / archive.file
    return reader(path, archive.package) if path.is_file() else None


def reader(path: Path, package: str) -> Read:
    if path.suffix == ".whl":
        wheel = zipfile.ZipFile(path)
        return lambda name: wheel.read(package + name).decode()
    # Read once, front to back: looking a member up in a compressed tar goes through all of it.
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.name.endswith(".py")}
        texts = {name.removeprefix(package): file.read().decode() for name, file in files.items() if file}
    return texts.__getitem__


def download(archive: Archive) -> Path:
    """The archive, from PyPI where it is not in the cache yet. ValueError where its hash is another."""
    path = CACHE / archive.file
    if not path.is_file():
        accepts = {"Accept": "application/vnd.pypi.simple.v1+json"}
        with urllib.request.urlopen(urllib.request.Request(_index(archive.engine), headers=accepts)) as answer:
            urls = {file["filename"]: file["url"] for file in json.load(answer)["files"]}
        with urllib.request.urlopen(urls[archive.file]) as answer:
            content = answer.read()
        found = hashlib.sha256(content).hexdigest()
        if found != archive.sha256:
            raise ValueError(f"{archive.file}: sha256 is {found}, expected {archive.sha256}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path


def _index(engine: str) -> str:
    return f"https://pypi.org/simple/{engine}/"


def claims(engine: str, read: Read) -> dict[str, bool]:
    """Each thing that the plugin takes for granted, and whether the source says so."""
    return dict(_vllm(read) if engine == "vllm" else _sglang(read))


def _vllm(read: Read) -> Iterator[tuple[str, bool]]:
    from normgate.integrations.vllm import FAMILIES

    plugins = read("plugins/__init__.py")
    yield "plugins of the group vllm.general_plugins are called", "'vllm.general_plugins'" in _text(plugins)
    loader = read("model_executor/model_loader/base_loader.py")
    arguments = ["self", "vllm_config", "model_config", "prefix"]
    yield (
        "BaseModelLoader.load_model takes the configuration",
        _arguments(loader, "BaseModelLoader.load_model") == arguments,
    )
    body = _text(loader, "BaseModelLoader.load_model")
    order = ("self.load_weights(", "process_weights_after_loading(", "return model.eval()")
    yield "BaseModelLoader.load_model returns the model with its weights", _in_order(body, *order)
    runner = read("v1/worker/gpu_model_runner.py")
    yield (
        "the model runner loads through it, with vllm_config by name",
        "model_loader.load_model(vllm_config=self.vllm_config" in _text(runner),
    )
    config = _text(read("config/vllm.py"), "VllmConfig.compute_hash")
    yield (
        "additional_config is in the key of the compile cache",
        "additional_config_hash = safe_hash(json.dumps(additional_config" in config,
    )
    yield (
        "compute_hash is not kept",
        "cache" not in "".join(_decorators(read("config/vllm.py"), "VllmConfig.compute_hash")),
    )
    yield (
        "pass_config.fuse_allreduce_rms",
        "fuse_allreduce_rms: bool" in _text(read("config/compilation.py"), "PassConfig"),
    )
    yield "VLLM_BATCH_INVARIANT", "VLLM_BATCH_INVARIANT" in read("envs.py")

    norms = read("model_executor/layers/layernorm.py")
    for kind in ("RMSNorm", "GemmaRMSNorm"):
        for method in ("forward_native", "forward_cuda"):
            name = f"{kind}.{method}"
            yield f"{name}(x, residual)", _arguments(norms, name) == ["self", "x", "residual"]
        yield f"{kind} keeps variance_epsilon", "self.variance_epsilon = eps" in _text(norms, f"{kind}.__init__")
    order = (
        "x = x + x_residual",
        "x_residual = x.to(orig_dtype)",
        "torch.rsqrt(",
        "x = x.to(weight.dtype) * weight",
        "return (x.to(orig_dtype), x_residual)",
    )
    yield (
        "RMSNorm rounds before its weight multiplies",
        _in_order(_text(read("ir/ops/layernorm.py"), "fused_add_rms_norm"), *order),
    )
    yield (
        "GemmaRMSNorm multiplies by 1 + weight in float32",
        "weight = self.weight.float() + 1.0" in _text(norms, "GemmaRMSNorm.forward_native"),
    )
    gate = read("model_executor/layers/fused_moe/router/gate_linear.py")
    yield "GateLinear.forward(x)", _arguments(gate, "GateLinear.forward") == ["self", "x"]
    body = _text(gate, "GateLinear.forward")
    yield (
        "GateLinear returns a pair if return_bias",
        "return output if not self.return_bias else (output, output_bias)" in body,
    )
    yield "GateLinear's logits are of out_dtype", "output = output.to(self.out_dtype)" in body
    yield (
        "a GateLinear that is not quantized is of UnquantizedLinearMethod",
        "isinstance(self.quant_method, UnquantizedLinearMethod)" in _text(gate, "GateLinear.__init__"),
    )

    moe = read("model_executor/layers/fused_moe/runner/moe_runner.py")
    arguments = ["self", "hidden_states", "router_logits", "input_ids", "shared_experts_input"]
    yield "MoERunner.forward(hidden_states, router_logits)", _arguments(moe, "MoERunner.forward") == arguments
    arguments = ["self", "hidden_states", "router_logits", "shared_experts_input", "input_ids"]
    yield (
        "MoERunner._forward_impl(hidden_states, router_logits)",
        _arguments(moe, "MoERunner._forward_impl") == arguments,
    )
    order = (
        "if self.gate is not None:",
        "if self._fse_fuse_gate:",
        "else:",
        "router_logits, _ = self.gate(hidden_states)",
    )
    yield (
        "MoERunner._forward_impl calls the gate if it holds one",
        _in_order(_text(moe, "MoERunner._forward_impl"), *order),
    )
    yield (
        "the opaque operator calls _forward_impl of the runner",
        "layer._forward_impl(hidden_states, router_logits" in _text(moe, "_moe_forward"),
    )

    for family in FAMILIES:
        source = read(family.source)
        layer = _text(source, f"{family.layer_class}.forward")
        call = f"hidden_states, residual = self.{family.norm}(hidden_states, residual)"
        yield (
            f"{family.layer_class} calls {family.norm}, then {family.block} on what it gives",
            _straight(layer, call, f"self.{family.block}("),
        )
        yield (
            f"{family.layer_class}.{family.block} is a {family.block_class}",
            _assigned(source, family.layer_class, family.block, family.block_class),
        )
        yield (
            f"{family.block_class}.{family.gate} is a GateLinear",
            f"self.{family.gate} = GateLinear(" in _text(source, f"{family.block_class}.__init__"),
        )
        block = _text(source, f"{family.block_class}.forward")
        argument = _arguments(source, f"{family.block_class}.forward")[1]
        call = f"self.{family.gate}({argument})"
        if f"gate=self.{family.gate}" in _text(source, f"{family.block_class}.__init__"):
            call = f"self.experts(hidden_states={argument}, router_logits={argument})"
        before, called, _ = block.partition(call)
        yield (
            f"{family.block_class} has its gate called on its input, as it is",
            bool(called) and _rebound(before, argument) <= {"view", "sequence_parallel_chunk"},
        )


def _sglang(read: Read) -> Iterator[tuple[str, bool]]:
    from normgate.integrations.sglang import FAMILIES, LOAD_MODEL

    plugins = read("srt/plugins/__init__.py")
    yield (
        "plugins of the group sglang.srt.plugins are called, then hooks applied",
        "'sglang.srt.plugins'" in _text(plugins)
        and _in_order(_text(plugins, "load_plugins"), "func()", "HookRegistry.apply_hooks()"),
    )
    registry = read("srt/plugins/hook_registry.py")
    yield (
        "HookRegistry.register(target, hook, hook_type)",
        _arguments(registry, "HookRegistry.register")[:4] == ["cls", "target", "hook", "hook_type"],
    )
    wrapper = _text(registry, "_wrap_fn")
    yield (
        "an AFTER hook gets result and arguments, and None keeps the result",
        _in_order(
            wrapper,
            "hook_type == HookType.AFTER",
            "modified = hook(result, *args, **kwargs)",
            "return modified if modified is not None else result",
        ),
    )
    module, kind, method = LOAD_MODEL.removeprefix("sglang.").rsplit(".", 2)
    runner = read(module.replace(".", "/") + ".py")
    body = _text(runner, f"{kind}.{method}")
    yield (
        f"{kind}.{method}() sets self.model",
        _arguments(runner, f"{kind}.{method}") == ["self"] and "self.model = loaded.model" in body,
    )
    context = read("srt/runtime_context.py")
    for name in ("get_exec", "get_lora", "get_parallel"):
        yield f"runtime_context.{name}()", _text(context, name) != "" and _arguments(context, name) == []
    for setting in (
        "get_exec().deterministic.enable_deterministic_inference",
        "get_lora().enable_lora",
        "get_parallel().attn_dp_size",
    ):
        yield f"the model runner itself reads {setting}", setting in _text(runner)

    norm = read("srt/layers/layernorm.py")
    arguments = ["self", "x", "residual", "post_residual_addition", "quant_linear"]
    yield (
        "RMSNorm.forward_cuda(x, residual, post_residual_addition)",
        _arguments(norm, "RMSNorm.forward_cuda") == arguments,
    )
    body = _text(norm, "RMSNorm.__init__")
    for name in (
        "variance_epsilon",
        "variance_size_override",
        "fp32_residual",
        "override_orig_dtype",
        "has_weight",
        "cast_x_before_out_mul",
    ):
        yield f"RMSNorm.{name}", f"self.{name} = " in body
    yield (
        "RMSNorm._quant_linear and x_pad_to_multiple",
        "_quant_linear: " in _text(norm, "RMSNorm") and "self.x_pad_to_multiple = " in body,
    )
    read_residual = read("srt/layers/layer_boundary/residual/add_norm.py")
    yield (
        "a plain residual is added by the norm's call",
        "return norm(hidden_states, residual, post_residual_addition)"
        in _text(read_residual, "_update_and_read_residual_plain"),
    )
    linear = read("srt/layers/linear.py")
    body = _text(linear, "ReplicatedLinear.forward")
    yield "ReplicatedLinear returns a pair", "return (output, output_bias)" in body

    gates = {
        "deepseek_v2": ("MoEGate", True),
        "glm4_moe": ("Glm4MoeGate", True),
        "qwen3_moe": ("ReplicatedLinear", False),
        "gpt_oss": ("TinyGemmLinear", False),
    }
    for family in FAMILIES:
        source = read(family.source)
        layer = _text(source, f"{family.layer_class}.forward")
        order = ("hidden_states = self.ffn_boundary.prepare(hidden_states, forward_batch)", f"self.{family.block}(")
        yield f"{family.layer_class} prepares the input of its FFN, then calls {family.block}", _in_order(layer, *order)
        yield (
            f"{family.layer_class} adds the residual by {family.norm}",
            f"(ffn, {family.norm}" in _text(source, family.layer_class)
            or f"(ffn, self.{family.norm}" in _text(source, family.layer_class),
        )
        yield (
            f"{family.layer_class}.{family.norm} is an RMSNorm",
            f"self.{family.norm} = RMSNorm(" in _text(source, f"{family.layer_class}.__init__"),
        )
        yield (
            f"{family.layer_class}.{family.block} is a {family.block_class}",
            _assigned(source, family.layer_class, family.block, family.block_class),
        )
        gate, alone = gates[Path(family.source).stem]
        yield (
            f"{family.block_class}.{family.gate} is a {gate}",
            f"self.{family.gate} = {gate}(" in _text(source, f"{family.block_class}.__init__"),
        )
        if alone:
            body = _text(source, f"{gate}.forward")
            yield (
                f"{gate} returns logits alone, float32",
                "return logits" in body and "float32" in body and "(logits" not in body,
            )
        block = _text(source, f"{family.block_class}.forward_normal")
        argument = "router_input" if family.gate == "router" else "hidden_states"
        called = f"self.{family.gate}({argument}"
        before = block[: block.find(called)]
        yield (
            f"{family.block_class} calls its gate on its input, as it is",
            called in block and _rebound(before, "hidden_states") <= {"view"},
        )


def _find(source: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    node: ast.AST = ast.parse(source)
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef)
        node = next(found for found in ast.walk(node) if isinstance(found, kinds) and found.name == part)
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    return node


def _text(source: str, name: str = "") -> str:
    """Of the whole, or of a class, a function or `Class.method`, as Python would write it, comments left out.

    Empty where there is no such thing: what is sought in it is then not found.
    """
    try:
        return ast.unparse(_find(source, name) if name else ast.parse(source))
    except StopIteration:
        return ""


def _arguments(source: str, name: str) -> list[str]:
    try:
        found = _find(source, name)
    except StopIteration:
        return []
    return [argument.arg for argument in found.args.args] if isinstance(found, ast.FunctionDef) else []


def _decorators(source: str, name: str) -> list[str]:
    return [ast.unparse(decorator) for decorator in _find(source, name).decorator_list]


def _in_order(text: str, *parts: str) -> bool:
    at = 0
    for part in parts:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def _straight(text: str, call: str, then: str) -> bool:
    """Whether `then` follows `call`, with nothing that makes another hidden_states between them."""
    _, _, after = text.partition(call)
    first = next((line for line in after.splitlines() if then in line or "hidden_states =" in line), "")
    return then in first


def _assigned(source: str, layer: str, attribute: str, block: str) -> bool:
    """Whether a layer makes the attribute of that class, or of the class in its own `<attribute>_cls`."""
    made = _text(source, f"{layer}.__init__")
    by_class = f"self.{attribute} = self.{attribute}_cls(" in made
    return f"self.{attribute} = {block}(" in made or (
        by_class and f"{attribute}_cls: type[nn.Module] = {block}" in _text(source, layer)
    )


def _rebound(text: str, name: str) -> set[str]:
    """What functions the name is bound to the results of."""
    found = set()
    for line in text.splitlines():
        left, is_assignment, right = line.strip().partition(" = ")
        if is_assignment and left == name:
            found.add(right.partition("(")[0].rpartition(".")[2])
    return found


def record(engine: str, read: Read) -> dict[str, object]:
    archive = ARCHIVES[engine]
    return {"version": archive.version, "file": archive.file, "sha256": archive.sha256, "claims": claims(engine, read)}


def main(arguments: list[str]) -> int:
    sys.path.insert(0, str(ROOT / "generated"))
    found = {}
    for engine, archive in ARCHIVES.items():
        read = source_of(engine) or reader(download(archive), archive.package)
        found[engine] = record(engine, read)
        for claim, holds in claims(engine, read).items():
            print(f"{engine} {'holds' if holds else 'FAILS'}: {claim}")
    failed = not all(holds for entry in found.values() for holds in dict(entry["claims"]).values())
    if any(os.environ.get(f"NORMGATE_{engine.upper()}_SOURCE") for engine in ARCHIVES):
        return int(failed)
    text = json.dumps(found, indent=2) + "\n"
    if "--check" in arguments:
        return int(failed or RECORD.read_text() != text)
    RECORD.write_text(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
