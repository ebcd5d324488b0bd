"""Checking: does a plan hold what it promises as the model grows?"""

from dagscale.checking.make import check
from dagscale.checking.report import Report

AFFECTS_TRAINING = False

__all__ = ["Report", "check"]
