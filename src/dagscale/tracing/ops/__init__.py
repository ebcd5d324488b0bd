"""The op registry's families, one file each. Importing this package fills the registry."""

from dagscale.tracing.ops import activations, arithmetic, creation, losses, movement, norms, pooling, weights

__all__ = ["activations", "arithmetic", "creation", "losses", "movement", "norms", "pooling", "weights"]
