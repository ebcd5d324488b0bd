"""Scaling: how each parameter's settings change with the width of a network."""
