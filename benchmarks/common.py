"What the benchmarks share: the machine, interleaved timing, the shapes of roberta-large, the end."

import argparse
import gc
import statistics
import sys
import time

import torch

from junkdna_nb.base.config import machine_precision, processor_flags

FEATURES = ("amx_tile", "avx512_bf16", "avx512f", "avx2")  # that decide the speed, best first
SHAPES = [(1024, 1024)] * 4 + [(4096, 1024), (1024, 4096)]  # one of roberta-large's 24 layers


def encoder_weights(layers=24, dtype=torch.float32, seed=0):
    "Random weights in the shapes of roberta-large's encoder: 302 M of them with 24 layers"
    g = torch.Generator().manual_seed(seed)
    # in place, so that no freed memory is left which a measurement of memory would not see
    return [torch.randn(shape, generator=g).mul_(0.05).to(dtype) for shape in SHAPES * layers]


def features():
    "Features of this processor that decide the speed, best first"
    return [name for name in FEATURES if name in (processor_flags() or ())]


def kind():
    "The kind of this machine: its device, or its best feature"
    if torch.cuda.is_available():
        return "gpu"
    found = features()
    if machine_precision() == "bf16":
        return "bf16"
    return found[0].removesuffix("f") if found else "plain"


def arguments(**options):
    "--repeats and whatever else a script needs (name=default); the machine is stated first"
    told = " ".join(features()) or "none of " + " ".join(FEATURES)
    print(f"{kind()} machine ({told}), {torch.get_num_threads()} threads, {machine_precision()}")
    parser = argparse.ArgumentParser()
    for name, default in ({"repeats": 5} | options).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()


def interleaved(contenders, repeats, once=()):
    "Median seconds of each contender, run in turns; those in `once` (slow anchors) twice"
    times = {name: [] for name in contenders}
    for round in range(repeats):
        for name, run in contenders.items():
            if name in once and round > 1:
                continue
            gc.collect()
            start = time.perf_counter()
            result = run()
            times[name].append(time.perf_counter() - start)
            del result
            print(f"round {round + 1}: {name} {times[name][-1]:.3f} s", file=sys.stderr, flush=True)
    return {name: statistics.median(t) for name, t in times.items()}


def closing(**values):
    "The last line, for machines"
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in values.items()}
    print(" ".join(f"{k}={v}" for k, v in shown.items()))
