"The user's own command, for real: papermill from the shell, in every way it is documented."

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import time

import nbformat
import papermill
import pytest
from conftest import BIN, ROOT, cell_outputs, command

from junkdna_nb.base.experiments import EXPERIMENTS
from junkdna_nb.base.records import load_items, load_record, load_runs

NOTEBOOK = ROOT / "nbs" / "02_glue.ipynb"
SMALL = []
for name, value in dict(max_train=32, max_eval=24, epochs=1, max_length=16).items():
    SMALL += ["-p", name, value]


def only_record(runs, **fields):
    found = load_runs("02_glue")
    for k, v in fields.items():
        found = found[found[k] == v]
    assert len(found) == 1
    return load_record(found.path.item())


def outputs(nb):
    return "".join(o.text for o in cell_outputs(nb, "stream"))


@pytest.mark.parametrize("config", EXPERIMENTS.values(), ids=lambda c: c.experiment)
def test_defaults_are_written_once(config):
    "The parameters cell and the configuration agree, name by name"
    cell = {
        k: v["default"]
        for k, v in papermill.inspect_notebook(
            str(ROOT / "nbs" / f"{config.experiment}.ipynb")
        ).items()
    }
    assert set(cell) == {f.name for f in dataclasses.fields(config)}
    space = {}
    exec("\n".join(f"{k} = {v}" for k, v in cell.items()), space)
    assert config.make(**{k: space[k] for k in cell}) == config()


@pytest.mark.parametrize("where,how", [("nbs", "piped"), ("root", "path")])
def test_papermill_prunes_what_it_was_told(runs, tmp_path, where, how):
    cwd = ROOT if where == "root" else ROOT / "nbs"
    words = [
        "papermill",
        NOTEBOOK.relative_to(cwd),
        *([tmp_path / "out.ipynb"] if how == "path" else []),
        "-p",
        "sparsity",
        "0.8",
        *SMALL,
    ]
    done = command(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr[-2000:]
    nb = nbformat.reads(done.stdout if how == "piped" else (tmp_path / "out.ipynb").read_text(), 4)
    assert outputs(nb).startswith(
        "scale: minilm (22.7 M parameters), movie, "
        "32 of 8,033 training and 24 of 2,037 evaluation examples"
    )
    record = only_record(runs, mode="sparse")
    assert record["config"]["sparsity"] == 0.8
    for moment in ("pruning", "evaluation", "reloaded"):
        c = record["certificate"][moment]
        assert (
            c["sparsity"] == c["zeros"] / c["size"] == pytest.approx(0.8, abs=1 / c["size"])
            and c["size"] == 10_616_832
        )
    assert (runs / "02_glue" / f"{record['name']}.png").stat().st_size > 5000 and len(
        load_items(record)
    ) == 24


def test_a_lost_tag_is_noticed(runs, tmp_path):
    "Without the tag papermill injects above the defaults, which would silently win"
    nb = nbformat.read(NOTEBOOK, 4)
    tagged = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    tagged[0].metadata.pop("tags")
    nbformat.write(nb, tmp_path / "untagged.ipynb")
    done = command(
        "papermill",
        tmp_path / "untagged.ipynb",
        tmp_path / "out.ipynb",
        "-p",
        "sparsity",
        "0.3",
        *SMALL,
    )
    assert (
        done.returncode != 0 and "its parameters cell has lost the tag 'parameters'" in done.stderr
    )
    assert not runs.exists()


BAD = [
    ("sparsty", "0.8", "unknown parameter 'sparsty'; did you mean 'sparsity'?"),
    ("sparsity", "80%", "sparsity='80%' is not a number"),
    ("sparsity", "1.0", "sparsity=1.0 is out of range (allowed: a number in [0, 1))"),
    ("sparsity", "nan", "sparsity=nan is not a number"),
    ("task", "moovie", "unknown task 'moovie'; did you mean 'movie'?"),
    ("model", "minlm", "unknown model 'minlm'; did you mean 'minilm'?"),
    ("mode", "sparce", "unknown mode 'sparce'; did you mean 'sparse'?"),
    ("recipe", "refrence", "did you mean 'reference'?"),
    ("data_share", "0", "data_share=0 is out of range"),
    ("seed", "-1", "seed=-1 is out of range"),
    ("n_kept", "9", "n_kept=9 of m_group=8 is impossible"),
]


@pytest.mark.parametrize("name,value,message", BAD, ids=lambda x: str(x)[:12])
def test_bad_parameters_are_one_line_before_anything_heavy(runs, name, value, message):
    more = ["pattern=nm"] if name == "n_kept" else []
    code = f"""import sys
from junkdna_nb.machinery.cli import main
rc = main(['run', '02_glue', '{name}={value}', *{more}])
assert not {{'torch', 'transformers', 'datasets', 'papermill'}} & set(sys.modules)
sys.exit(rc)
"""
    done = subprocess.run([BIN / "python", "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and not runs.exists()
    assert (
        done.stderr.startswith("error: ")
        and done.stderr.count("\n") == 1
        and message in done.stderr
    ), done.stderr


@pytest.mark.parametrize("name,value,message", BAD[:2])
def test_papermill_itself_stops_at_a_bad_parameter(runs, tmp_path, name, value, message):
    done = command("papermill", NOTEBOOK, tmp_path / "out.ipynb", "-p", name, value)
    assert done.returncode != 0 and message in done.stderr and not runs.exists()
    errors = cell_outputs(nbformat.read(tmp_path / "out.ipynb", 4), "error")
    assert len(errors) == 1 and len(errors[0].traceback) == 1, (
        "one line in the notebook, no traceback"
    )


def test_run_command_leaves_everything_beside_each_other(runs, tiny):
    words = [
        "junkdna",
        "run",
        "02_glue",
        "model=tiny/bert",
        "max_train=32",
        "max_eval=24",
        "epochs=1",
        "max_length=16",
        "task=tweet",
        "mode=dense_frozen",
        "sparsity=0.5",
    ]
    done = command(*words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert " products" in lines[0] and lines[1].startswith("papermill nbs/02_glue.ipynb ")
    assert (
        [line.split(":")[0] for line in lines[-4:]] == ["scale", "dense", "dense_frozen", "files"]
        and "±" in lines[-3]
        and "50.0000%" in lines[-2]
    )
    record = only_record(runs, mode="dense_frozen")
    stem = runs / "02_glue" / record["name"]
    assert all(
        stem.with_name(stem.name + e).is_file() for e in (".ipynb", ".json", ".parquet", ".png")
    )
    assert (
        stem.with_name(stem.name + ".ipynb").stat().st_size < 200_000
        and outputs(nbformat.read(f"{stem}.ipynb", 4)).count("100%") == 2
    ), "one line per bar"
    assert not [p for p in (runs / "02_glue").iterdir() if p.name.startswith(".tmp")]
    at_once = command(*words)
    told = at_once.stdout.splitlines()
    assert at_once.returncode == 0 and told[0].startswith(f"found: {record['name']}, made ")
    assert "--force" in told[0] and told[-4:] == lines[-4:] and len(told) == 6
    again = command(*words, "--force")
    assert "dense baseline: found" in again.stdout

    def strip(r):
        return {
            k: v
            for k, v in r.items()
            if k not in ("timings", "created", "peak_memory_bytes", "training", "path")
        }

    assert strip(only_record(runs, mode="dense_frozen")) == strip(record), "the same twice"


def test_a_failed_run_says_so_and_keeps_its_notebook(runs):
    done = command("junkdna", "run", "02_glue", "max_length=1000")
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: max_length=1000 is more than minilm can read")
        and done.stderr.count("\n") == 1
    )
    record = load_record(load_runs("02_glue", "failed").path.item())
    assert (
        record["error"].startswith("max_length=1000 is more than minilm can read")
        and record["traceback"]
    )
    assert (
        sorted(p.name for p in (runs / "02_glue").iterdir())
        == [f"{record['name']}.failed.ipynb", f"{record['name']}.json"]
        and record["notebook"] == f"{record['name']}.failed.ipynb"
    )


def test_output_folder_that_cannot_be_written():
    done = command("junkdna", "run", "02_glue", env=dict(JUNKDNA_RUNS="/proc/nowhere"))
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: cannot write")
        and done.stderr.count("\n") == 1
    )


def test_kill_in_the_middle_leaves_nothing_half_written(runs):
    "kill -9 of a whole run, command and process, at a random moment, then an undisturbed one"
    moment = random.uniform(4, 14)
    print(f"killed after {moment:.3f} s")
    words = [
        BIN / "junkdna",
        "run",
        "02_glue",
        "max_train=64",
        "max_eval=24",
        "epochs=1",
        "max_length=16",
        "sparsity=0.5",
    ]
    p = subprocess.Popen(
        list(map(str, words)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(moment)
    for pid in [int(d) for d in os.listdir("/proc") if d.isdigit() and _session(d) == p.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    p.wait()
    for path in (runs / "02_glue").glob("*.json"):
        load_items(load_record(path))
    assert not [
        p
        for p in (runs / "02_glue").glob("*.ipynb")
        if not p.name.startswith(".") and not json.loads(p.read_text())
    ]
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert sorted(load_runs("02_glue")["mode"]) == ["dense", "sparse"]


def _session(pid):
    try:
        return os.getsid(int(pid))
    except (ProcessLookupError, PermissionError):
        return None


def test_a_killed_run_leaves_the_good_notebook_alone(runs):
    words = [
        "junkdna",
        "run",
        "02_glue",
        "max_train=32",
        "max_eval=24",
        "epochs=1",
        "max_length=16",
        "mode=dense",
    ]
    assert command(*words).returncode == 0
    good = next((runs / "02_glue").glob("*.ipynb")).read_bytes()
    p = subprocess.Popen(
        [str(BIN / words[0]), *words[1:], "--force"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.time() + 60
    processes = []
    while not processes and time.time() < deadline:
        time.sleep(0.2)
        processes = [
            int(d)
            for d in os.listdir("/proc")
            if d.isdigit() and _parent(d) == p.pid and b"multiprocessing.spawn" in _cmdline(d)
        ]
    while not _begun(runs / "02_glue") and time.time() < deadline:
        time.sleep(0.1)
    os.kill(processes[0], signal.SIGKILL)
    out, err = p.communicate(timeout=120)
    assert (
        p.returncode == 1
        and err.splitlines()[-1].startswith("error: the run was killed by signal 9")
        and "Traceback" not in err
    )
    assert (
        next(q for q in (runs / "02_glue").glob("*.ipynb") if "failed" not in q.name).read_bytes()
        == good
    )
    assert len(load_runs("02_glue")) == 1


def _begun(folder):
    "Has a first cell begun, by the notebook that papermill is writing?"
    cells = []
    try:
        for path in folder.glob(".tmp-*.ipynb"):
            cells += json.loads(path.read_text())["cells"]
    except (ValueError, FileNotFoundError):
        return False  # it is being written
    return any(cell["metadata"].get("papermill", {}).get("start_time") for cell in cells)


def test_relative_places_are_taken_from_the_callers_folder(tmp_path):
    done = command(
        "junkdna",
        "run",
        "02_glue",
        "max_train=16",
        "max_eval=8",
        "epochs=1",
        "max_length=16",
        "mode=dense",
        cwd=tmp_path,
        env=dict(JUNKDNA_RUNS="here", JUNKDNA_ROOT=str(ROOT)),
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "here" / "02_glue").glob("*.json"))) == 1


@pytest.mark.parametrize(
    "place,value,message",
    [
        ("JUNKDNA_ROOT", "/nonexistent", "no project found"),
        ("JUNKDNA_CACHE", "/proc/x", "cannot write"),
    ],
)
def test_places_that_do_not_work(place, value, message):
    done = command("junkdna", "run", "02_glue", env={place: value})
    assert (
        done.returncode == 2
        and done.stderr.startswith(f"error: {message}")
        and done.stderr.count("\n") == 1
    )


def _cmdline(pid):
    try:
        return open(f"/proc/{pid}/cmdline", "rb").read()
    except OSError:
        return b""


def _parent(pid):
    try:
        return int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None
