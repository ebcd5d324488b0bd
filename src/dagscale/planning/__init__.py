"""Planning: what an init and a law come to for one network."""

from dagscale.planning.make import default_law, plan
from dagscale.planning.plans import ParameterPlan, Plan

__all__ = ["ParameterPlan", "Plan", "default_law", "plan"]
