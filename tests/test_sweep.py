"Sweeps for real: the installed command, Dask's own commands, real kills at random moments."

import contextlib
import faulthandler
import json
import os
import queue
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
import yaml
from conftest import BIN, ROOT, command
from distributed import Client

from junkdna_nb.base.experiments import GlueConfig
from junkdna_nb.base.records import load_items, load_record, load_runs
from junkdna_nb.machinery import warm
from junkdna_nb.machinery.grid import Task, make_plan, read_grid
from junkdna_nb.machinery.runner import claim
from junkdna_nb.machinery.sweep import _Sweep
from junkdna_nb.machinery.warm import run_isolated

TINY = dict(model="tiny/bert", max_train=64, max_eval=32, epochs=1, max_length=32)
SIX = """
blocks:
  tiny:
    experiment: 02_glue
    fixed: {model: tiny/bert, max_train: 64, max_eval: 32, epochs: 1, max_length: 32}
    cross: {mode: [dense, sparse], sparsity: [0.5, 0.8], seed: [41, 42]}
"""

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(SIX)
    return path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(*words, **env):
    return subprocess.Popen(
        [str(BIN / words[0]), *map(str, words[1:])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **env},
        cwd=ROOT,
    )


def alive(p):
    try:
        return p.is_running() and p.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(pid):
    "All living processes below one"
    try:
        return [p for p in psutil.Process(pid).children(recursive=True) if alive(p)]
    except psutil.NoSuchProcess:
        return []


def kinds(pid):
    "The processes of a sweep by kind: Dask's workers, forkservers, and runs forked from those"
    found = dict(worker=[], warm=[], run=[])
    for p in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess, AttributeError):
            words = " ".join(p.cmdline())
            if "multiprocessing.forkserver" in words:
                forked = "multiprocessing.forkserver" in " ".join(p.parent().cmdline())
                found["run" if forked else "warm"].append(p)
            elif "multiprocessing.spawn" in words:
                found["worker"].append(p)
    return found


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def contents(runs):
    "Everything in the records that does not tell the time, and the items"
    out = {}
    for path in load_runs(status=None).path:
        record = load_record(path)
        assert record["digest"] not in out, "a duplicate"
        items = load_items(record)
        for k in ("timings", "created", "peak_memory_bytes", "path", "training"):
            record.pop(k, None)
        out[record["digest"]] = (record, items.to_json())
    return out


def assert_tidy(runs):
    "No half-written file, no lock, no notebook of a failed run, nothing without a record"
    # The only one there may be: of a run killed between its record and the end of its notebook.
    for path in runs.rglob("*.failed.ipynb"):
        assert not path.with_name(path.name.replace(".failed", "")).exists()
        path.unlink()
    names = {Path(p).stem for p in load_runs().path}
    files = [p for p in runs.rglob("*") if p.is_file()]
    assert {p.name.rsplit(".", 1)[0] for p in files} == names and {p.suffix for p in files} == {
        ".json",
        ".parquet",
        ".ipynb",
        ".png",
    }, files


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_mirror):
    "Records of the grid of six, made by two sweeps that were started at the same time"
    runs = tmp_path_factory.mktemp("undisturbed")
    (runs / "grid.yaml").write_text(SIX)
    two = [
        start(
            "junkdna",
            "sweep",
            runs / "grid.yaml",
            "--jobs",
            1,
            "--threads",
            1,
            JUNKDNA_RUNS=str(runs / "runs"),
            JUNKDNA_STUDY=str(runs / "none"),
            JUNKDNA_MIRROR=str(tiny_mirror),
        )
        for _ in range(2)
    ]
    told = [p.communicate(timeout=300)[0] for p in two]
    assert [p.returncode for p in two] == [0, 0], told
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUNKDNA_RUNS", str(runs / "runs"))
        patch.setenv("JUNKDNA_STUDY", str(runs / "none"))
        patch.setenv("JUNKDNA_MIRROR", str(tiny_mirror))
        assert_tidy(runs / "runs")
        return told, contents(runs / "runs")


def test_two_sweeps_at_once_do_the_work_once(undisturbed):
    told, found = undisturbed
    assert len(found) == 6
    done, elsewhere = zip(
        *(
            map(
                int,
                re.search(
                    r"(\d+) done(?: \((\d+) of them by another process\))?",
                    t.splitlines()[-3 if "net work" in t else -1],
                ).groups(default="0"),
            )
            for t in told
        ),
        strict=True,
    )
    assert sum(done) - sum(elsewhere) == 6, told


def test_kills_at_random_moments_lose_nothing(runs, grid, undisturbed):
    "kill -9 of runs, forkservers and workers, then of the sweep itself, each at random moments"
    rng = random.Random()
    seed = rng.randrange(10**6)
    print("seed", seed)
    rng.seed(seed)
    words = ("junkdna", "sweep", grid, "--jobs", 2, "--threads", 1)
    p = start(*words)
    for kind in rng.sample(["run", "warm", "worker", "run"], 4):
        if p.poll() is not None:
            break
        time.sleep(rng.uniform(0, 4))
        # The sweep, or that process, may end first.
        with contextlib.suppress(TypeError, psutil.NoSuchProcess, AssertionError):
            there = wait_for(lambda kind=kind: p.poll() is not None or kinds(p.pid)[kind], 30)
            rng.choice(there).kill()
    told = p.communicate(timeout=300)[0]
    assert p.returncode in (0, 1), told
    for path in load_runs(status="failed").path:
        record = load_record(path)
        assert "was killed" in record["error"], record["error"]
    p = start(*words)
    time.sleep(rng.uniform(3, 14))
    left = family(p.pid)
    p.kill()
    p.communicate()
    # Nothing goes on without it.
    wait_for(lambda: not any(map(alive, left)), 120)
    for path in load_runs().path:
        load_items(load_record(path))
    done = command(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(runs) == undisturbed[1]
    assert_tidy(runs)
    again = command(*words)
    assert again.returncode == 0 and "6 done, 0 to run" in again.stdout


def test_a_killed_forkserver_costs_nothing(runs):
    "A run goes on without it, and the next one has a new one"
    request, killed = (
        dict(experiment="02_glue", params=dict(TINY, mode="dense"), threads=1, force=True),
        [],
    )

    def kill(event):
        (server,) = kinds(os.getpid())["warm"]
        server.kill()
        killed.append(server.pid)

    assert run_isolated(request, kill)["status"] == "ok"
    assert run_isolated(request, kill)["status"] == "ok" and len(set(killed)) == 2


def dask(*words):
    return start("dask", *words)


def tiny_smoke(folder):
    "The smoke grid on the tiny models"
    blocks = yaml.safe_load((ROOT / "nbs" / "configs" / "smoke.yaml").read_text())["blocks"]
    for block in blocks.values():
        encoder = block["experiment"] == "02_glue"
        block["fixed"]["model"] = "tiny/bert" if encoder else "tiny/llama"
    path = folder / "smoke.yaml"
    path.write_text(yaml.safe_dump(dict(blocks=blocks)))
    return path


def test_a_cluster_of_separate_processes(runs, tmp_path, grid, undisturbed, monkeypatch):
    "The documented commands; a worker is killed, then the scheduler, and another takes over"

    def cluster(port):
        scheduler = dask("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
        return scheduler, [another(port, i) for i in range(2)]

    def another(port, i):
        return dask(
            "worker",
            f"tcp://127.0.0.1:{port}",
            "--nthreads",
            1,
            "--resources",
            "GPU=1",
            "--local-directory",
            tmp_path / f"worker{i}",
        )

    port = free_port()
    scheduler, workers = cluster(port)
    everything = [scheduler, *workers]
    try:
        with Client(f"tcp://127.0.0.1:{port}", timeout=60) as client:
            client.wait_for_workers(2, timeout=90)
        address = ("--scheduler", f"tcp://127.0.0.1:{port}", "--resources", "GPU=1")
        none = command(
            "junkdna",
            "sweep",
            grid,
            "--scheduler",
            f"tcp://127.0.0.1:{port}",
            "--resources",
            "TPU=1",
        )
        assert (
            none.returncode == 2
            and f"error: no worker at tcp://127.0.0.1:{port} offers TPU=1" in none.stderr
        ), none.stderr
        p = start("junkdna", "sweep", tiny_smoke(tmp_path), *address)
        wait_for(lambda: kinds(workers[0].pid)["run"], 90)
        left = family(workers[0].pid)
        workers[0].kill()
        workers.append(another(port, 2))
        everything.append(workers[-1])
        told = p.communicate(timeout=600)[0]
        assert p.returncode == 0, told
        wait_for(lambda: not any(map(alive, left)), 120)
        assert (
            set(load_runs().experiment)
            == {"02_glue", "03_options", "04_context", "05_kshot", "06_qa_format"}
            and len(load_runs()) == 11
            and not len(load_runs(status="failed"))
        )
        assert_tidy(runs)

        monkeypatch.setenv("JUNKDNA_RUNS", str(tmp_path / "second"))
        p = start("junkdna", "sweep", grid, *address, "--threads", 1)
        wait_for(lambda: kinds(workers[1].pid)["run"], 60)
        time.sleep(random.uniform(0, 1.5))
        scheduler.kill()
        told = p.communicate(timeout=120)[0]
        assert (
            p.returncode == 1 and "the scheduler has gone; the same command goes on with" in told
        ), told
        for w in workers[1:]:
            w.kill()
        port = free_port()
        everything += [*(more := cluster(port))[1], more[0]]
        with Client(f"tcp://127.0.0.1:{port}", timeout=60) as client:
            client.wait_for_workers(2, timeout=90)
        done = command(
            "junkdna", "sweep", grid, "--scheduler", f"tcp://127.0.0.1:{port}", "--threads", 1
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert contents(runs) == undisturbed[1]
        assert_tidy(tmp_path / "second")
    finally:
        for p in everything:
            for q in [*family(p.pid), p]:
                with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                    q.kill()
            p.communicate()


def test_failures_are_recorded_and_the_sweep_goes_on(runs, tmp_path):
    "A run that cannot work, one too long, one whose baseline fails; then only the failed again"
    path = tmp_path / "grid.yaml"
    path.write_text("""
blocks:
  fine:
    experiment: 02_glue
    fixed: {model: tiny/bert, mode: dense, max_train: 64, max_eval: 32, epochs: 1, max_length: 32}
  too_long_for_the_model:
    experiment: 02_glue
    fixed: {model: tiny/bert, max_length: 1000, max_train: 64, max_eval: 32}
  slow:
    experiment: 02_glue
    fixed: {mode: dense, epochs: 50}
""")
    words = (
        "junkdna",
        "sweep",
        path,
        "--jobs",
        2,
        "--threads",
        1,
        "--minutes",
        0.35,
        "--keep",
        "failed",
    )
    done = command(*words)
    assert (
        done.returncode == 1
        and "1 done, 3 failed, 0 not run" in done.stdout
        and done.stderr.startswith("error: 3 of 4 runs are missing")
    ), done.stdout + done.stderr
    failed = load_runs(status="failed").set_index("name")
    errors = sorted(failed.error)
    assert any("time limit of 0.35 minutes reached" in e for e in errors) and any(
        e.startswith("its dense baseline failed: max_length=1000 is more than tiny/bert can read")
        for e in errors
    ), errors
    for record in map(load_record, failed.path):
        if record["notebook"]:
            nb = nbformat.read(Path(record["path"]).with_name(record["notebook"]), 4)
            assert record["traceback"] and nb.cells
    assert len(list(runs.rglob("*.failed.ipynb"))) == 2 and not [
        p for p in runs.rglob("*.ipynb") if ".failed" not in p.name
    ], "--keep failed"
    assert "4 points" not in done.stdout and "1 dense baseline" in done.stdout
    listed = command("junkdna", "runs", "status=failed")
    assert listed.returncode == 0 and listed.stdout.count("failed") >= 3
    again = command(*words, "--only", "failed", "--dry-run")
    assert "3 failed last time" in again.stdout and "3 to run" in again.stdout, again.stdout
    digest = load_runs().digest.item()
    assert (
        command("junkdna", "show", digest[:8])
        .stdout.splitlines()[0]
        .startswith("02_glue movie-tiny_bert-dense-seed41")
    )
    (runs / "02_glue" / "orphan.png").write_bytes(b"x")
    (runs / ".locks" / "0123456789ab").touch()
    assert (
        "nothing removed" in command("junkdna", "clean").stdout
        and (runs / "02_glue" / "orphan.png").exists()
    )
    assert command("junkdna", "clean", "--yes").returncode == 0
    assert (
        not (runs / "02_glue" / "orphan.png").exists()
        and not list((runs / ".locks").iterdir())
        and len(load_runs(status=None)) == 4
    )


def test_control_c(runs, grid):
    "Once: what runs goes on to its end. The signal reaches every process, as it does in a terminal"
    grid.write_text(SIX.replace("epochs: 1", "epochs: 100"))
    p = start("junkdna", "sweep", grid, "--jobs", 2, "--threads", 1)
    wait_for(lambda: kinds(p.pid)["run"], 180)
    time.sleep(1.5)  # until the sweep has heard of it
    left = family(p.pid)
    os.killpg(p.pid, signal.SIGINT)
    told = p.communicate(timeout=120)[0]
    assert (
        p.returncode == 130
        and "go on to their end" in told
        and "Traceback" not in told
        and told.rstrip().endswith("interrupted")
    ), told
    assert 1 <= len(load_runs()) <= 2 and not len(load_runs(status="failed"))
    wait_for(lambda: not any(map(alive, left)), 120)
    assert_tidy(runs)


@pytest.mark.parametrize("early", [False, True])
def test_a_run_that_is_stopped_leaves_nothing(runs, early):
    "As when Ctrl-C comes before the sweep has heard that the run began, or in the middle of it"
    told = []
    outcome = run_isolated(
        dict(experiment="02_glue", params=TINY, threads=1), told.append, lambda: early or bool(told)
    )
    assert outcome["status"] == "stopped" and told == ([] if early else ["started"]), (
        outcome,
        told,
    )
    assert not [p for p in runs.rglob("*") if p.is_file()] and not kinds(os.getpid())["run"]


def hang(request, own, environment, events):
    "In place of a run: native code that never ends and keeps Python's lock"
    warm._end_with_parent()
    log = open(f"{own}/log", "w")  # noqa: SIM115
    faulthandler.register(signal.SIGTERM, log, chain=True)
    events.send("started")
    re.match("(a+)+$", 60 * "a" + "b")


def test_the_time_limit_does_not_depend_on_the_run(runs, monkeypatch):
    monkeypatch.setattr(warm, "_work", hang)
    start = time.monotonic()
    outcome = run_isolated(dict(experiment="02_glue", params=TINY, cold=True, minutes=0.05))
    assert (
        outcome["error"] == "time limit of 0.05 minutes reached" and time.monotonic() - start < 60
    )
    record = load_record(load_runs(status="failed").path.item())
    assert record["error"] == outcome["error"] and any(
        "in hang" in line for line in record["traceback"]
    ), "where it was"


PARENT = """
from junkdna_nb.machinery import warm
from test_sweep import TINY, hang
if HANGS:
    warm._work = hang
request = dict(experiment="02_glue", params=TINY, threads=1, cold=HANGS)
warm.run_isolated(request, lambda event: print(event, flush=True))
"""


@pytest.mark.parametrize("moment", ["it imports", "it runs", "native code hangs"])
def test_nothing_outlives_the_one_that_started_it(runs, moment):
    "kill -9 while the forkserver imports, a run is at work, or native code holds Python's lock"
    hangs = moment == "native code hangs"
    p = subprocess.Popen(
        [sys.executable, "-c", PARENT.replace("HANGS", str(hangs))],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT / "tests",
    )
    if moment == "it imports":
        server = wait_for(lambda: kinds(p.pid)["warm"])[0]
        wait_for(lambda: "torch" in Path(f"/proc/{server.pid}/maps").read_text())
    else:
        assert p.stdout.readline() == "started\n"
        time.sleep(0.5)
    left = family(p.pid)
    p.kill()
    p.communicate()
    wait_for(
        lambda: not any(map(alive, left)), 60 if moment == "it imports" else 5
    )  # a forkserver imports to the end
    assert left and not len(load_runs(status=None))


def test_warm_and_cold_runs_are_the_same_to_the_bit(runs, monkeypatch):
    "A fork of a warm process and a new interpreter leave the same record and the same items"
    found = []
    for cold in (False, True):
        folder = runs / str(cold)
        monkeypatch.setenv("JUNKDNA_RUNS", str(folder))
        outcome = run_isolated(
            dict(experiment="02_glue", params=dict(TINY, sparsity=0.5), threads=1, cold=cold)
        )  # and its dense baseline
        assert outcome["status"] == "ok", outcome
        found.append(contents(folder))
    assert found[0] == found[1] and len(found[0]) == 2


def _mounted(folder, options):
    folder.mkdir(parents=True, exist_ok=True)
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True
        ).returncode
    ):
        pytest.skip("file systems cannot be mounted here")


def test_full_disk_and_read_only_folder(runs, tmp_path, monkeypatch):
    "A clear failure each, and the records of before are intact"
    folder = tmp_path / "disk"
    _mounted(folder, "size=400k")
    try:
        monkeypatch.setenv("JUNKDNA_RUNS", str(folder))
        words = ("junkdna", "run", "02_glue", *(f"{k}={v}" for k, v in TINY.items()), "mode=dense")
        done = command(*words)
        assert done.returncode == 0, done.stderr
        before = contents(folder)
        room = shutil.disk_usage(folder).free
        (folder / "ballast").write_bytes(b"x" * (room - 8192))
        done = command(
            "junkdna", "run", "02_glue", *(f"{k}={v}" for k, v in TINY.items()), "sparsity=0.5"
        )
        assert (
            done.returncode in (1, 2)
            and done.stderr.count("\n") == 1
            and "No space left on device" in done.stderr
        ), done.stderr
        assert contents(folder) == before and not [
            p for p in folder.rglob("*.json") if p.stat().st_size == 0
        ]
        (folder / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        (tmp_path / "grid.yaml").write_text(SIX)
        done = command("junkdna", "sweep", tmp_path / "grid.yaml")
        assert (
            done.returncode == 2
            and done.stderr.startswith(f"error: cannot write {folder}")
            and "Read-only file system" in done.stderr
            and done.stderr.count("\n") == 1
        ), done.stderr
        assert contents(folder) == before
    finally:
        subprocess.run(["umount", folder])


def block(*lines, experiment="02_glue"):
    "A grid of one block with these lines in it"
    lines = ["blocks:", "  a:", f"    experiment: {experiment}", *map("    {}".format, lines)]
    return "\n".join([*lines, ""])


BAD = [
    ("3: unknown experiment '02_glu'; did you mean '02_glue'?", block(experiment="02_glu")),
    (
        "4: unknown parameter 'sparsty' of 02_glue; did you mean 'sparsity'?",
        block("fixed: {sparsty: 0.5}"),
    ),
    ("5: block 'a': epochs='two' is not a whole number", block("cross:", "  epochs: [1, two]")),
    ("4: sparsity is empty", block("cross: {sparsity: []}")),
    ("4: seed=1 is listed twice", block("cross: {seed: [1, 2, 1]}")),
    ("5: 'fixed' is given twice in block 'a'", block("fixed: {seed: 1}", "fixed: {seed: 2}")),
    ("1: a grid is not a mapping", "- a\n- list\n"),
    ("1: a grid is not a mapping", ""),
    ("3: experiment='/etc/02_glue' lies outside the project", block(experiment="/etc/02_glue")),
    (
        "4: calibration='/etc/hosts.txt' lies outside the project",
        block("fixed: {method: wanda, calibration: /etc/hosts.txt}"),
    ),
    ("1: not YAML", "blocks: {a: [}\n"),
    ("5: an exclusion is empty", block("exclude:", "- {}")),
    (
        "6: this exclusion excludes no point of block 'a' with mode='spare'",
        block("cross: {mode: [dense, sparse]}", "exclude:", "- {mode: [dense, spare]}"),
    ),
    ("4: 'zip' is empty", block("zip: {}")),
    ("4: cannot be read", block("fixed: {seed: !!int ''}")),
    ("4: cannot be read", block("fixed: {dynamics: !!bool maybe}")),
    ("3: merge keys (<<) are not supported", "blocks:\n  a:\n    <<: {experiment: 02_glue}\n"),
    (
        "4: calibration='nowhere.txt' is no file of the project",
        block("fixed: {method: wanda, calibration: nowhere.txt}"),
    ),
    (
        "6: block 'a': n_kept=9 of m_group=8 is impossible",
        block("fixed:", "  pattern: nm", "  n_kept: 9"),
    ),
]


@pytest.mark.parametrize(
    "message,text", BAD, ids=[message.split(":", 1)[1][1:30] for message, _ in BAD]
)
def test_bad_grids_are_one_line_with_the_place(tmp_path, capsys, text, message):
    from junkdna_nb.machinery.cli import main

    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["sweep", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"error: {path}:{message}"), err


def test_wrong_options_are_one_line(grid, capsys):
    from junkdna_nb.machinery.cli import main

    for words, message in [
        (["--keep", "some"], "unknown keep 'some'"),
        (["--only", "faild"], "unknown only 'faild'; did you mean 'failed'?"),
        (["--resources", "GPU"], "resources='GPU' is not of the form"),
        (["--resources", "GPU=1"], "resources need a cluster"),
        (["--block", "tinny"], "unknown block 'tinny'; did you mean 'tiny'?"),
        (["--jobs", "-1"], "jobs=-1 is out of range"),
    ]:
        assert main(["sweep", str(grid), "--dry-run", *words]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err


@pytest.mark.parametrize("name", ["smoke", "study", "study_gpu", "paper"])
def test_the_grids_of_the_project_are_valid(name):
    points, _ = read_grid(ROOT / "nbs" / "configs" / f"{name}.yaml")
    todo, rest = make_plan(points)
    baselines = sum(t.config.baseline() is None for t in todo)
    assert not rest and all(t.needed == 0 for t in todo[baselines:]), "baselines come first"
    assert {t.config.digest for t in todo} >= {t.baseline for t in todo if t.baseline}
    if name == "smoke":
        assert {p.config.experiment for p in points} == {
            "02_glue",
            "03_options",
            "04_context",
            "05_kshot",
            "06_qa_format",
        }


def test_what_enters_the_digest(tmp_path, monkeypatch):
    "The content of mirrored data does; folder names and times do not; no mirror is another source"
    folder = tmp_path / "one" / "nyu-mll" / "glue" / "rte"
    folder.mkdir(parents=True)
    (folder / "train.parquet").write_bytes(b"some rows")
    (tmp_path / "one" / "nyu-mll" / "glue" / "cola").mkdir()
    config = GlueConfig(task="rte")
    monkeypatch.delenv("JUNKDNA_MIRROR", raising=False)
    digests = [config.digest]
    monkeypatch.setenv("JUNKDNA_MIRROR", str(tmp_path / "one"))
    digests.append(config.digest)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    monkeypatch.setenv("JUNKDNA_MIRROR", str(tmp_path / "two"))
    assert config.digest == digests[1]
    (tmp_path / "two" / "nyu-mll" / "glue" / "cola" / "other.parquet").write_bytes(
        b"of another task"
    )
    assert config.digest == digests[1]
    (tmp_path / "two" / "nyu-mll" / "glue" / "rte" / "train.parquet").write_bytes(b"some row5")
    os.utime(
        tmp_path / "two" / "nyu-mll" / "glue" / "rte" / "train.parquet", ns=(0, 0)
    )  # file systems may tell time in steps longer than this test
    digests.append(config.digest)
    assert len(set(digests)) == 3
    assert (
        GlueConfig().sources()["data"]
        == GlueConfig(task="product").sources()["data"]
        != GlueConfig(task="sarcasm").sources()["data"]
    )


def test_what_is_planned_though_its_record_is_there_is_run_again():
    "Such as a baseline of another torch: a worker that finds the record must not stop at it"
    asked = {}

    class Client:
        def submit(self, function, request, baseline, key, **how):
            asked[request["digest"]] = request["force"]
            return SimpleNamespace(key=key, add_done_callback=lambda done: None)

    common = dict(topic="t")
    sweep = _Sweep(Client(), [], None, 1, common, {}, None, queue.SimpleQueue())
    configs = dict(done=GlueConfig(mode="dense"), missing=GlueConfig(), failed=GlueConfig(seed=9))
    for state, config in configs.items():
        sweep.submit(Task(config, {}, "a grid", state=state), 0, True)
    assert asked == {c.digest: state == "done" for state, c in configs.items()}


def test_stale_and_forced(runs, grid, undisturbed):
    "Plans on the records of the undisturbed sweep, written by hand into a folder of their own"
    folder = runs / "02_glue"
    folder.mkdir(parents=True)
    for record, _ in undisturbed[1].values():
        (folder / f"{record['name']}.json").write_text(
            json.dumps(
                {
                    **record,
                    "timings": dict(total_s=3.0),
                    "created": "2026-01-01T00:00:00+00:00",
                    "items": None,
                }
            )
        )
    points, merged = read_grid(grid)
    assert (len(points), merged) == (6, 2)

    def count(**kw):
        return tuple(map(len, make_plan(points, **kw)))

    assert (
        count() == (0, 6)
        and count(force=True) == (6, 0)
        and count(only="failed") == (0, 6)
        and count(only="stale") == (0, 6)
    )
    victim = next(iter(folder.glob("*dense*.json")))
    record = json.loads(victim.read_text())
    record["environment"]["code"]["fingerprint"] = "0" * 16
    victim.write_text(json.dumps(record))
    assert count() == (0, 6) and count(only="stale") == (1, 5)
    victim.write_text(victim.read_text()[:100])
    todo, rest = make_plan(points)
    assert [t.state for t in todo] == ["missing"], "a damaged record is run again"


def test_numbers_of_an_exclusion_may_be_written_in_any_way(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "blocks:\n  a:\n    experiment: 02_glue\n    cross: {learning_rate: [1e-4, 5e-5]}\n"
        "    exclude:\n    - {learning_rate: 0.0001}\n"
    )
    assert [p.config.learning_rate for p in read_grid(path)[0]] == [5e-5]


def test_a_claim_is_dropped_by_a_kill(runs):
    config = GlueConfig()
    code = """import time
from junkdna_nb.base.experiments import GlueConfig
from junkdna_nb.machinery.runner import claim
with claim(GlueConfig()):
    print('mine', flush=True)
    time.sleep(60)
"""
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "mine\n"

    def held():
        raise TimeoutError

    with pytest.raises(TimeoutError), claim(config, held):
        pass
    p.kill()
    with claim(config):
        pass
    p.communicate()
    assert not list((runs / ".locks").iterdir())


def test_a_worker_that_sees_other_data_says_so(runs, monkeypatch):
    "The digest that was planned and the one a worker computes must agree"
    from junkdna_nb.machinery.runner import perform

    outcome = perform(dict(experiment="02_glue", params=dict(TINY), digest="0" * 12))
    assert (
        outcome["status"] == "failed"
        and "sees another model, other data or other code" in outcome["error"]
        and not runs.exists()
    )
    monkeypatch.delenv("JUNKDNA_MIRROR", raising=False)
    request = dict(
        experiment="02_glue", params=dict(task="rte"), digest=GlueConfig(task="rte").digest
    )
    monkeypatch.setenv("JUNKDNA_MIRROR", str(runs.parent))
    (runs.parent / "nyu-mll" / "glue" / "rte").mkdir(parents=True)
    assert "sees another model" in perform(request)["error"]
