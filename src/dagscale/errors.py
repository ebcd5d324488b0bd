"""The errors a user can meet. Each message is one line that names the cause and the mend."""

from __future__ import annotations

import sys

from dagscale.shown import line


class DagscaleError(Exception):
    """Base of every error that dagscale raises on purpose.

    As text it is one line, whatever names and messages of others are in it: control characters are shown escaped.
    """

    def __str__(self) -> str:
        return line(super().__str__(), sys.maxsize)


class TraceError(DagscaleError):
    """The model could not be read as a graph."""


class ForwardError(TraceError):
    """The model's own forward raised; the original exception is ``__cause__``."""


class GraphError(DagscaleError):
    """A graph lacks what was asked of it, for example an input→output path."""


class PlanError(DagscaleError):
    """A plan cannot be made, or does not fit the model it is applied to."""


class DataError(DagscaleError):
    """Data cannot be read, or is not what was announced."""


class SearchError(DagscaleError):
    """A search for a learning rate has no answer."""


class CheckError(DagscaleError):
    """A family of models cannot be checked."""


class WatchError(DagscaleError):
    """A training cannot be watched."""


class RecipeError(PlanError, SearchError, CheckError):
    """What was said of the training does not hold together, or does not fit the model, the data or the base.

    Planning, searching and checking all run the user's training, so it is an error of each of them.
    """


class BatchError(DataError, RecipeError):
    """The data raised where a batch was read from them, or gave none: no learning rate is to blame."""


class OptimizerError(RecipeError):
    """An optimiser cannot be made, or nothing is known of it where something must be."""


class CopyError(PlanError, SearchError, CheckError):
    """A model can be neither copied nor borrowed to train and measure on."""


class SweepError(DagscaleError):
    """A sweep cannot go on, or its store cannot be used; what it finished is safe."""


class TargetError(DagscaleError):
    """A TARGET, an architecture CODE or one of its options is malformed."""


class UnknownNameError(DagscaleError):
    """A name stands in no registry."""
