"""Planning: what an init and a law come to for one network."""

from dagscale.planning.base import Base, Point
from dagscale.planning.make import default_law, plan
from dagscale.planning.plans import ParameterPlan, Plan

__all__ = ["Base", "ParameterPlan", "Plan", "Point", "default_law", "plan"]
