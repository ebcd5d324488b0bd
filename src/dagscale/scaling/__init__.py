"""Scaling: how settings change with the width of a network, the batch size and the length of a run."""
