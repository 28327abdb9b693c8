from normgate.codegen.wheels import router_kernels
from setuptools import setup

setup(cmdclass=router_kernels("acme_engine.normgate", ["specs/acme-moe.yaml"], ops="acme_engine"))
