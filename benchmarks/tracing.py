"""What a trace costs, in one run: against the same forward on fake tensors without a recorder, and torch.export.

python benchmarks/tracing.py [--large]     # --large: Llama-7B, -70B and Mixtral-8x7B shapes on meta
"""

from __future__ import annotations

import argparse
import gc
import logging
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MODELS = ("resnet18", "resnet50", "densenet121", "inception_v3", "efficientnet_b0", "convnext_tiny",
          "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_b16_224", "regnety_032")  # fmt: skip
LANGUAGE = ("bert", "gpt2", "llama", "t5", "mistral", "qwen3", "mamba")
LARGE = ("llama-7b", "llama-70b", "mixtral-8x7b")
REPEATS = 3


def seconds(*runs: Callable[[], Any]) -> list[float]:
    """For each of ``runs``, taken in turns, the median of ``REPEATS`` processor times after one that warms up.

    Processor time on one thread does not feel what else the machine does.
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(REPEATS + 1):
        for run, taken in zip(runs, times, strict=True):
            gc.collect()
            start = time.process_time()
            run()
            taken.append(time.process_time() - start)
    return [statistics.median(taken[1:]) for taken in times]


def bare(model: Any, inputs: Any) -> Callable[[], Any]:
    """The same forward on fake tensors, with no recorder."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._pytree import tree_map

    from dagscale.tracing.forward import bind_inputs, plain_eager, unchanged_random_state, unchanged_state
    from dagscale.tracing.state import State

    args, kwargs = bind_inputs(model, inputs)

    def run() -> None:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        given, named = tree_map(lambda t: fake.from_tensor(t) if isinstance(t, torch.Tensor) else t, (args, kwargs))
        with unchanged_state(State(*model.modules())), unchanged_random_state(), plain_eager(), fake:
            for module in model.modules():
                for table in (module._parameters, module._buffers):
                    for name, tensor in table.items():
                        if tensor is not None:
                            table[name] = fake.from_tensor(tensor)
            model(*given, **named)

    return run


def exported(model: Any, inputs: Any) -> Callable[[], Any]:
    from dagscale.tracing.forward import bind_inputs

    args, kwargs = bind_inputs(model, inputs)
    return lambda: torch.export.export(model, args, kwargs, strict=False)


def cases() -> list[tuple[str, Any, Any]]:
    """Name, model and inputs, all on the CPU with real weights."""
    from dagscale.models.timm import declare_torchvision_ops

    declare_torchvision_ops()
    import timm
    import zoo_transformers

    listed: list[tuple[str, Any, Any]] = []
    for name in MODELS:
        model = timm.create_model(name).eval()
        listed.append((name, model, torch.randn(2, *model.pretrained_cfg["input_size"])))
    for name in LANGUAGE:
        model, inputs = zoo_transformers.build(name, "cpu")
        model.config.use_cache = False
        listed.append((name, model, inputs))
    return listed


def compare() -> None:
    """The table of ratios."""
    import dagscale

    print(f"{'model':32} {'trace s':>8} {'fake s':>8} {'ratio':>6} {'export s':>9} {'export/trace':>12}")
    ratios = []
    for name, model, inputs in cases():
        ours, plain = seconds(lambda m=model, x=inputs: dagscale.trace(m, x), bare(model, inputs))
        try:
            (export,) = seconds(exported(model, inputs))
            theirs = f"{export:9.3f} {export / ours:12.1f}"
        except Exception as error:
            theirs = f"    fails: {type(error).__name__}"
        ratios.append(ours / plain)
        print(f"{name:32} {ours:8.3f} {plain:8.3f} {ours / plain:6.2f} {theirs}", flush=True)
    middle = statistics.median(ratios)
    print(f"trace / bare fake forward: median {middle:.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


def peak_memory() -> float:
    """MiB of this process alone; a child inherits ``ru_maxrss``, so the kernel's own count is asked first."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def large(name: str) -> None:
    """One large shape on meta: building, tracing, peak memory of the process."""
    from dagscale.models.timm import declare_torchvision_ops

    declare_torchvision_ops()
    import transformers

    import dagscale

    llama = {"vocab_size": 32000, "max_position_embeddings": 4096}
    configs: dict[str, Callable[[], Any]] = {
        "llama-7b": lambda: transformers.LlamaConfig(
            hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, **llama
        ),
        "llama-70b": lambda: transformers.LlamaConfig(
            hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
            num_key_value_heads=8, **llama,
        ),
        "mixtral-8x7b": lambda: transformers.MixtralConfig(),
    }  # fmt: skip
    imported = peak_memory()
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(configs[name](), dtype=torch.bfloat16)
    inputs = torch.zeros(1, 2048, dtype=torch.int64, device="meta")
    start = time.process_time()
    graph = dagscale.trace(model, inputs, select=lambda out: out.logits)
    took = time.process_time() - start
    peak = peak_memory()
    scalars = sum(p.numel for p in graph.parameters)
    assert all(p.reached for p in graph.parameters)
    print(f"{name:14} {scalars / 1e9:6.1f} billion parameters  {took:6.2f} s  "
          f"peak {peak:5.0f} MiB ({imported:.0f} after imports)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    if options.one:
        large(options.one)
        return
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
          f"processor seconds on 1 thread, median of {REPEATS}")  # fmt: skip
    if not options.large:
        compare()
    for name in LARGE:  # each in a process of its own, for its peak memory
        subprocess.run([sys.executable, __file__, "--one", name], check=True)


if __name__ == "__main__":
    main()
