"""Replay: laws and rules held against finished runs of others, without training anything.

``runs`` reads a file of runs, ``layouts`` knows the headers, ``networks`` builds what was trained, ``optima`` finds
each network's best rate, ``rules`` says what a law or rule would have carried over, ``transfer`` scores it, ``sheets``
and ``pictures`` show it.
"""

AFFECTS_RESULTS = False
