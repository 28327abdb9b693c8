"""Compiling a package, on a real one of two kernels and no torch; no GPU needed."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from codegen import arch, compile, output, toolkit
from codegen.errors import CheckFailed, ToolError
from codegen.manifest import Group, Kernel, Manifest, Source, Variant, hashes, sha256
from codegen.resources import BuildReport, Row, Usage, collapse, parse, spilling

ROOT = Path(__file__).parents[2]
HEADER = "#pragma once\n#define NG_SCALE 2.0f\n"
ADD = """\
#include "scale.h"
extern "C" __global__ void ng_add(float* x) { x[threadIdx.x] += NG_SCALE; }
"""
SUM = """\
extern "C" __global__ void ng_sum(float* x) {
  __shared__ float partial[64];
  partial[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = partial[threadIdx.x ^ 1];
}
extern "C" int launch_sum() { return 0; }
"""
TABLE = """\
#include <cuda_runtime_api.h>
#include "scale.h"
extern "C" void ng_add(float*);
extern "C" void ng_sum(float*);
extern "C" int ng_private() { return 1; }
extern "C" __attribute__((visibility("default"))) float ng_scale() { return NG_SCALE; }
extern "C" __attribute__((visibility("default"))) const char* ng_built_sms() {
  return ""
#ifdef NORMGATE_SM_80
      "80,"
#endif
#ifdef NORMGATE_SM_90
      "90,"
#endif
      ;
}
// Keeps both kernels and the runtime linked; -1 is returned before either is touched.
extern "C" __attribute__((visibility("default"))) int ng_launch(int which) {
  if (which < 0) return -1;
  const void* kernel = which ? (const void*)ng_sum : (const void*)ng_add;
  return (int)cudaLaunchKernel(kernel, dim3(1), dim3(32), nullptr, 0, nullptr);
}
"""
# 80 values live at once in the 32 registers that 2048 threads an SM leave a thread.
SPILLING = """\
extern "C" __global__ void __launch_bounds__(1024, 2) ng_add(float* x) {
  float a[80];
#pragma unroll
  for (int i = 0; i < 80; i++) a[i] = x[i * threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 80; i++) x[i * 7 + threadIdx.x] = a[i] * a[(i * 13) % 80];
}
"""
Build = Callable[..., BuildReport]


def write_package(folder: Path, add: str = ADD, header: str = HEADER, allow_spills: bool = False) -> None:
    files: dict[str, str | bytes] = {
        "csrc/include/scale.h": header,
        "csrc/kernels/add.sm80.cu": add,
        "csrc/kernels/sum.sm90.cu": SUM,
        "csrc/table.cpp": TABLE,
    }
    sources = (
        Source("csrc/kernels/add.sm80.cu", (80, 90), allow_spills, ("ng_add",)),
        Source("csrc/kernels/sum.sm90.cu", (90,), False, ("ng_sum",)),
        Source("csrc/table.cpp"),
    )
    manifest = Manifest("0.1.0", {}, hashes(files), sources, kernels={}, models={})
    output.write({**files, "manifest.json": manifest.text()}, folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildReport]:
    """A package in a folder with a blank in its name, built once for sm_80 and sm_90."""
    root = tmp_path_factory.mktemp("a place")
    write_package(root / "pkg")
    return root, compile.compile_package(root / "pkg", build_dir=root / "build")


@pytest.fixture
def project(built: tuple[Path, BuildReport], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Build]:
    """The built package put back as it was, and a function that builds it again."""
    root = built[0]
    write_package(root / "pkg")

    def build(**options: object) -> BuildReport:
        return compile.compile_package(root / "pkg", build_dir=root / "build", **options)  # type: ignore[arg-type]

    build()
    return root, build


def call(library: Path, function: str, restype: str) -> str:
    """Call a function of the library in another process: dlopen keeps one that was replaced in this."""
    code = (
        "import ctypes, sys; f = getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])\n"
        f"f.restype = ctypes.{restype}; print(f(-1))"
    )
    done = subprocess.run([sys.executable, "-c", code, library, function], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def stamps(root: Path) -> dict[str, int]:
    """The objects' and both libraries' time stamps."""
    paths = [*root.glob("build/obj/**/*.o"), root / "build/libnormgate.so", root / "pkg/libnormgate.so"]
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in paths}


def remade(root: Path, before: dict[str, int]) -> set[str]:
    return {path for path, stamp in stamps(root).items() if before.get(path) != stamp}


ALL_LIBRARIES = {"build/libnormgate.so", "pkg/libnormgate.so"}
ADD_O, SUM_O, TABLE_O = (
    f"build/obj/csrc/{name}.o" for name in ("kernels/add.sm80.cu", "kernels/sum.sm90.cu", "table.cpp")
)


def test_builds_a_library_that_loads(built: tuple[Path, BuildReport]) -> None:
    root, report = built
    assert report.library == root / "pkg/libnormgate.so"
    assert (report.sms, report.ptx_sms, report.compiled, report.warnings) == ((80, 90), (90,), 4, ())
    library = ctypes.CDLL(str(report.library))
    assert library.ng_launch(-1) == -1
    library.ng_built_sms.restype = ctypes.c_char_p
    assert library.ng_built_sms() == b"80,90,"
    stamp = json.loads((root / "pkg/libnormgate.build.json").read_text())
    assert stamp["library"] == sha256((root / "pkg/libnormgate.so").read_bytes())
    assert (stamp["sms"], stamp["ptx_sms"], stamp["torch"]) == ([80, 90], [90], None)
    names = {path.name for path in (root / "pkg").iterdir()}
    assert names == {"csrc", "manifest.json", "libnormgate.so", "libnormgate.build.json"}


def test_only_marked_functions_are_exported(built: tuple[Path, BuildReport]) -> None:
    if shutil.which("nm") is None:
        pytest.skip("needs nm of binutils")
    done = subprocess.run(["nm", "-D", "--defined-only", built[1].library], capture_output=True, text=True, check=True)
    assert {line.split()[-1] for line in done.stdout.splitlines()} == {
        "ng_launch",
        "ng_scale",
        "ng_built_sms",
    }


def test_code_for_each_sm_and_ptx_of_the_newest_only(built: tuple[Path, BuildReport]) -> None:
    library = built[1].library
    assert listed("--list-elf", library) == ["sm_80", "sm_90", "sm_90"]
    assert listed("--list-ptx", library) == ["sm_90", "sm_90"]


def listed(flag: str, library: Path) -> list[str]:
    cuobjdump = toolkit.find_toolkit().root / "bin/cuobjdump"
    if not cuobjdump.is_file():
        pytest.skip("needs cuobjdump, which this toolkit lacks")
    done = subprocess.run([cuobjdump, flag, library], capture_output=True, text=True, check=True)
    return sorted(re.findall(r"\.(sm_\d+)\.", done.stdout))


def test_ptx_alone(project: tuple[Path, Build]) -> None:
    """Of each source's newest target; what is not machine code has no report, and the stamp says so."""
    root, build = project
    report = build(machine_code=False)
    assert (report.sms, report.ptx_sms, report.rows) == ((), (90,), ())
    assert json.loads((root / "pkg/libnormgate.build.json").read_text())["sms"] == []
    assert listed("--list-elf", report.library) == []
    assert listed("--list-ptx", report.library) == ["sm_90", "sm_90"]
    assert compile.reported(root / "pkg", root / "build") == []


def test_ptx_is_of_each_kernels_own_newest_target(tmp_path: Path) -> None:
    """A kernel that leaves the package's newest target out still runs on newer chips."""
    name, functions = "norm", ("norm_sm80", "norm_sm90")
    sources = (
        Source("csrc/kernels/norm.sm80.cu", (80,), False, functions[:1]),
        Source("csrc/kernels/norm.sm90.cu", (90,), False, functions[1:]),
        Source("csrc/kernels/gate.sm80.cu", (80,), False, ("gate_sm80",)),
    )
    groups = tuple(
        Group((sm,), (Variant("only", function, 1, None),)) for sm, function in zip((80, 90), functions, strict=True)
    )
    kernels = {
        name: Kernel(("a-model",), groups),
        "gate": Kernel(("b-model",), (Group((80,), (Variant("only", "gate_sm80", 1, None),)),)),
    }
    manifest = Manifest("0.1.0", {}, {}, sources, kernels=kernels, models={})

    def ptx(sms: tuple[int, ...]) -> list[int | None]:
        return [chosen.ptx_sm for chosen in compile._select(manifest, sms).sources]

    assert ptx((80, 90)) == [None, 90, 80]
    assert ptx((80,)) == [80, 80]
    assert compile._select(manifest, "all").ptx_sms == (80, 90)
    alone = compile._select(manifest, "all", machine_code=False)
    assert ([chosen.ptx_sm for chosen in alone.sources], alone.machine_code_sms) == ([80, 90, 80], ())


def test_report(built: tuple[Path, BuildReport]) -> None:
    report = built[1]
    assert [(row.usage.function, row.usage.sm) for row in report.rows] == [
        ("ng_add", 80),
        ("ng_add", 90),
        ("ng_sum", 90),
    ]
    assert [row.usage.smem for row in report.rows] == [0, 0, 256]
    for row in report.rows:
        assert row.usage.registers and row.object_bytes > 1000 and row.seconds > 0.1
        assert row.usage.spill == row.usage.stack == 0
    text = json.dumps(report.data())
    assert json.loads(text)["rows"][2]["function"] == "ng_sum"
    assert str(built[0]) not in text


def test_what_was_reported_is_known_later_of_the_same_sources_only(project: tuple[Path, Build]) -> None:
    root, build = project
    report = build()
    assert compile.reported(root / "pkg", root / "build") == list(report.rows)
    assert compile.reported(root / "pkg", root / "elsewhere") == []
    path = root / "pkg" / "manifest.json"
    path.write_text(path.read_text().replace("\n", " \n", 1))
    assert compile.reported(root / "pkg", root / "build") == []


def test_second_build_does_nothing_and_knows_as_much(
    project: tuple[Path, Build], built: tuple[Path, BuildReport]
) -> None:
    root, build = project
    before = stamps(root)
    started = time.monotonic()
    report = build()
    assert time.monotonic() - started < 1.0
    assert report.compiled == 0
    assert stamps(root) == before
    assert [row.usage for row in report.rows] == [row.usage for row in built[1].rows]


def test_edited_header_rebuilds_what_includes_it(project: tuple[Path, Build]) -> None:
    root, build = project
    before = stamps(root)
    write_package(root / "pkg", header=HEADER.replace("2.0f", "3.0f"))
    build()
    assert remade(root, before) == {ADD_O, TABLE_O, *ALL_LIBRARIES}
    assert call(root / "pkg/libnormgate.so", "ng_scale", "c_float") == "3.0"


def test_another_sm_selection_rebuilds_what_it_changes(project: tuple[Path, Build]) -> None:
    root, build = project
    before = stamps(root)
    report = build(sms=(90,))
    # sum has sm_90 and its PTX either way; the table knows the selection.
    assert remade(root, before) == {ADD_O, TABLE_O, *ALL_LIBRARIES}
    assert [(row.usage.function, row.usage.sm) for row in report.rows] == [("ng_add", 90), ("ng_sum", 90)]
    assert call(root / "pkg/libnormgate.so", "ng_built_sms", "c_char_p") == "b'90,'"


def test_a_lost_library_is_put_back_without_compiling(project: tuple[Path, Build]) -> None:
    root, build = project
    (root / "pkg/libnormgate.so").unlink()
    assert build().compiled == 0
    assert call(root / "pkg/libnormgate.so", "ng_launch", "c_int") == "-1"


def test_broken_source_shows_the_compiler_and_leaves_the_library(project: tuple[Path, Build]) -> None:
    root, build = project
    before = (root / "pkg/libnormgate.so").read_bytes()
    write_package(root / "pkg", add=ADD.replace("x[threadIdx.x]", "no_such_thing"))
    for _ in range(2):  # a failed step is tried again, not taken for done
        with pytest.raises(ToolError) as caught:
            build()
        assert 'identifier "no_such_thing" is undefined' in str(caught.value)
        assert "-Xfatbin" not in str(caught.value)
    assert (root / "pkg/libnormgate.so").read_bytes() == before


def test_broken_cpp_shows_the_host_compiler(project: tuple[Path, Build]) -> None:
    root, build = project
    path = root / "pkg/csrc/table.cpp"
    path.write_text("#error no table today\n")
    with pytest.raises(ToolError, match="no table today"):
        build()
    write_package(root / "pkg")


def test_spills_are_refused_and_leave_the_library(project: tuple[Path, Build]) -> None:
    root, build = project
    before = (root / "pkg/libnormgate.so").read_bytes()
    write_package(root / "pkg", add=SPILLING)
    for _ in range(2):  # the second run compiles nothing and must refuse all the same
        with pytest.raises(CheckFailed) as caught:
            build()
        lines = str(caught.value).splitlines()
        for line, sm in zip(lines, (80, 90), strict=False):
            where = f"csrc/kernels/add.sm80.cu: ng_add on sm_{sm}"
            found = re.fullmatch(
                rf"{where}: (\d+) bytes of spills, (\d+) bytes of stack frame",
                line,
            )
            assert found and int(found.group(1)) > 0
        assert caught.value.exit_code == 1
    assert (root / "pkg/libnormgate.so").read_bytes() == before
    write_package(root / "pkg", add=SPILLING, allow_spills=True)
    report = build()
    assert report.rows[0].usage.spill > 0
    assert (root / "pkg/libnormgate.so").read_bytes() != before


def test_a_kernel_that_the_manifest_promises_must_be_there(project: tuple[Path, Build]) -> None:
    root, build = project
    # Declared, so that the table still links against some ng_add: a plain host function.
    write_package(root / "pkg", add='extern "C" void ng_add(float*) {}\n')
    with pytest.raises(CheckFailed, match=r"csrc/kernels/add.sm80.cu: has no kernel ng_add for sm_80"):
        build()


def test_warnings_stay_visible(project: tuple[Path, Build]) -> None:
    root, build = project
    write_package(root / "pkg", add=ADD.replace("{", "{ int unused_thing;", 1))
    first, second = build(), build()
    assert any("unused_thing" in line for line in first.warnings)
    assert second.compiled == 0 and second.warnings == first.warnings


def test_progress_in_a_pipe_is_a_line_a_step(project: tuple[Path, Build], tmp_path: Path) -> None:
    root, build = project
    write_package(root / "pkg", header=HEADER.replace("2.0f", "5.0f"))
    with (tmp_path / "log").open("w") as stream:
        build(console=Console(file=stream, width=100))
    lines = (tmp_path / "log").read_text().splitlines()
    assert {line.split()[1] for line in lines} == {
        "csrc/kernels/add.sm80.cu",
        "csrc/table.cpp",
        "libnormgate.so",
    }
    assert lines[-1] == "[3/3] libnormgate.so"


def test_missing_source_is_named(project: tuple[Path, Build]) -> None:
    root, build = project
    (root / "pkg/csrc/include/scale.h").unlink()
    with pytest.raises(CheckFailed, match=r"(?s)csrc/include/scale.h: missing.*python build.py generate"):
        build()


def test_unknown_sm_is_named(project: tuple[Path, Build]) -> None:
    with pytest.raises(ToolError, match="no kernel for sm_75; its targets are 80,90"):
        project[1](sms=(75, 90))


def test_nvcc_that_lacks_an_sm_is_named() -> None:
    old = toolkit.Toolkit(Path("/t"), "CUDA_HOME", Path("/t/lib"), "12.6.85", frozenset({80, 90}))
    with pytest.raises(ToolError, match=r"nvcc 12.6.85 at /t/bin/nvcc \(from CUDA_HOME\) does not know sm_100, sm_121"):
        old.require((90, 100, 121))
    old.require((80, 90))


def test_toolkit_of_pypi_is_found_without_a_system_one(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("nvidia") is None:
        pytest.skip("this Python has no cuda-toolkit package")
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.setenv("PATH", "")
    found = toolkit.find_toolkit()
    assert found.found_by == "the PyPI package"
    assert found.nvcc.is_file() and set(arch.SM_TARGETS) <= found.sms


def test_torch_is_imported_once_only(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from codegen.compile import _torch_paths\n"
        "paths = _torch_paths(Path(sys.argv[1])); print('torch' in sys.modules, paths.include[0])"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    first, second = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(" ", 1)
        for _ in range(2)
    )
    assert (first[0], second[0]) == ("True", "False")
    assert first[1] == second[1] and (Path(first[1].strip()) / "torch/csrc/stable/library.h").is_file()


def test_order_of_toolkits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = toolkit.find_toolkit().root
    linked = tmp_path / "mine"
    linked.symlink_to(root)
    monkeypatch.setenv("CUDA_HOME", str(linked))
    assert (toolkit.find_toolkit().found_by, toolkit.find_toolkit().root) == ("CUDA_HOME", root)
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec "{root}/bin/nvcc" "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    assert (toolkit.find_toolkit().found_by, toolkit.find_toolkit().root) == ("nvcc on PATH", root)


def test_no_toolkit_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolkit, "_roots", lambda: iter([(tmp_path, "/usr/local/cuda")]))
    with pytest.raises(ToolError, match=r'no CUDA toolkit:(.|\n)*pip install "cuda-toolkit\[nvcc,cudart,cccl\]'):
        toolkit.find_toolkit()


def test_wrong_cuda_home_is_not_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(ToolError, match=f"CUDA_HOME is {tmp_path}, which has no bin/nvcc"):
        toolkit.find_toolkit()


def test_half_a_toolkit_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvcc").write_text("")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(ToolError, match="has nvcc but not both include/cuda_runtime.h and libcudart_static.a"):
        toolkit.find_toolkit()


def test_missing_host_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++-of-tomorrow -m64")
    with pytest.raises(ToolError, match="no host C.. compiler: g..-of-tomorrow is not on PATH"):
        toolkit.host_compiler()


def fake_smi(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_native_asks_all_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_smi(monkeypatch, tmp_path, "printf '9.0\\n12.0\\n9.0\\n8.7\\n'")
    assert toolkit.native_sms() == (87, 90, 120)
    # 8.7 runs the code of 8.6, and a chip newer than all targets the newest one's PTX.
    assert toolkit.select_sms("native") == (86, 90, 120)
    assert toolkit.select_sms("native", (80, 90)) == (80, 90)


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'"])
def test_native_without_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    fake_smi(monkeypatch, tmp_path, script)
    with pytest.raises(ToolError, match=r"--sm native: nvidia-smi names no GPU.*--sm 90"):
        toolkit.native_sms()


def test_native_older_than_all_targets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_smi(monkeypatch, tmp_path, "echo 7.5")
    with pytest.raises(ToolError, match="the GPU here is sm_75, and the oldest target is sm_80"):
        toolkit.select_sms("native")


def test_select_sms() -> None:
    assert toolkit.select_sms("all") == arch.SM_TARGETS
    assert toolkit.select_sms("100, 90,90") == (90, 100)
    for wanted, bad in (("90,75", "'75'"), ("sm_90", "'sm_90'"), ("", "''"), ("90,", "''")):
        with pytest.raises(ToolError, match=f"{bad} is no target here; use all, native or some of 80,86"):
            toolkit.select_sms(wanted)


def test_gencode() -> None:
    assert arch.gencode([90, 80, 90], 90) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert arch.gencode([80], None) == ["-gencode=arch=compute_80,code=sm_80"]
    assert arch.gencode([], 90, accelerated=True) == ["-gencode=arch=compute_90,code=compute_90"]
    # What only sm_90a has stays out of the PTX: no later chip could run it.
    assert arch.gencode([90], 90, accelerated=True) == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]


REPORT = """\
a.cu(3): warning #177-D: variable "y" was declared but never referenced
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k1' for 'sm_80'
ptxas info    : Function properties for k1
    256 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 128 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 6.602 ms
ptxas info    : Function properties for _Z3fooPii
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'k1' for 'sm_90a'
ptxas info    : Function properties for k1
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


def test_parse_ptxas() -> None:
    usages, others = parse(REPORT)
    assert usages == [
        Usage("k1", 80, registers=32, smem=128, spill=20, stack=256),
        Usage("_Z3fooPii", 80, registers=None, stack=16),
        Usage("k1", 90, registers=8),
    ]
    assert others == ['a.cu(3): warning #177-D: variable "y" was declared but never referenced']
    assert spilling([Row(usage, "a.cu", 1, 1.0) for usage in usages]) == [
        "a.cu: k1 on sm_80: 20 bytes of spills, 256 bytes of stack frame",
        "a.cu: _Z3fooPii on sm_80: 0 bytes of spills, 16 bytes of stack frame",
    ]


def test_table_collapses_runs_of_equal_sms(tmp_path: Path) -> None:
    kernel = "norm_b_gate_7168x384_bf16_bf16_fp32"
    name = f"{kernel}_split_k_t16_e16_sm80"
    registers = {80: 40, 86: 40, 89: 40, 90: 32, 100: 32, 103: 32, 110: 32, 120: 40, 121: 40}
    usages = [Usage(name, sm, count, smem=1024) for sm, count in registers.items()]
    assert [sms for _, sms in collapse(usages)] == [[80, 86, 89], [90, 100, 103, 110], [120, 121]]
    rows = tuple(Row(usage, f"csrc/kernels/{kernel}.sm80.cu", 20480, 1.25) for usage in usages)
    lines = BuildReport(tmp_path, tuple(registers), 121, rows, 0, (), 1.0).table().splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["40", "1024", "0", "0", "80,86,89", name],
        ["32", "1024", "0", "0", "90,100,103,110", name],
        ["40", "1024", "0", "0", "120,121", name],
    ]
