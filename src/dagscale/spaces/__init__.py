"""Architectures by code, and TARGET texts. Every module here is imported, so that a space is one file."""

import importlib
import pkgutil

from dagscale.spaces.cnn import CNN
from dagscale.spaces.dag import Dag
from dagscale.spaces.mlp import MLP
from dagscale.spaces.targets import SPACES, Option, Setting, Space, Target, load, resolve, sample

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
