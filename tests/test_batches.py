"""Only what is used is read, whatever the data come as, and what is random there is repeatable."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset, WeightedRandomSampler

import dagscale
from dagscale.errors import BatchError, RecipeError
from dagscale.training.batches import source
from dagscale.training.recipe import Recipe

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


class Virtual(Dataset):  # type: ignore[type-arg]
    """50 GB of examples, each made when it is read; counts what is read."""

    length = 50 * 10**9 // (4 * 4)

    def __init__(self) -> None:
        self.read = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.read += 1
        x = torch.randn(4, generator=torch.Generator().manual_seed(i))
        return x, int(x[0] > 0)


class Streamed:
    """The same, as batches without an end in sight."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(Virtual.length // 32):
            self.read += 32
            x = torch.randn(32, 4, generator=generator)
            yield x, (x[:, 0] > 0).long()


def peak() -> int:
    """The most memory that this process ever held, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def measure_peaks() -> None:
    """Print the law, the examples read and the growth of the peak, for each way in which 50 GB may come.

    A first plan from a little data brings in all that a plan needs."""
    dagscale.plan(net(), recipe=Recipe((X, Y), cross_entropy, steps=8, batch_size=32))
    listed = Virtual()
    sampler = RandomSampler(listed, replacement=True, num_samples=10**6)
    ways = {"stream": Streamed(), "data set": listed, "loader": DataLoader(listed, 32, sampler=sampler)}
    for way, data in ways.items():
        listed.read, before = 0, peak()
        batch_size = {"batch_size": 32} if way == "data set" else {}
        plan = dagscale.plan(net(), recipe=Recipe(data, cross_entropy, steps=8, **batch_size))
        read = data.read if isinstance(data, Streamed) else listed.read
        print(json.dumps([way, plan.law, read, peak() - before]))


def test_of_50_gigabytes_only_the_batches_used_are_read_and_memory_is_flat() -> None:
    told = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line) for line in told.splitlines()]
    assert [way for way, *_ in rows] == ["stream", "data set", "loader"]
    for _, law, read, growth in rows:
        assert law == "short-run"
        assert 0 < read < 20_000  # of 3·10⁹: up to 16 draws of 256 for the init, up to 4 seeds of 8 batches
        assert growth < 32 * 2**20


def same(a: dagscale.Plan, b: dagscale.Plan) -> bool:
    return {**a.to_dict(), "recipe": None} == {**b.to_dict(), "recipe": None}


@pytest.mark.parametrize("law", ["short-run", "curvature", "function-change"])
def test_the_same_plan_from_tensors_and_from_a_data_set(law: str) -> None:
    def planned(data: Any) -> dagscale.Plan:
        given = {"recipe": Recipe(data, cross_entropy, batch_size=16, steps=8), "law": law, "base_lr": 0.1}
        return dagscale.plan(net(), X[:2], base=(net(), X[:2]), **given)

    assert same(planned((X, Y)), planned(TensorDataset(X, Y)))


def test_the_same_plan_from_a_list_of_batches_and_from_the_loader_that_gives_them() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=16)
    listed = [tuple(batch) for batch in loader]
    one, two = (dagscale.plan(net(), recipe=Recipe(data, cross_entropy, steps=8)) for data in (loader, listed))
    assert one.lr == two.lr
    assert one.parameters == two.parameters


class Augmented(Dataset):  # type: ignore[type-arg]
    """Noise of every generator that people use."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return X[i] + torch.tensor([random.random(), float(np.random.rand()), torch.rand(()).item(), 0.0]), Y[i]


@pytest.mark.parametrize("size", [None, 8])
def test_what_is_random_in_a_stream_is_repeatable_and_the_users_generators_stay(size: int | None) -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]

    def seen(seed: int) -> list[list[float]]:
        source = Recipe(DataLoader(Augmented(), batch_size=16, shuffle=True)).source.batches(seed, size)
        found = []
        for _ in range(6):  # a pass and a half
            found.append(next(source).inputs.flatten().tolist())
        return found

    first = seen(0)
    assert first == seen(0)
    assert first != seen(1)
    assert first[0] != first[4], "every pass has noise of its own"
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]


def test_draws_of_the_user_between_batches_change_nothing() -> None:
    def seen(draw: bool) -> list[float]:
        source = Recipe(DataLoader(Augmented(), batch_size=16, shuffle=True)).source.batches(0)
        found = []
        for _ in range(3):
            found.append(next(source).inputs.sum().item())
            if draw:
                random.random(), np.random.rand(), torch.rand(3)
        return found

    assert seen(draw=True) == seen(draw=False)


def test_planning_with_augmented_data_repeats() -> None:
    def planned() -> dagscale.Plan:
        return dagscale.plan(
            net(), recipe=Recipe(DataLoader(Augmented(), batch_size=16, shuffle=True), steps=8), law="short-run"
        )

    assert planned() == planned()


def test_what_a_numbered_data_set_draws_is_repeatable_and_leaves_the_user_s_numbers_alone() -> None:
    recipe = Recipe(Augmented(), cross_entropy, "sgd", batch_size=16, steps=6)
    model = net()
    states, found = [], []
    for _ in range(2):
        torch.randn(3)
        states.append(torch.get_rng_state())
        found.append(dagscale.search(model, recipe, seeds=1, grid=[0.05, 0.1], widen=0).curve)
        assert torch.equal(torch.get_rng_state(), states[-1])
    assert found[0] == found[1]
    assert not torch.equal(*states)


class Shuffled:
    """Batches in an order of its own."""

    def __init__(self) -> None:
        self.order, self.noise = random.Random(3), np.random.default_rng(3)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rows = list(range(96))
        self.order.shuffle(rows)
        for i in range(0, 96, 16):
            yield X[rows[i : i + 16]] + float(self.noise.normal()), Y[rows[i : i + 16]]


class ShuffledAtOnce(Shuffled):
    """The order is drawn before any batch is asked for."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(list(super().__iter__()))


class Noisy(Dataset):  # type: ignore[type-arg]
    def __init__(self) -> None:
        self.noise = np.random.RandomState(3)

    def __len__(self) -> int:
        return 96

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return X[i] + float(self.noise.normal()), Y[i]


def loader_of(kind: str) -> tuple[DataLoader[Any], torch.Generator]:
    rows, own = TensorDataset(X, Y), torch.Generator().manual_seed(3)
    if kind == "loader":
        return DataLoader(rows, 16, shuffle=True, generator=own), own
    if kind == "sampler":
        return DataLoader(rows, 16, sampler=RandomSampler(rows, generator=own)), own
    return DataLoader(rows, 16, sampler=WeightedRandomSampler(torch.ones(96), 96, generator=own)), own  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["loader", "sampler", "weighted sampler"])
def test_generators_of_a_loader_are_seeded_and_given_back(kind: str) -> None:
    loader, own = loader_of(kind)
    before = own.get_state()

    def seen(seed: int) -> list[list[float]]:
        batches = Recipe(loader).source.batches(seed)
        return [next(batches).inputs.flatten().tolist() for _ in range(7)]

    first = seen(0)
    torch.randn(3, generator=own)  # the user's own use of it changes nothing
    assert seen(0) == first
    assert seen(1) != first
    assert first[0] != first[6], "every pass has an order of its own"
    own.set_state(before)
    seen(0), [*Recipe(loader).source.sample(32, 16)]
    assert torch.equal(own.get_state(), before)


def test_workers_that_persist_are_seeded_and_an_epoch_that_has_begun_goes_on() -> None:
    rows = Augmented()
    loader = DataLoader(rows, 16, num_workers=1, persistent_workers=True)
    epoch = iter(loader)
    next(epoch)

    def seen(seed: int) -> list[Tensor]:
        batches = Recipe(loader).source.batches(seed)
        return [next(batches).inputs for _ in range(2)]

    first, again, other = seen(0), seen(0), seen(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert sum(1 for _ in epoch) == len(loader) - 1
    assert loader.persistent_workers


@pytest.mark.parametrize(("make", "size"), [(Shuffled, None), (ShuffledAtOnce, None), (Noisy, 16)])
def test_generators_that_data_keep_are_seeded_and_given_back(make: Any, size: int | None) -> None:
    data = make()
    before = repr((data.noise.__getstate__(), getattr(data, "order", random.Random(0)).getstate()))
    words: dict[str, Any] = {"loss": cross_entropy, "batch_size": size, "law": "none", "base_lr": 0.1}
    plans = [dagscale.plan(net(), X[:4], data=source, **words) for source in (data, data, make())]
    assert plans[0].parameters == plans[1].parameters == plans[2].parameters
    assert repr((data.noise.__getstate__(), getattr(data, "order", random.Random(0)).getstate())) == before


def test_random_numbers_of_the_user_do_not_move_a_plan() -> None:
    def planned(seed: int) -> Any:
        model = net()
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        words: dict[str, Any] = {"law": "short-run", "steps": 4, "batch_size": 16}
        return dagscale.plan(model, X[:4], data=Augmented(), loss=cross_entropy, **words).parameters

    assert planned(1) == planned(2)


class Raising(Dataset):  # type: ignore[type-arg]
    """Its row 50 cannot be read."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i == 50:
            raise KeyError("row fifty")
        return X[i], Y[i]


class Halting(DataLoader):  # type: ignore[type-arg]
    """Cannot begin."""

    def __iter__(self) -> Any:
        raise OSError("no such disk")


CALLS = [
    lambda recipe: dagscale.search(net(), recipe, inputs=X[:4], seeds=1),
    lambda recipe: dagscale.plan(net(), X[:4], recipe=recipe),
]


@pytest.mark.parametrize("call", CALLS, ids=["search", "plan"])
def test_data_that_raise_are_no_diverged_run(call: Any) -> None:
    """Wherever they do, it is said in one line, and is blamed neither on a rate nor on the model."""
    for data, size, text in (
        (DataLoader(Raising(), 16), None, "reading the data raised KeyError: 'row fifty'"),
        (Raising(), 16, "example 50 of the data set raised KeyError: 'row fifty'"),
        (Halting(TensorDataset(X, Y), 16), None, "reading the data raised OSError: no such disk"),
        ([(X[:16], Y[:16])] * 5 + [(X[:16], Y[:16, None])], None, "the batches change their structure"),
    ):
        recipe = Recipe(data, cross_entropy, batch_size=size, steps=8)
        with pytest.raises(BatchError, match=text) as caught:
            call(recipe)
        assert "\n" not in str(caught.value)


def test_what_can_be_iterated_once_only_is_not_eaten_up() -> None:
    class Once:
        def __init__(self) -> None:
            self.batches = iter([(X[:16], Y[:16])] * 6)

        def __iter__(self) -> Iterator[Any]:
            return self.batches

    data = Once()
    with pytest.raises(BatchError, match="iterated once only"):
        dagscale.search(net(), Recipe(data, cross_entropy, steps=4))
    assert len(list(data.batches)) == 6


@pytest.mark.parametrize("kind", ["tensors", "batches", "data set"])
def test_data_that_carry_a_graph_of_their_own(kind: str) -> None:
    """Features of another network: no backward goes into it, and none a second time."""
    encoder = nn.Linear(4, 4)

    def data(x: Tensor) -> Any:
        if kind == "batches":
            return [(x[i : i + 16], Y[i : i + 16]) for i in range(0, 96, 16)]
        return (x, Y) if kind == "tensors" else TensorDataset(x, Y)

    words: dict[str, Any] = {"loss": cross_entropy, "batch_size": None if kind == "batches" else 16, "steps": 8}
    rates = [dagscale.plan(net(), X[:4], data=data(x), **words).lr for x in (encoder(X), encoder(X).detach())]
    assert rates[0] == rates[1]
    assert encoder.weight.grad is None


# --- batches that no rows can be taken from ----------------------------------------------------------------


@pytest.mark.parametrize("whose", ["forward", "loss", "step", "first layer"])
def test_what_is_written_to_a_batch_is_not_written_to_the_data(whose: str) -> None:
    """Nor does it reach the next rate: rows of a table are another batch at each reading anyway."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        if whose == "loss":
            y[y == 3] = 0
        return cross_entropy(out, y)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, target: Tensor) -> Tensor:
        inputs.mul_(2)
        optimizer.zero_grad()
        value = loss(model(inputs), target)
        value.backward()
        optimizer.step()
        return value

    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2) if whose == "forward" else torch.relu_(x) if whose == "first layer" else x

    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    batches = [(own.clone(), own[:, :4].argmax(1)) for own in x.split(16)]
    kept = [(own.clone(), y.clone()) for own, y in batches]
    torch.manual_seed(0)
    net = nn.Sequential(Doubling(), nn.Linear(6, 4))
    recipe = dagscale.Recipe(batches, loss, steps=8, step=step if whose == "step" else None)
    rates = [dagscale.search(net, recipe, seeds=1).lr, dagscale.plan(net, recipe=recipe, law="short-run").lr]
    assert all(
        torch.equal(a, b) for own, before in zip(batches, kept, strict=True) for a, b in zip(own, before, strict=True)
    )
    assert all(0.01 < rate < 100 for rate in rates)


class Convolved(nn.Module):
    """Two graph convolutions; the adjacency is an input, of any layout."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 12, bias=False), nn.Linear(12, 3, bias=False)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        out: Tensor = adjacency @ self.two(torch.relu(adjacency @ self.one(x)))
        return out


class Edges(Convolved):
    """The same, its adjacency given as edges."""

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        (source, target), n = adjacency, len(x)
        return super().forward(x, torch.zeros(n, n).index_put_((target, source), WEIGHTS[target, source]))


N = 280  # more than one measurement takes at once
generator = torch.Generator().manual_seed(3)
WEIGHTS = ((torch.rand(N, N, generator=generator) < 0.02).float() + torch.eye(N)).clamp(max=1)
WEIGHTS /= WEIGHTS.sum(1, keepdim=True)
NODES = torch.randn(N, 6, generator=generator)
LABELS = (WEIGHTS @ NODES @ torch.randn(6, 3, generator=generator)).argmax(1)
LAYOUTS = {
    "dense": WEIGHTS.clone,
    "coo": WEIGHTS.to_sparse,
    "csr": WEIGHTS.to_sparse_csr,
    "edges": lambda: WEIGHTS.nonzero().t().flip(0),
}


def graph_net(layout: str) -> nn.Module:
    torch.manual_seed(0)
    return (Edges if layout == "edges" else Convolved)()


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", ["coo", "csr", "edges"])
def test_a_graph_given_whole_is_measured_whole_in_any_layout(layout: str) -> None:
    recipes = {k: Recipe([((NODES, LAYOUTS[k]()), LABELS)], steps=8) for k in ("dense", layout)}
    plans = [dagscale.plan(graph_net(k), recipe=recipe) for k, recipe in recipes.items()]
    assert plans[1].lr == pytest.approx(plans[0].lr, rel=1e-3)
    for name, own in plans[0].parameters.items():
        assert plans[1].parameters[name].init_std == pytest.approx(own.init_std, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", ["dense", "coo", "csr"])
def test_no_rows_are_taken_from_a_graph(layout: str) -> None:
    """Rows of its adjacency in one order and columns in another would be another graph."""
    for call in (dagscale.search, lambda m, data: dagscale.plan(m, data=data, loss=cross_entropy)):
        with pytest.raises(dagscale.DagscaleError, match=r"no batch of rows .* give whole batches") as caught:
            call(graph_net(layout), ((NODES, LAYOUTS[layout]()), LABELS))
        assert "\n" not in str(caught.value)


def test_rows_of_nested_tensors_are_refused() -> None:
    nested = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(2, 4)], layout=torch.jagged)
    with pytest.raises(dagscale.DagscaleError, match="no batch of rows"):
        Recipe((nested, torch.zeros(2, dtype=torch.long)))


if __name__ == "__main__":
    measure_peaks()


class Detector(nn.Module):
    """As torchvision's: lists of images and of what is in them, one by one; in training a dict of losses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.kind, self.box = nn.Linear(width, 2), nn.Linear(width, 4)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        seen = torch.stack([self.body(image).mean((1, 2)) for image in images])
        labels, boxes = (torch.cat([target[name] for target in targets]) for name in ("labels", "boxes"))
        return {
            "kind": cross_entropy(self.kind(seen), labels),
            "box": nn.functional.smooth_l1_loss(self.box(seen), boxes),
        }


def test_images_and_boxes_one_by_one() -> None:
    """Batches differ in their number, since the last one is smaller, and images in their size."""
    rows = [
        (x.repeat(k % 3 + 2, 2)[None], {"labels": y[None], "boxes": x[None].abs()})
        for k, (x, y) in enumerate(zip(X[:40], Y, strict=False))
    ]
    loader = DataLoader(rows, batch_size=16, shuffle=True, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    recipe = Recipe(
        loader, lambda losses: sum(losses.values()), "adam", steps=6,
        unpack=lambda batch: ((list(batch[0]), list(batch[1])), None),
    )  # fmt: skip
    assert [batch.size for batch, _ in zip(recipe.source.batches(0), range(3), strict=False)] == [16, 16, 8]
    found = dagscale.search(Detector(4), recipe, grid=[1e-3, 1e-2, 1e-1], seeds=1)
    plan = dagscale.plan(Detector(8), base=found)
    assert set(plan.parameters) == {name for name, _ in Detector(8).named_parameters()}


def test_a_tuple_of_tensors_is_rows_however_many_they_are() -> None:
    x = torch.arange(40.0).reshape(20, 2)
    three = source((x, x + 1, x[:, 0]), 8, lambda batch: ((batch[0], batch[1]), batch[2]))
    batch = next(three.batches(0))
    assert batch.size == 8
    assert torch.equal(batch.inputs[0] + 1, batch.inputs[1])
    assert torch.equal(batch.inputs[0][:, 0], batch.target)
    assert next(source((x,), 8).batches(0)).size == 8


def test_tensors_that_are_all_alike_are_batches_unless_a_batch_size_is_given() -> None:
    x = torch.randn(96, 2)
    assert next(source(x.split(32), None).batches(0)).size == 32
    assert next(source(x.split(32), None, lambda batch: (batch, batch)).batches(0)).size == 32
    rows = source(x.split(32), 8, lambda batch: (batch[:2], batch[2]))
    assert [t.shape for t in next(rows.batches(0)).inputs] == [(8, 2), (8, 2)]


def test_a_batch_size_beside_batches_is_refused() -> None:
    x = torch.randn(20, 2)
    with pytest.raises(RecipeError, match="columns of data must have one length, got 64, 64, 10"):
        Recipe((X[:64], Y[:64], Y[:10]), cross_entropy, steps=4, batch_size=8)
    with pytest.raises(RecipeError, match="batch_size=8, and the data are a list of batches"):
        source([(x, x), (x, x), (x, x)], 8)
