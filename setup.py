"""What pyproject.toml cannot say: four folders of the checkout become one package, whose wheel is for one platform.

Nothing is installed under the folders' own names. `codegen/backend.py` compiles before this packs.
"""

from setuptools import find_packages, setup

from codegen.wheels import LibraryWheel

FOLDERS = {
    "normgate": "generated/normgate",
    "normgate.codegen": "codegen",
    "normgate.codegen.templates": "templates",
    "normgate.codegen.specs": "specs",
}
for name in ("normgate", "normgate.codegen"):
    FOLDERS |= {
        f"{name}.{inner}": f"{FOLDERS[name]}/{inner.replace('.', '/')}" for inner in find_packages(FOLDERS[name])
    }

setup(packages=list(FOLDERS), package_dir=FOLDERS, cmdclass={"bdist_wheel": LibraryWheel})
