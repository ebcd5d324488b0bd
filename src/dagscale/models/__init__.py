"""Architectures by code, and TARGET texts. Every module here is imported, so that a space is one file."""

import importlib
import pkgutil

from dagscale.models.cnn import CNN
from dagscale.models.dag import Dag
from dagscale.models.mlp import MLP
from dagscale.models.options import Option
from dagscale.models.targets import SPACES, Setting, Space, Target, load, resolve, sample

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = [
    "CNN",
    "MLP",
    "SPACES",
    "Dag",
    "Option",
    "Setting",
    "Space",
    "Target",
    "load",
    "resolve",
    "sample",
]
