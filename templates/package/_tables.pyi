# The types of _tables.py, which the generator renders.
from .table_types import KernelTable, ModelTable

OPS: str
KERNELS: dict[str, KernelTable]
MODELS: dict[str, ModelTable]
