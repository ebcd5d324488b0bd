"""Many runs, each once: resumable, on one core, all cores or a cluster."""

from dagscale.bench.sweep.engine import Summary, sweep
from dagscale.bench.sweep.exporting import export
from dagscale.bench.sweep.run import Run, code_version
from dagscale.bench.sweep.store import Counts, Status, Store

AFFECTS_RESULTS = False

__all__ = ["Counts", "Run", "Status", "Store", "Summary", "code_version", "export", "sweep"]
