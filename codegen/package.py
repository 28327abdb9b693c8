"""Specs into the complete set of files of a package, and that set into a folder."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import __version__, manifest, naming, output, places, render, spills, tuned
from .errors import CheckFailed
from .plan import Kernel, Plan, make_plan
from .spec import load_specs

_FRESH = "generated.json"
# What shapes the text of generated files, beside specs, templates and the generator.
_FORMATTERS = ("jinja2", "clang-format")
# Templates of the benchmark and of the report: nothing of a package is made from them.
_NOT_GENERATED = ("bench", "report")


def files_of(spec_paths: Sequence[Path], ops: str = naming.OPS) -> dict[str, output.Content]:
    """The package of these specs: posix path in the package -> content, manifest.json among them.

    ops: the namespace of its operators, torch.ops.<ops>: two packages in one process need two.

    Raises BadInput with everything that is wrong in the specs, or in the tuned tables of their kernels, or with
    `ops`.
    """
    specs = load_specs(spec_paths)
    plan = make_plan(specs, tuned.load(specs, places.tuned_folder()), spills.read(places.tuned_folder()))
    files: dict[str, output.Content] = dict(render.render(plan, ops))
    files[manifest.NAME] = manifest_of(plan, files, inputs_of(spec_paths)).text()
    return output.collect(files.items())


def manifest_of(plan: Plan, files: Mapping[str, output.Content], inputs: Mapping[str, str]) -> manifest.Manifest:
    """What `files`, rendered from `plan`, are made from and consist of."""
    sources = [
        manifest.Source(
            path=str(naming.source_path(kernel.name, group.sm)),
            sm_targets=group.sm_targets,
            allow_spills=kernel.allow_spills,
            functions=render.functions(kernel, group),
            accelerated=group.accelerated,
        )
        for kernel in plan.all_kernels
        for group in kernel.groups
    ]
    if render.HANDOVER in files:
        using = [group for kernel in plan.all_kernels for group in kernel.groups if render.uses_handover(kernel, group)]
        targets = sorted({sm for group in using for sm in group.sm_targets})
        sources.append(manifest.Source(path=render.HANDOVER, sm_targets=tuple(targets)))
    sources += [
        manifest.Source(path=path, torch=path == "csrc/binding.cpp") for path in sorted(files) if path.endswith(".cpp")
    ]
    return manifest.Manifest(
        version=__version__,
        inputs=inputs,
        outputs=manifest.hashes(files),
        sources=tuple(sources),
        kernels={kernel.name: _kernel(kernel) for kernel in plan.all_kernels},
        models={spec.name: kernel.name for kernel in plan.kernels for spec in kernel.specs},
    )


def _kernel(kernel: Kernel) -> manifest.Kernel:
    groups = tuple(
        manifest.Group(
            sm_targets=group.sm_targets,
            variants=tuple(
                manifest.Variant(
                    name=served.name,
                    function=naming.function_name(kernel.name, served.name, group.sm),
                    first_token=served.first_token,
                    last_token=served.last_token,
                )
                for served in group.ranges
                if served.variant is not None
            ),
        )
        for group in kernel.groups
    )
    return manifest.Kernel(models=tuple(spec.name for spec in kernel.specs), groups=groups)


def inputs_of(spec_paths: Sequence[Path]) -> dict[str, str]:
    """The hash of each spec, as specs/<name>.yaml wherever it lies, of its kernel's tuned tables, of each template.

    Raises BadInput for specs that do not load: their kernels would not be known.
    """
    specs = load_specs(spec_paths)  # what is wrong there is said before its hash is taken
    found = {f"specs/{path.name}": manifest.sha256(path.read_bytes()) for path in spec_paths}
    for path in tuned.paths(specs, places.tuned_folder()):
        found[f"specs/tuned/{path.name}"] = manifest.sha256(path.read_bytes())
    known = spills.read(places.tuned_folder())
    for kernel in sorted(set(tuned.kernel_names(specs)) & set(known)):
        found[f"specs/tuned/{spills.FILE} of {kernel}"] = manifest.sha256(" ".join(sorted(known[kernel])).encode())
    templates = places.templates_folder()
    for path in sorted(templates.rglob("*")):
        name = path.relative_to(templates)
        if path.is_file() and name.parts[0] not in _NOT_GENERATED and "__pycache__" not in name.parts:
            found[f"templates/{name.as_posix()}"] = manifest.sha256(path.read_bytes())
    return found


def generate(spec_paths: Sequence[Path], out: Path, ops: str = naming.OPS) -> output.Written | None:
    """Write the package to `out`/normgate. None: it was made from the same by the same, so nothing was rendered.

    Raises BadInput before anything is written, ToolError when `out` cannot be written.
    """
    folder = out / places.PACKAGE
    if _is_fresh(spec_paths, out, ops):
        return None
    made_from = _made_from(spec_paths, ops)
    files = files_of(spec_paths, ops)
    path = places.build_folder(out) / _FRESH
    with output.locked(folder):  # the stamp too has one writer at a time
        written = output.write(files, folder)
        stamp = {"made_from": made_from, "manifest": manifest.sha256((folder / manifest.NAME).read_bytes())}
        output.replace_whole(path, json.dumps(stamp).encode())
    return written


def check(spec_paths: Sequence[Path], out: Path, ops: str = naming.OPS) -> output.Freshness:
    """How the package in `out`/normgate differs from what the specs give now; everything is rendered anew."""
    return output.diff(files_of(spec_paths, ops), out / places.PACKAGE)


def _is_fresh(spec_paths: Sequence[Path], out: Path, ops: str) -> bool:
    """Whether `out` holds, untouched, what the last `generate` made of the same inputs.

    The manifest does not name the generator's own files, lest each edit of it change what is generated; so
    their hash is kept with the objects, outside the package.
    """
    stamp, folder = places.build_folder(out) / _FRESH, out / places.PACKAGE
    try:
        said = json.loads(stamp.read_bytes())
        if said["made_from"] != _made_from(spec_paths, ops):
            return False
        if said["manifest"] != manifest.sha256((folder / manifest.NAME).read_bytes()):
            return False
        manifest.check_outputs(manifest.load_manifest(folder), folder)
    except (OSError, ValueError, LookupError, TypeError, CheckFailed):
        return False
    return True


def _made_from(spec_paths: Sequence[Path], ops: str) -> str:
    inputs = inputs_of(spec_paths)
    code = {name: manifest.sha256(path.read_bytes()) for name, path in places.generator_files().items()}
    versions = {name: importlib.metadata.version(name) for name in _FORMATTERS}
    return manifest.sha256(json.dumps([inputs, code, versions, ops], sort_keys=True))
