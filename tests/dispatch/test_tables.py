"""The C++ table against the Python table: every boundary and its neighbours, every chip, several builds.

dispatch.cpp and dispatch_table.cpp are compiled as they are, with a stub for each launcher; no GPU is asked.
"""

import ctypes
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from codegen import package, places
from codegen.arch import SM_TARGETS
from codegen.bench.native import LaunchArgs
from codegen.toolkit import find_toolkit, host_compiler

MORE = {
    # A kernel that leaves the newest targets out, one for the newest only, one with thresholds of its own.
    "no-blackwell": ("G", "sm_targets: [80, 90]"),
    "newest-only": ("A", "sm_targets: [120]"),
    "thresholds": ("B", "token_thresholds: {gemv: 3, split_k: 20}"),
}
SPEC = """\
name: {name}
sources: ["a test"]
hidden_size: 96
num_experts: 24
dtypes: {{activation: bfloat16, gate_weight: bfloat16}}
norm: {{order: {order}, eps: 1.0e-6}}
gate_bias: false
routing: {{top_k: 2, e_score_correction_bias: false}}
{more}
"""
DEVICES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121, 130)
BUILDS = {
    "80": (80,),
    "90": (90,),
    "90,120": (90, 120),
    "80,86,89": (80, 86, 89),
    "100,121": (100, 121),
    "all": SM_TARGETS,
}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of all shipped specs and a few awkward ones, its top level as the module `tabled`."""
    folder = tmp_path_factory.mktemp("tables")
    specs = list(places.all_specs())
    for name, (order, more) in MORE.items():
        path = folder / f"{name}.yaml"
        path.write_text(SPEC.format(name=name, order=order, more=more))
        specs.append(path)
    for path, text in package.files_of(specs).items():
        target = folder / "tabled" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # The package itself would register its operators once more.
        target.write_text("" if path == "__init__.py" else str(text))
    return folder


@pytest.fixture(scope="module")
def tables(generated: Path) -> ModuleType:
    sys.path.insert(0, str(generated))
    try:
        return importlib.import_module("tabled.dispatch")
    finally:
        sys.path.remove(str(generated))


@pytest.fixture(scope="module")
def objects(generated: Path) -> Path:
    """Stubs of every launcher, compiled once: each build has its own table."""
    csrc = generated / "tabled" / "csrc"
    launchers = re.findall(r"^cudaError_t\s+(launch_\w+)\(", (csrc / "dispatch_table.cpp").read_text(), re.MULTILINE)
    assert launchers
    lines = [f"cudaError_t {name}(const normgate_args&) {{ return cudaSuccess; }}" for name in launchers]
    (csrc / "stubs.cpp").write_text('#include "dispatch.h"\nnamespace normgate {\n' + "\n".join(lines) + "\n}\n")
    _compile(csrc, ["-c", "stubs.cpp", "-o", "stubs.o"])
    _compile(csrc, ["-c", "dispatch.cpp", "-o", "dispatch.o"])
    return csrc


def _compile(csrc: Path, arguments: list[str]) -> None:
    include = ["-Iinclude", f"-I{find_toolkit().include}"]
    subprocess.run([*host_compiler(), "-std=c++17", "-fPIC", *include, *arguments], cwd=csrc, check=True)


@pytest.fixture(scope="module", params=BUILDS.values(), ids=BUILDS.keys())
def build(request: pytest.FixtureRequest, objects: Path) -> tuple[tuple[int, ...], ctypes.CDLL]:
    sms: tuple[int, ...] = request.param
    library = objects / f"table_{'_'.join(map(str, sms))}.so"
    defines = [f"-DNORMGATE_SM_{sm}=1" for sm in sms]
    _compile(objects, [*defines, "-shared", "dispatch_table.cpp", "dispatch.o", "stubs.o", "-o", library.name])
    loaded = ctypes.CDLL(str(library))
    loaded.normgate_built_sms.restype = ctypes.c_char_p
    for select in (loaded.normgate_select, loaded.normgate_select_portable):
        select.restype, select.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_int, ctypes.c_int64]
    loaded.normgate_workspace_bytes.restype = ctypes.c_int64
    loaded.normgate_workspace_bytes.argtypes = [ctypes.c_char_p, ctypes.c_int64]
    return sms, loaded


def as_built(table, sms):
    """The Python table of a library that was built for `sms` only."""
    groups = []
    for group in table.groups:
        targets = tuple(target for target in group.sm_targets if target in sms)
        if targets:
            groups.append(group._replace(sm_targets=targets))
    return table._replace(groups=tuple(groups))


def counts(table) -> list[int]:
    """Every boundary of every group, and its neighbours."""
    ends = {
        end
        for group in table.groups
        for variant in (*group.variants, *group.portable_variants)
        for end in (variant.first_token, variant.last_token)
        if end
    }
    return sorted({end + step for end in ends for step in (-1, 0, 1) if end + step > 0} | {1, 4096, 1 << 40})


def test_cpp_and_python_choose_the_same(build, tables):
    sms, library = build
    served = 0
    for kernel, whole in tables.KERNELS.items():
        table = as_built(whole, sms)
        for device in DEVICES:
            target = tables.select_target(table, device) if table.groups else None
            group = next((group for group in table.groups if target in group.sm_targets), None)
            for count in counts(whole):
                expected = None
                if group is not None:
                    expected = next(v.function for v in group.variants_on(device) if tables._serves(v, count)) or None
                found = library.normgate_select(kernel.encode(), device, count)
                assert (found.decode() if found else None) == expected, (kernel, device, count)
                assert device == 90 or "wgmma" not in (expected or ""), "only sm_90a has it"
                served += expected is not None
    assert served or sms == (120,)


def test_the_portable_choice_is_what_later_chips_run(build, tables):
    sms, library = build
    for kernel, whole in tables.KERNELS.items():
        for group in as_built(whole, sms).groups:
            served = group.portable_variants or group.variants
            for device in set(group.sm_targets) & set(sms):
                for count in counts(whole):
                    expected = next(v.function for v in served if tables._serves(v, count)) or None
                    found = library.normgate_select_portable(kernel.encode(), device, count)
                    assert (found.decode() if found else None) == expected, (kernel, device, count)


def test_a_function_is_launched_for_as_many_tokens_as_it_serves(build, tables):
    """Beyond them a tile would write elsewhere, or a launch's counters end: an error, and no launch."""
    sms, library = build
    invalid, limited = 1, 0  # cudaErrorInvalidValue
    for whole in tables.KERNELS.values():
        for group in as_built(whole, sms).groups:
            for variant in (*group.variants, *group.portable_variants):
                if not variant.function:
                    continue
                served = [variant.first_token, variant.last_token or 1 << 40]
                limit = re.search(r"_gemv_t(\d+)_", variant.function)
                refused = [0, -1, *([int(limit[1]) + 1] if limit else [])]
                for count, expected in [*((count, 0) for count in served), *((count, invalid) for count in refused)]:
                    args = LaunchArgs(num_tokens=count)
                    assert library.normgate_launch(variant.function.encode(), ctypes.byref(args)) == expected
                limited += limit is not None
    assert limited or not sms
    assert library.normgate_launch(b"no_such_function", ctypes.byref(LaunchArgs(num_tokens=1))) == -1


def test_a_whole_build_is_what_explain_says(build, tables):
    sms, library = build
    if sms != SM_TARGETS:
        pytest.skip("explain tells of the plan, which a library for fewer SMs does not hold whole")
    for model, table in tables.MODELS.items():
        for device in DEVICES:
            for name, kernel in ((model, table.kernel), *([(table.path_kernel,) * 2] if table.path_kernel else [])):
                for count in counts(tables.KERNELS[kernel]):
                    said = tables.explain(name, count, device)
                    found = library.normgate_select(kernel.encode(), device, count)
                    assert (found.decode() if found else None) == said.function, (model, device, count)


def test_built_sms_and_strange_names(build):
    sms, library = build
    assert library.normgate_built_sms().decode() == ",".join(map(str, sms))
    assert library.normgate_select(b"no_such_kernel", 90, 1) is None
    assert library.normgate_workspace_bytes(b"no_such_function", 1) == 0


def test_ranges_have_no_gap_and_no_end(tables):
    for table in tables.KERNELS.values():
        for group in table.groups:
            first = 1
            for variant in group.variants[:-1]:
                assert variant.first_token == first <= variant.last_token
                first = variant.last_token + 1
            assert (group.variants[-1].first_token, group.variants[-1].last_token) == (first, None)


def test_no_two_groups_of_a_kernel_share_a_target(tables):
    for table in tables.KERNELS.values():
        targets = [target for group in table.groups for target in group.sm_targets]
        assert len(targets) == len(set(targets))


def test_thresholds_of_a_spec_are_kept(tables):
    table = tables.KERNELS[tables.MODELS["thresholds"].kernel]
    for group in table.groups:
        families = {}
        for variant in group.variants:
            families.setdefault(variant.name.split("_t")[0], []).append(variant.last_token)
        assert families["gemv"][-1] == 3
        assert families["split_k"][-1] == 20
