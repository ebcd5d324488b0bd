"""No initialisation."""

from dagscale.inits.base import INITS, Fill
from dagscale.subject import Subject


@INITS.add("keep")
def keep(subject: Subject) -> dict[str, Fill]:
    """Every parameter stays as the model's author set it."""
    return {}
