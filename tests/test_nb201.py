"""NAS-Bench-201 and the other cell spaces: published sizes, equivalences, path sums against tracing."""

import itertools
import math
import random

import pytest
import torch

from dagscale import path_sums, trace
from dagscale.bench.nas.isomorphism import RULES, groups
from dagscale.errors import TargetError, TraceError
from dagscale.graph.paths import kernel_size
from dagscale.models import load, resolve, sample
from dagscale.models.cells import CELL_OPS, CellGraph, Moments, cell_moments
from dagscale.models.darts import PUBLISHED
from dagscale.models.nb201 import COUNT, NB201, Nb201, path_facts, published_order

ALL = tuple(Nb201.enumerate())


def parameters(target: str) -> int:
    return sum(p.numel() for p in load(target)[0].parameters())


# From the NATS-Bench repository's own test files (indices 0, 11, 284; issue 36 for 1_03_433), from the smallest and
# largest sizes in the benchmark as HPOBench lists them (no convolution; all 3×3), with 10, 100 and 120 classes.
@pytest.mark.parametrize(
    ("arch", "published"),
    [
        ("3_33_333", (1_531_546, 1_537_396, 1_538_696)),
        ("0_00_000", (73_306, 79_156, 80_456)),
        ("1_11_111", (73_306, 79_156, 80_456)),
        ("4_21_211", (129_306, 135_156, 136_456)),
        ("3_34_034", (802_426, 808_276, 809_576)),
        ("1_11_020", (101_306, 107_156, 108_456)),
        ("1_03_433", (802_426,)),
    ],
)
def test_parameters_are_the_published_ones(arch: str, published: tuple[int, ...]) -> None:
    for classes, count in zip((10, 100, 120), published, strict=False):
        assert parameters(f"nb201:{arch}?input=3x32x32&classes={classes}") == count


# NAS-Bench-101: the example in its own documentation. DARTS: "3.3M" in its README, 3.349342 in its training logs;
# Progressive DARTS without auxiliary classifier as counted in its issue 7.
@pytest.mark.parametrize(
    ("target", "published"),
    [
        ("nb101:1_01_001_1000_10011_001001-3m331", 8_555_530),
        ("darts:V2", 3_349_342),
        ("darts:PDARTS", 3_433_798),
    ],
)
def test_other_spaces_parameters_are_the_published_ones(target: str, published: int) -> None:
    assert parameters(f"{target}?input=3x32x32") == published


def test_code_string_and_index_name_the_same_architecture() -> None:
    assert len(ALL) == len(set(ALL)) == COUNT == 15_625
    for arch in random.Random(0).sample(ALL, 300):
        assert Nb201.parse(arch.code) == Nb201.parse(arch.arch_str) == Nb201.parse(str(arch.index)) == arch
    # Published: NATS-Bench's first architectures, and the best on the three data sets.
    assert published_order()[0].arch_str == (
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    )
    assert Nb201.parse("9930").arch_str == (
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    )
    assert [Nb201.parse(str(i)).code for i in (1, 2, 284)] == ["3_34_131", "4_33_444", "1_11_020"]


@pytest.mark.parametrize("cells", [1, 3])
def test_path_sums_without_modules_are_those_of_the_traced_network(cells: int) -> None:
    special = [Nb201.parse(code) for code in ("1_11_111", "4_44_444", "3_33_333", "0_30_003", "0_03_300", "2_00_003")]
    for arch in [*special, *random.Random(cells).sample(ALL, 12)]:
        facts = path_facts(arch, cells)
        net = NB201(arch, channels=2, cells=cells)
        if not arch.graph.has_path:
            assert facts.paths == facts.depth_cubed == 0
            continue
        graph = trace(net, torch.randn(2, 3, 8, 8))
        sums = path_sums(graph)
        assert (facts.paths, facts.depth_cubed) == (sums.paths, sums.depth_cubed), arch
        assert facts.kernel == pytest.approx(kernel_size(graph), rel=1e-12)
        base = path_facts(Nb201.parse("0_00_300"), 1)
        wanted = math.sqrt(base.depth_cubed / sums.depth_cubed) * base.kernel / kernel_size(graph)
        assert facts.factor(base) == pytest.approx(wanted)


def test_none_is_dead_and_its_parameters_are_not_reached() -> None:
    # Vertex 2 reads nothing, so its 3×3 convolution to the output carries nothing; vertex 1 leads nowhere.
    model, inputs = load("nb201:2_00_103?channels=4&cells=1&input=3x8x8")
    graph = trace(model, inputs)
    unreached = {p.name for p in graph.parameters if not p.reached}
    assert {name for name in unreached if name.endswith("conv.weight")} == {
        f"stages.{s}.0.edges.{edge}.conv.weight" for s in range(3) for edge in ("0_1", "2_3")
    }
    model.train()(inputs).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == unreached


def test_special_architectures_are_named() -> None:
    kinds = [arch.kind for arch in ALL]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "convolutional": 13_642, "pooling only": 1_175, "skip connections only": 467, "no path": 341,
    }  # fmt: skip
    for code, kind in (("0_00_000", "no path"), ("3_33_000", "no path"), ("1_11_111", "skip connections only"),
                       ("4_10_410", "pooling only"), ("0_00_200", "convolutional")):  # fmt: skip
        arch = Nb201.parse(code)
        assert arch.kind == kind
        model, inputs = load(f"nb201:{code}?channels=2&cells=1")
        assert kind in repr(model)
        logits = model(inputs)
        assert logits.isfinite().all()
        if kind == "no path":
            assert torch.equal(logits[0], logits[1])
            with pytest.raises(TraceError, match="no path from input to output"):
                trace(model, inputs)
        else:
            assert path_sums(trace(model, inputs)).paths == path_facts(arch, 1).paths > 0


def test_groups_count_what_the_literature_counts_and_less() -> None:
    found = {rule: groups(rule=rule) for rule in RULES}
    assert {rule: len(g) for rule, g in found.items()} == {
        "strings-skip": 12_751, "strings": 6_466, "dag": 5_260, "linear": 5_044, "scale": 4_954,
    }  # fmt: skip
    for finer, coarser in itertools.pairwise(("dag", "linear", "scale")):
        leader = {arch: group[0] for group in found[coarser] for arch in group}
        assert all(len({leader[arch] for arch in group}) == 1 for group in found[finer])
    assert sum(map(len, found["linear"])) == COUNT
    for group in found["linear"]:
        assert len({path_facts(arch, 2) for arch in group}) == 1


def cell_output(arch: Nb201, weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A cell in double precision whose live convolutions take ``weights`` in order, without normalisation."""
    model = NB201(arch, channels=2, cells=1).stages[0][0].double().eval()
    live = [f"{u}_{v}" for u, v, op in arch.graph.live if "conv" in op]
    with torch.no_grad():
        for name, weight in zip(live, weights, strict=True):
            convolution = model.edges[name].conv
            convolution.weight.copy_(weight[:, :, 1:2, 1:2] if convolution.kernel_size == (1, 1) else weight)
        return model(x)


def test_members_of_a_group_compute_the_same_and_others_do_not() -> None:
    """Numerically: for some matching of the convolutions the outputs agree, or for none."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 5, 5, generator=generator, dtype=torch.float64)
    weights = [torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(6)]

    def equal(a: Nb201, b: Nb201) -> bool:
        ops = [[op for _, _, op in arch.graph.live if "conv" in op] for arch in (a, b)]
        if sorted(ops[0]) != sorted(ops[1]):
            return False
        wanted = cell_output(a, weights[: len(ops[0])], x)
        return any(
            torch.allclose(wanted, cell_output(b, list(order), x), atol=1e-9)
            for order in itertools.permutations(weights[: len(ops[0])])
        )

    rng = random.Random(1)
    large = [g for g in groups() if len(g) > 1 and 1 <= sum("conv" in op for _, _, op in g[0].graph.live) <= 3]
    for group in rng.sample(large, 12):
        assert equal(*rng.sample(group, 2)), group
    # Equal as texts, told apart as graphs: one shared convolution, or two.
    one = Nb201.parse("3_01_033")
    two = Nb201.parse("3_30_033")
    assert not equal(one, two)
    leader = {arch: group[0] for group in groups() for arch in group}
    assert leader[one] != leader[two]
    for a, b in itertools.combinations(rng.sample([g[0] for g in large], 10), 2):
        assert not equal(a, b)


def test_operations_have_the_depth_and_kernels_they_state() -> None:
    class One(torch.nn.Module):
        def __init__(self, op: str) -> None:
            super().__init__()
            self.before = torch.nn.Conv2d(4, 4, 1)
            self.op = CELL_OPS[op].build(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.op(self.before(x))

    for name in CELL_OPS:
        graph = trace(One(name), torch.randn(2, 4, 8, 8))
        assert path_sums(graph).max_depth == CELL_OPS[name].depth, name
        kernels = tuple(use.layer.kernel[0] for use in graph.layers)
        assert kernels == (1, *CELL_OPS[name].kernels), name


def test_moments_are_those_of_enumerated_paths() -> None:
    rng = random.Random(0)
    for _ in range(30):
        edges = tuple(
            (u, v, rng.choice(("nor_conv_3x3", "skip_connect")))
            for v in range(1, 6) for u in range(v) if rng.random() < 0.6
        )  # fmt: skip
        weight = {"nor_conv_3x3": 3, "skip_connect": 1}
        step = {(u, v): weight[op] for u, v, op in edges}
        totals = [0, 0, 0, 0]
        for size in range(5):
            for inner in itertools.combinations(range(1, 5), size):
                hops = list(itertools.pairwise((0, *inner, 5)))
                if all(hop in step for hop in hops):
                    length = sum(step[hop] for hop in hops)
                    totals = [t + length**k for k, t in enumerate(totals)]
        assert cell_moments(CellGraph(6, edges, (5,)), weight) == Moments(*totals)


def test_other_spaces_run_at_any_size_and_trace() -> None:
    for target in (
        "darts:V1?channels=4&cells=4&input=3x9x9", "darts:V2?channels=3&cells=1", "nb101:1?channels=4&cells=1",
        "nb101:1_11_011_1001-3m1?channels=5&cells=1&input=3x7x7", "nb201:3_02_401?channels=3&cells=1&input=2x9x11",
    ):  # fmt: skip
        model, inputs = load(target)
        assert model(inputs).shape == (2, 10)
        graph = trace(model, inputs)
        assert path_sums(graph).paths > 0
        assert all(p.reached for p in graph.parameters)


def test_sampling_gives_distinct_targets_that_have_a_path() -> None:
    drawn = sample("nb201", count=40, seed=3, channels=4)
    assert len(set(drawn)) == 40
    assert drawn == sample("nb201", count=40, seed=3, channels=4)
    assert all(Nb201.parse(t.split(":")[1].split("?")[0]).graph.has_path for t in drawn)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("nb201:3_24", "groups"),
        ("nb201:3_24_44", "must have 3 digits"),
        ("nb201:3_25_440", "'5'"),
        ("nb201:15625", "0 to 15624"),
        ("nb201:|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|", "unknown operation 'conv'"),
        ("nb201:|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", "each of the edges"),
        ("nb201:|none~1|+|none~0|none~1|+|none~0|none~1|none~2|", "cannot read vertex 1"),
        ("nb201:||", "is not |OP~VERTEX|"),
        ("nb201:3_33_333?input=10", "takes images"),
        ("nb201:3_33_333?cells=0", "at least 1"),
        ("nb101:1_01_001-3", "inner vertices"),
        ("nb101:0_00_000-3m", "no path"),
        ("nb101:1_01_011-33?channels=1", "at least one each"),
        ("darts:V3", "published pairs: V1, V2, PDARTS"),
        (f"darts:{PUBLISHED['V1'][0]}", "NORMAL/REDUCTION"),
        ("darts:|none~0|none~1|+|none~0|+|none~0|+|none~0|/" + PUBLISHED["V1"][1], "no path"),
    ],
)
def test_malformed_targets_are_named(target: str, text: str) -> None:
    with pytest.raises(TargetError, match=r".") as caught:
        resolve(target).build()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
