"""Many runs, each once: resumable, on one core, all cores or a cluster."""

from dagscale.sweep.engine import Summary, sweep
from dagscale.sweep.export import export
from dagscale.sweep.run import Run, code_version
from dagscale.sweep.store import Counts, Status, Store

__all__ = ["Counts", "Run", "Status", "Store", "Summary", "code_version", "export", "sweep"]
