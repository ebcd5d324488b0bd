"""Head size: what the queries take where attention heads grow from base to target.

Queries and keys that have learned are aligned, so that their product over d channels grows like d; models divide by
√d [Yang et al. 2022, Tensor Programs V, Appendix B.1]. With heads r times as large as the base's the factor that is
left, r^-½, is folded into what makes the queries. Where one projection makes queries, keys and values, it takes r^-¼,
which the scores then have twice, and what reads the values takes r^¼. Where heads keep their size and their number
grows, nothing is needed.
"""

from __future__ import annotations

from dagscale.graph.attention import find_attention
from dagscale.graph.model import Graph
from dagscale.scaling.folding import Carried, Factors, fold
from dagscale.scaling.width import nearest
from dagscale.training.optimizers import Optimizer


def head_scaling(base: Graph, target: Graph, optimizer: Optimizer) -> dict[str, Carried]:
    """The factors on query projections, or on a norm's gain behind them, or on a projection of queries, keys and values
    and on what reads the values; for those parameters only.

    Attentions are matched by the names of what makes their queries. One that the base lacks, as where the queries of a
    decoder's first layer are learned, has heads that have grown as all others have, if these agree. Rotary positions,
    grouped queries and ALiBi change nothing here: the first two are linear in the queries, the last is added to what is
    scaled.

    Raises:
        OptimizerError: if heads have grown and nothing is known of the optimiser's step or decay.
    """
    sizes = {attention.queries[0]: attention.head for attention in find_attention(base) if attention.queries}
    attentions = [attention for attention in find_attention(target) if attention.queries and attention.head]
    matches = {attention: nearest(attention.queries[0], sizes) for attention in attentions}
    growths = {attention.head / sizes[match] for attention, match in matches.items() if match is not None}
    found: dict[str, Carried] = {}
    for attention, match in matches.items():
        if match is None and len(growths) != 1:
            note = (
                "the base has no attention to compare the size of these heads with: if they have grown, give a base "
                "that has one, or keep the head size and let the number of heads grow"
            )
            found.update({name: Carried(Factors(), 1.0, note) for name in attention.queries})
            continue
        r = min(growths) if match is None else attention.head / sizes[match]
        if r == 1:
            continue
        if attention.note:
            note = (
                f"heads are {r:g} times as large as the base's, and their queries cannot be scaled by {r**-0.5:.4g} "
                f"alone: {attention.note}; keep the head size and let the number of heads grow"
            )
            found.update({name: Carried(Factors(), 1.0, note) for name in attention.queries})
            continue
        c = r ** (-0.5 * attention.power)
        made = "queries" if attention.power == 1 else "queries, keys and values"
        note = f"makes {made} of heads {r:g} times as large as the base's: carries {c:.4g}, for logits over d"
        found.update({n: Carried(fold(optimizer, c), c, note) for n in attention.queries})
        note = f"reads values that were multiplied with the queries: takes back {c:.4g}"
        found.update({n: Carried(fold(optimizer, 1 / c), 1 / c, note) for n in attention.undone})
    return found


__all__ = ["head_scaling"]
