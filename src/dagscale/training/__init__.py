"""Training: how a person trains, said once, and the one place that runs it."""
