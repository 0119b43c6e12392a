"""The limits of a box, which its owner and the code inside read alike."""

from hybridrl.sandbox.inside.limits import MIB, Limits

__all__ = ["MIB", "Limits"]
