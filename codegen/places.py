"""Where things lie: beside the generator in a checkout, inside it when it is installed."""

from __future__ import annotations

from pathlib import Path

from .errors import BadInput, Problem
from .render import templates_folder

__all__ = [
    "PACKAGE",
    "all_specs",
    "build_folder",
    "every_spec",
    "generator_files",
    "home",
    "shown",
    "specs_folder",
    "templates_folder",
    "tuned_folder",
]

PACKAGE = "normgate"
"""The generated package's folder name, in whatever folder --out names."""

_GENERATOR = Path(__file__).resolve().parent


def home() -> Path:
    """The root of the checkout, or the current folder when installed: where specs/ and generated/ are written."""
    return Path.cwd() if (_GENERATOR / "specs").is_dir() else _GENERATOR.parent


def specs_folder() -> Path:
    """Where specs lie: those of `home`; when installed and there are none here, the shipped ones."""
    here, shipped = home() / "specs", _GENERATOR / "specs"
    return here if here.is_dir() or not shipped.is_dir() else shipped


def tuned_folder() -> Path:
    """Where tuned tables lie: with the specs."""
    return specs_folder() / "tuned"


def all_specs() -> tuple[Path, ...]:
    """Every spec, by name. BadInput when there is none."""
    found = tuple(sorted(specs_folder().glob("*.yaml")))
    if not found:
        raise BadInput(
            [Problem(str(specs_folder()), None, "holds no *.yaml; write one: python build.py add CONFIG.json")]
        )
    return found


def every_spec() -> tuple[Path, ...]:
    """Those and the ones that are generated and built on demand only, of specs/on_demand/."""
    return (*all_specs(), *sorted((specs_folder() / "on_demand").glob("*.yaml")))


def generator_files() -> tuple[Path, ...]:
    """The generator's own Python files, but the benchmark's, which decide nothing of what is generated."""
    return tuple(sorted([*_GENERATOR.glob("*.py"), *_GENERATOR.glob("hf/*.py")]))


def shown(path: Path) -> str:
    """`path` as messages have it: relative to the current folder where it is inside."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def build_folder(out: Path) -> Path:
    """Objects and stamps of the package in `out`: nothing there is worth keeping."""
    return out / "build"
