"""A sweep of twelve short runs (four dense baselines, eight sparse), two at a time, against the same twelve by the papermill command line one after another, and against the sum of their net work.

Net work is what a record timed, less loading its model. Overhead is 1 - net work / (wall x slots), everything counted from the command to its prompt: starting Dask, warming up, kernels, imports, data, figures, and slots that wait for a baseline.
The anchor has all cores for each of its runs; the sweep gives every slot its share. Also: how long it takes to validate and plan 10,000 points.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import arguments, closing

from junkdna_nb.base.records import load_runs

args = arguments(repeats=1, train=1150, jobs=2)
BIN, NBS = Path(sys.executable).parent, Path(__file__).resolve().parents[1] / "nbs"
FIXED = dict(task="movie", max_train=args.train, max_eval=300, epochs=2, max_length=64)
SEEDS, SPARSITIES = [1, 2, 3, 4], [0.5, 0.8]
grid = dict(blocks=dict(bench=dict(experiment="02_glue", fixed=FIXED, cross=dict(seed=SEEDS, mode=["dense", "sparse"], sparsity=SPARSITIES))))


def timed(*words, **env):
    start = time.perf_counter()
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr[-2000:]
    return time.perf_counter() - start, done.stdout


with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    os.environ["JUNKDNA_STUDY"] = str(d / "study")   # nothing is found there
    (d / "grid.json").write_text(json.dumps(grid))   # JSON is YAML
    ours, told = timed(BIN / "junkdna", "sweep", d / "grid.json", "--jobs", args.jobs, JUNKDNA_RUNS=str(d / "ours"))
    print(*told.replace(f"{d}/", "").strip().splitlines()[-3:], sep="\n")
    os.environ["JUNKDNA_RUNS"] = str(d / "ours")
    records = [json.loads(Path(p).read_text()) for p in load_runs("02_glue").path]
    assert len(records) == 12
    net = sum(r["timings"]["total_s"] - r["timings"]["load_s"] for r in records)
    serial = 0
    for seed in SEEDS:
        for mode, sparsity in [("dense", 0.8), ("sparse", 0.5), ("sparse", 0.8)]:
            told = [x for k, v in {**FIXED, "seed": seed, "mode": mode, "sparsity": sparsity}.items() for x in ("-p", k, v)]
            seconds, _ = timed(BIN / "papermill", NBS / "02_glue.ipynb", d / "out.ipynb", *told, JUNKDNA_RUNS=str(d / "serial"))
            print(f"papermill {mode} {sparsity} seed {seed}: {seconds:.1f} s", file=sys.stderr, flush=True)
            serial += seconds
    os.environ["JUNKDNA_RUNS"] = str(d / "serial")
    serial_net = sum(r["timings"]["total_s"] - r["timings"]["load_s"] for r in (json.loads(Path(p).read_text()) for p in load_runs("02_glue").path))

    many = dict(blocks=dict(many=dict(experiment="02_glue", cross=dict(mode=["sparse", "dense_frozen", "sparse_to_dense"], sparsity=[round(0.01 * i, 2) for i in range(1, 51)], seed=list(range(67))))))   # 10,050 points
    (d / "many.json").write_text(json.dumps(many))
    plan, told = timed(BIN / "junkdna", "sweep", d / "many.json", "--dry-run", JUNKDNA_RUNS=str(d / "ours"))
    print(told.replace(f"{d}/", "").strip().splitlines()[-2])

print(f"twelve runs: sweep {ours:.1f} s with {args.jobs} at a time, papermill one after another {serial:.1f} s; net work {net:.1f} s in the sweep ({net / 12:.1f} s a run), {serial_net:.1f} s by papermill")
closing(speedup_serial=serial / ours, overhead=1 - net / (ours * args.jobs), net_per_run=net / 12, plan_10000_s=plan)
