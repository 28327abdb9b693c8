"""`python -m normgate.codegen` is `python build.py` of a checkout."""

import sys

from .cli import main

sys.exit(main(sys.argv[1:], "python -m normgate.codegen"))
