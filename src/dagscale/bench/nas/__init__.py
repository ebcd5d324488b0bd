"""Neural architecture search: rankings of a benchmark, and its architectures trained under several recipes."""

AFFECTS_TRAINING = False
