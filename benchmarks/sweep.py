"""A sweep of twelve short runs (four dense baselines, eight sparse), two at a time.

The anchors: the same by the papermill command line one after another, timed for one of four seeds
and counted four times, and the sum of the sweep's net work. Net work is what a record timed, less
loading its model. Overhead is 1 - net work / (wall x slots), everything counted from the command
to its prompt: starting Dask, warming up, kernels, imports, data, figures, and slots that wait for a
baseline.
Papermill has all cores for each of its runs; the sweep gives every slot its share.
Also: how long it takes to validate and plan 10,000 points.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import arguments, closing

from junkdna_nb.base.config import machine_precision
from junkdna_nb.base.records import load_runs

args = arguments(repeats=1, train=0, jobs=2)  # train: 0 for some 25 s of work a run
BIN, NBS = Path(sys.executable).parent, Path(__file__).resolve().parents[1] / "nbs"
TRAIN = args.train or dict(bf16=1150, fp32=400)[machine_precision()]
FIXED = dict(task="movie", max_train=TRAIN, max_eval=300, epochs=2, max_length=64)
SEEDS, SPARSITIES = [1, 2, 3, 4], [0.5, 0.8]
TWELVE = dict(
    experiment="02_glue",
    fixed=FIXED,
    cross=dict(seed=SEEDS, mode=["dense", "sparse"], sparsity=SPARSITIES),
)
MANY = dict(  # 10,050 points
    experiment="02_glue",
    cross=dict(
        mode=["sparse", "dense_frozen", "sparse_to_dense"],
        sparsity=[round(0.01 * i, 2) for i in range(1, 51)],
        seed=list(range(67)),
    ),
)


def timed(*words, runs):
    "(seconds, output) of a command whose records go to the folder `runs`"
    start = time.perf_counter()
    done = subprocess.run(
        [str(w) for w in words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "JUNKDNA_RUNS": str(runs)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return time.perf_counter() - start, done.stdout


def grid(folder, name, block):
    "A file with a grid of one block; JSON is YAML"
    path = folder / f"{name}.json"
    path.write_text(json.dumps(dict(blocks={name: block})))
    return path


def net_work(runs):
    "Seconds that the records of a folder timed, less loading"
    os.environ["JUNKDNA_RUNS"] = str(runs)
    records = [json.loads(Path(p).read_text()) for p in load_runs("02_glue").path]
    return sum(r["timings"]["total_s"] - r["timings"]["load_s"] for r in records)


def one_after_another(folder):
    "Seconds of the twelve runs by papermill, from those of the first seed"
    serial = 0
    for mode, sparsity in [("dense", 0.8), ("sparse", 0.5), ("sparse", 0.8)]:
        told = []
        for name, value in (FIXED | dict(seed=SEEDS[0], mode=mode, sparsity=sparsity)).items():
            told += ["-p", name, value]
        notebooks = NBS / "02_glue.ipynb", folder / "out.ipynb"
        seconds, _ = timed(BIN / "papermill", *notebooks, *told, runs=folder / "serial")
        print(f"papermill {mode} {sparsity}: {seconds:.1f} s", file=sys.stderr, flush=True)
        serial += len(SEEDS) * seconds
    return serial


with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    os.environ["JUNKDNA_STUDY"] = str(folder / "study")  # nothing is found there
    sweep = BIN / "junkdna", "sweep"
    bench = grid(folder, "bench", TWELVE)
    ours, told = timed(*sweep, bench, "--jobs", args.jobs, runs=folder / "ours")
    print(*told.replace(f"{folder}/", "").strip().splitlines()[-3:], sep="\n")
    net = net_work(folder / "ours")
    serial = one_after_another(folder)
    serial_net = len(SEEDS) * net_work(folder / "serial")
    many = grid(folder, "many", MANY)
    plan, told = timed(*sweep, many, "--dry-run", runs=folder / "ours")
    print(told.replace(f"{folder}/", "").strip().splitlines()[-2])

print(
    f"twelve runs: sweep {ours:.1f} s with {args.jobs} at a time, papermill one after another "
    f"{serial:.1f} s; net work {net:.1f} s in the sweep ({net / 12:.1f} s a run), "
    f"{serial_net:.1f} s by papermill"
)
closing(
    speedup_serial=serial / ours,
    overhead=1 - net / (ours * args.jobs),
    net_per_run=net / 12,
    plan_10000_s=plan,
)
