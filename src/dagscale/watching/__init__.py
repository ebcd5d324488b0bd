"""Watching: does a training do what its plan says?"""

from dagscale.watching.make import Watch, watch
from dagscale.watching.report import WatchReport

AFFECTS_RESULTS = False

__all__ = ["Watch", "WatchReport", "watch"]
