"""``dagscale retrain``: architectures of NAS-Bench-201 trained under several recipes, in as many calls as it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from dagscale.bench.bounds import check_count
from dagscale.bench.data import load
from dagscale.bench.nas.recipes import PRESETS, RECIPES, REFERENCE, Preset, Recipe, differences
from dagscale.bench.nas.results import Base, Results, Retraining, open_results
from dagscale.bench.nas.retrain_run import averaged
from dagscale.bench.nas.retrain_study import Study
from dagscale.bench.sweep import code_version
from dagscale.errors import DataError
from dagscale.models.nb201 import Nb201
from dagscale.replacing import make_folder

CHUNK, MANY = 2, 16
"""Architectures that are planned, and then trained, one after the other where there is a budget: by this process alone,
and by several, which it takes time to start."""


def retrain(
    archs: Sequence[Nb201],
    *,
    data: str,
    recipes: Iterable[str] = (REFERENCE, "one-rate", "released", "plan"),
    preset: str = "short-12",
    size: Preset | None = None,
    seeds: int = 2,
    seed: int = 0,
    store: str | Path,
    results: Path | None = None,
    until: float | None = None,
    device: str = "cpu",
    jobs: int = -1,
    scheduler: str | None = None,
    retry_failed: bool = False,
    progress: bool = False,
) -> Retraining:
    """Train every architecture under every recipe, or as many as there is time for, and go on at the next call.

    A recipe without a given rate first has it searched on its base, with the weight decay where that is searched too,
    by the loss on a fifth of the *training* images: test images are looked at once, after the last step of the
    trainings that count. Its law then gives each architecture's factor on the rate, measured on one architecture of
    each group that computes the same.

    Args:
        archs: in the order in which they are trained. Those without a path from input to output, or without a rate
            under some recipe, are left out, by name.
        data: a name or path for `dagscale.bench.data.load`, with a test split.
        recipes: names in ``RECIPES``; ``benchmark`` is added if it is missing.
        preset: name in ``PRESETS``: how much is trained.
        size: another size than the preset's own.
        seeds: runs of each architecture and recipe, at least 2; the base's search has as many.
        seed: the first one.
        results: the file that the results grow in; what it holds is not trained again.
        until: moment of ``time.monotonic`` by which to stop; the next call goes on from there.
        device: where to train: ``cpu``, or ``cuda`` for a GPU, which has not been tried.
        store, jobs, scheduler, retry_failed, progress: see `dagscale.bench.sweep.sweep`.

    Returns:
        What is done: all of it, unless the time was up.

    Raises:
        UnknownNameError: for an unknown recipe or preset.
        DataError: if the data have no test split, seeds or recipes are too few, nothing can be trained, the time is too
            short for one network, or ``results`` is of another study.
        DagscaleError: if runs failed.
    """
    names = tuple(dict.fromkeys((REFERENCE, *recipes)))
    chosen = {name: RECIPES[name] for name in names}
    scale = PRESETS[preset] if size is None else size
    if len(names) < 2:
        raise DataError(f"a comparison needs another recipe than {REFERENCE}: name some of {', '.join(RECIPES)}")
    if seeds < 2:
        raise DataError(f"{seeds} seed: give 2 or more, since only they tell a change of the ranking from noise")
    check_count("seeds", seeds, 2, 1000)
    check_count("seed", seed, 0, 2**63)
    if scale.images is not None:
        check_count("limit", scale.images, 1, 10**9)
    if not any(arch.graph.has_path for arch in archs):
        raise DataError("no architecture with a path from input to output: there is nothing to train")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        why = "torch sees no GPU here" if device == "cuda" else "give cpu or cuda"
        raise DataError(f"device {device!r}: {why}")
    splits = {split: load(data, split=split, limit=scale.images) for split in ("train", "test")}
    test = averaged(splits["test"], scale.side)
    digests = {split: own.digest for split, own in splits.items()}
    named = preset if size is None or size == PRESETS[preset] else f"{preset}, changed"
    images = {f"{split}_images": len(own) for split, own in splits.items()}
    kept = open_results(results, {
        "dagscale": code_version(), "preset": {"name": named, **asdict(scale)},
        "data": {"name": test.name, **digests, **images},
        "recipes": [[name, asdict(scale.shorten(recipe))] for name, recipe in chosen.items()],
        "seeds": list(range(seed, seed + seeds)), "device": device, "differences": differences(scale, test.shape[1]),
    }, archs)  # fmt: skip
    make_folder(Path(store).parent)
    study = Study(
        digests["train"], scale, tuple(range(seed, seed + seeds)), store, jobs, scheduler, progress,
        test=digests["test"], places=dict.fromkeys(digests.values(), data), retry_failed=retry_failed, until=until,
        device=device,
    )  # fmt: skip
    try:
        _fill(kept, study, chosen)
    finally:
        kept.save()
    found = kept.value()
    if study.needed and not study.executed:
        raise DataError(
            f"the time is too short for one network: the next takes about {math.ceil(study.needed)} s here; give "
            f"a budget of {math.ceil(2 * study.needed + 10)} s or more"
        )
    if not found.archs and len(found.left_out) == len(archs):
        raise DataError(f"no architecture can be trained under every recipe; the first: {found.left_out[0].reason}")
    return found


def _fill(kept: Results, study: Study, chosen: Mapping[str, Recipe]) -> None:
    """Add to the results what they lack, as far as the time goes."""
    for arch in kept.archs:
        if not arch.graph.has_path:
            kept.rows[arch.code] = {"code": arch.code, "kind": arch.kind, "left_out": "nothing to train: no path"}
    searched = {name: recipe for name, recipe in chosen.items() if recipe.base is not None}
    if searched and not kept.bases:
        bases = study.search(searched)
        if bases is None:
            return
        kept.bases = {name: asdict(base) for name, base in bases.items()}
        kept.save()
    waiting = [arch for arch in kept.archs if arch.code not in kept.rows]
    alone = study.jobs == 1 and study.scheduler is None
    chunk = max(1, len(waiting)) if study.until is None else CHUNK if alone else MANY
    found = {name: Base(**base) for name, base in kept.bases.items()}
    for start in range(0, len(waiting), chunk):
        asked = waiting[start : start + chunk]
        rows = study.rows(asked, chosen, found)
        kept.rows.update({row["code"]: row for row in rows})
        kept.save()
        if len(rows) < len(asked):
            return
