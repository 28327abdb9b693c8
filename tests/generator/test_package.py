"""The generated package as a whole: the same every time, alone in the world, formatted."""

import ast
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import codegen
from codegen import manifest, package, places, render
from codegen.compile import _select
from codegen.plan import make_plan
from codegen.render import clang_format
from codegen.spec import load_spec

ROOT = Path(__file__).parents[2]
C_SUFFIXES = {".cu", ".cuh", ".h", ".cpp"}


@pytest.fixture(scope="module")
def all_files() -> dict[str, str]:
    """The package of all shipped specs."""
    return {path: str(text) for path, text in package.files_of(places.all_specs()).items()}


def test_two_hash_seeds_give_the_same_bytes(small_spec, tmp_path):
    code = (
        "import sys, pathlib, hashlib; from codegen import package\n"
        "files = package.files_of([pathlib.Path(sys.argv[1])])\n"
        "print(list(files), hashlib.sha256(repr(files).encode()).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code, small_spec],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(said) == 1


def test_where_a_spec_lies_does_not_show(small_spec, tmp_path):
    elsewhere = tmp_path / "a folder" / small_spec.name
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(small_spec.read_bytes())
    assert package.files_of([small_spec]) == package.files_of([elsewhere])


def test_manifest_says_what_went_in_and_came_out(all_files):
    said = manifest._ADAPTER.validate_json(all_files[manifest.NAME])
    assert said.version == codegen.__version__
    assert set(said.outputs) == set(all_files) - {manifest.NAME}
    assert all(manifest.sha256(all_files[path]) == expected for path, expected in said.outputs.items())
    for path, expected in said.inputs.items():
        assert manifest.sha256((ROOT / path).read_bytes()) == expected
    specs = {f"specs/{path.name}" for path in places.all_specs()}
    tuned = {f"specs/tuned/{path.name}" for path in (ROOT / "specs" / "tuned").glob("*.sm*.json")}
    assert {path for path in said.inputs if path.startswith("specs/")} == specs | tuned
    assert {"templates/kernels/kernel.cu.j2", "templates/package/_tables.py.j2", "templates/.clang-format"} <= set(
        said.inputs
    )
    assert set(said.models) == {Path(path).stem for path in specs}
    assert {source.path for source in said.sources} == {
        path for path in all_files if Path(path).suffix in (".cu", ".cpp")
    }
    assert [source.path for source in said.sources if source.torch] == ["csrc/binding.cpp"]


def test_manifest_and_sources_agree(all_files):
    """What the manifest promises is what the sources hold, by their text."""
    said = manifest._ADAPTER.validate_json(all_files[manifest.NAME])
    for source in said.sources:
        if source.path.endswith(".cu"):
            found = re.findall(
                r'extern "C" __global__ void\s+__(?:launch_bounds|maxnreg)__\([^)]*\)\s+(\w+)\(', all_files[source.path]
            )
            assert tuple(found) == source.functions
    functions = {function for source in said.sources for function in source.functions}
    # What launches a path's stages one by one is a function of the host.
    texts = "".join(all_files[source.path] for source in said.sources if source.path.endswith(".cu"))
    functions |= set(re.findall(r"\blaunch_(\w*_apart_\w+)\(\s*const normgate_args& \w+\) \{", texts))
    for kernel in said.kernels.values():
        for group in kernel.groups:
            ends = [variant.last_token for variant in group.variants]
            assert [variant.first_token for variant in group.variants] == [1, *(end + 1 for end in ends[:-1])]
            assert ends[-1] is None
            assert {variant.function for variant in group.variants} <= functions


def test_every_kernel_has_ptx_of_its_own_newest_target(small_spec, tmp_path):
    newer = tmp_path / "newer.yaml"
    newer.write_text(
        small_spec.read_text()
        .replace("name: small", "name: newer")
        .replace("order: B", "order: A")
        .replace("[80, 90]", "[90, 120]")
    )
    said = manifest._ADAPTER.validate_json(str(package.files_of([small_spec, newer])[manifest.NAME]))
    chosen = {(c.source.path.split("/")[-1], c.ptx_sm) for c in _select(said, "all").sources if c.ptx_sm}
    assert {sm for _, sm in chosen} == {90, 120}


def test_package_needs_only_torch_and_the_standard_library(all_files):
    allowed = {"torch", "normgate", *sys.stdlib_module_names}
    for path, text in all_files.items():
        if path.endswith(".py"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [str(node.module)]
                else:
                    continue
                assert {name.partition(".")[0] for name in names} <= allowed, path


def test_c_files_are_formatted(all_files, tmp_path):
    """clang-format has nothing to say about any of them."""
    for path, text in all_files.items():
        if Path(path).suffix in C_SUFFIXES:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
    style = f"--style=file:{places.templates_folder() / '.clang-format'}"
    paths = [path for path in tmp_path.rglob("*") if path.suffix in C_SUFFIXES]
    done = subprocess.run(
        [clang_format.binary(), "--dry-run", "-Werror", style, *paths], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[:2000]


def test_no_path_of_this_machine(all_files):
    for path, text in all_files.items():
        assert str(ROOT) not in text, path
        assert str(Path.home()) + "/" not in text, path


def test_kernel_sources_know_nothing_of_torch(all_files):
    for path, text in all_files.items():
        if Path(path).suffix in C_SUFFIXES and path != "csrc/binding.cpp":
            assert not re.search(r"#include\s*[<\"](torch|ATen|c10)", text), path


def test_what_generating_loads_is_what_a_package_is_fresh_by(small_spec):
    """`generate` renders anew after an edit of any room that has a say, in whatever folder it lies."""
    code = (
        "import sys; from pathlib import Path; from codegen import package\n"
        f"package.files_of([Path({str(small_spec)!r})])\n"
        "print(*(module.__file__ for name, module in sys.modules.items() if name.partition('.')[0] == 'codegen'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {Path(file).relative_to(ROOT / "codegen").as_posix() for file in done.stdout.split()}
    known = places.generator_files()
    # With a class of the benchmark's a tuned table's protocol is read, which decides nothing.
    assert {name for name in loaded if not name.startswith("bench/")} <= set(known)
    assert all(path == ROOT / "codegen" / name for name, path in known.items())
    assert not {name.partition("/")[0] for name in known} & {"bench", "cli", "report"}


def test_models_of_one_path_share_a_kernel(small_spec, tmp_path):
    twin = tmp_path / "twin.yaml"
    twin.write_text(small_spec.read_text().replace("name: small", "name: twin").replace("1.0e-6", "1.0e-5"))
    said = manifest._ADAPTER.validate_json(str(package.files_of([small_spec, twin])[manifest.NAME]))
    assert set(said.models) == {"small", "twin"}
    assert len(set(said.models.values())) == len(said.kernels) == 1


def test_functions_are_what_render_says(small_spec):
    plan = make_plan([load_spec(small_spec)])
    files = render.render(plan)
    said = package.manifest_of(plan, files, {})
    expected = {
        function for kernel in plan.kernels for group in kernel.groups for function in render.functions(kernel, group)
    }
    assert {function for source in said.sources for function in source.functions} == expected


def test_one_version_everywhere():
    assert f'\nversion = "{codegen.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
    package_says = (ROOT / "templates" / "package" / "__init__.py").read_text()
    assert f'\n__version__ = "{codegen.__version__}"\n' in package_says


def test_the_formatter_is_pinned_to_what_is_installed():
    """Its output is compared byte for byte, so another version would call everything stale."""
    pinned = f"clang-format=={metadata.version('clang-format')}"
    assert f'"{pinned}"' in (ROOT / "pyproject.toml").read_text()
    assert pinned in (ROOT / "constraints.txt").read_text().splitlines()
