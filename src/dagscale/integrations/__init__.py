"""Thin, optional bridges to the trainers that people use; each file needs the package that it names."""

AFFECTS_RESULTS = False
