"""What pyproject.toml cannot say: a wheel that holds the compiled library is for one platform, and any Python 3."""

from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

COMPILED = Path(__file__).with_name("generated") / "normgate" / "libnormgate.so"


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return COMPILED.is_file()


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        return "py3", "none", platform  # the library is on LibTorch's stable ABI and knows no Python


setup(distclass=BinaryDistribution, cmdclass={"bdist_wheel": Wheel})
