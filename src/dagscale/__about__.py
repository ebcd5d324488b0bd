"""The version: here, and nowhere else. The build and the command line read it."""

AFFECTS_RESULTS = False

__version__ = "0.1.0"
