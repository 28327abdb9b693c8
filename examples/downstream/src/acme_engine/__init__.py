"""An engine; its router path is in `normgate`, which the build generates."""

from .normgate import NormGateLinear


def router() -> NormGateLinear:
    return NormGateLinear.from_model("acme-moe")
