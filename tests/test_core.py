"Configurations, records, and what survives a kill."

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from junkdna_nb.base.config import StudyError
from junkdna_nb.base.experiments import GlueConfig
from junkdna_nb.base.records import (
    _fingerprint,
    code_version,
    find_record,
    load_items,
    load_record,
    load_runs,
    run_recorded,
    save_record,
)
from junkdna_nb.base.storage import (
    check_writable,
    hold,
    project_root,
    runs_dir,
    stale,
    temporary_for,
    unheld,
    write_atomic,
)

BAD = [
    ("sparsity", 1.0),
    ("sparsity", -0.1),
    ("sparsity", float("nan")),
    ("sparsity", "80%"),
    ("sparsity", None),
    ("sparsity", True),
    ("data_share", 0),
    ("data_share", 1.01),
    ("data_share", "all"),
    ("seed", -1),
    ("seed", 1.5),
    ("seed", "x"),
    ("epochs", 0),
    ("batch_size", 0),
    ("learning_rate", 0.0),
    ("learning_rate", float("inf")),
    ("n_kept", 0),
    ("m_group", 0),
    ("max_length", 4),
    ("task", "moovie"),
    ("task", 3),
    ("model", "minlm"),
    ("model", "../x"),
    ("mode", "frozen"),
    ("recipe", "refrence"),
    ("method", "magnitud"),
    ("pattern", "n:m"),
    ("precision", "fp16"),
    ("granularity", "column"),
]


@pytest.mark.parametrize("name,value", BAD, ids=str)
def test_bad_values_are_one_line_that_names_them(name, value):
    with pytest.raises(StudyError) as e:
        GlueConfig.make(**{name: value})
    assert (
        "\n" not in str(e.value)
        and name in str(e.value)
        and str(value) in str(e.value)
        and "allowed" in str(e.value)
    )


def test_impossible_group():
    with pytest.raises(StudyError, match="n_kept=5 of m_group=4 is impossible"):
        GlueConfig(pattern="nm", n_kept=5, m_group=4)


@pytest.mark.parametrize(
    "wrong,right", [("sparsty", "sparsity"), ("sead", "seed"), ("lerning_rate", "learning_rate")]
)
def test_unknown_parameter_names_the_nearest(wrong, right):
    with pytest.raises(StudyError, match=f"unknown parameter '{wrong}'; did you mean '{right}'"):
        GlueConfig.make(**{wrong: 1})


@given(st.floats(0, 0.999), st.integers(0, 2**32 - 1), st.integers(0, 10**6))
def test_digest_follows_what_matters(sparsity, seed, save_steps):
    a = GlueConfig(sparsity=sparsity, seed=seed)
    assert (
        a.digest
        == GlueConfig.make(
            **{"sparsity": repr(sparsity), "seed": str(seed), "save_steps": save_steps}
        ).digest
    )
    assert a.digest != a.replace(seed=(seed + 1) % 2**32).digest
    assert (
        a.replace(mode="dense").digest == a.replace(mode="dense", sparsity=0.123, n_kept=1).digest
    )


def test_digest_is_stable_across_processes():
    code = (
        "from junkdna_nb.base.experiments import GlueConfig; print(GlueConfig(sparsity=0.5).digest)"
    )
    outs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(i)},
        ).stdout.strip()
        for i in range(3)
    }
    assert outs == {GlueConfig(sparsity=0.5).digest}


def _work(config, record):
    record |= dict(metric="accuracy", metrics={"accuracy": dict(value=0.5, se=0.1, n=4)})
    return pd.DataFrame(dict(id=list("abcd"), correct=[True, False, True, False]))


def test_record_and_items_come_back(runs):
    config = GlueConfig(seed=7)
    record = run_recorded(config, _work)
    assert find_record(config)["digest"] == config.digest and load_items(record).correct.sum() == 2
    assert (
        record["environment"]["versions"]["torch"]
        and record["peak_memory_bytes"] > 0
        and record["status"] == "ok"
    )
    assert GlueConfig.make(**record["config"]) == config
    assert len(load_runs()) == 1


def test_items_that_are_not_the_records_own_are_refused(runs):
    record = run_recorded(GlueConfig(), _work)
    pd.DataFrame(dict(id=["z"])).to_parquet(runs / "02_glue" / record["items"]["file"])
    with pytest.raises(StudyError, match="not the one its record describes"):
        load_items(record)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema_version": 99}',
        "\x00\x01",
        json.dumps(dict(schema_version=1, status="ok")),
    ],
)
def test_damaged_records_are_named_and_skipped(runs, content):
    run_recorded(GlueConfig(), _work)
    (runs / "02_glue" / "bad.json").write_text(content)
    with pytest.warns(UserWarning, match="bad.json"):
        assert len(load_runs()) == 1


def test_nan_never_enters_a_record(runs):
    with pytest.raises(ValueError, match="not JSON"):
        save_record({**run_recorded(GlueConfig(), _work), "x": float("nan")})


def test_failure_leaves_a_failed_record_but_never_over_a_good_one(runs):
    def fail(config, record):
        raise RuntimeError("out of ink")

    for config in (GlueConfig(seed=1), GlueConfig(seed=2)):
        if config.seed == 2:
            run_recorded(config, _work)
        with pytest.raises(RuntimeError):
            run_recorded(config, fail)
    assert load_runs(status="failed").seed.tolist() == [1] and load_runs().seed.tolist() == [2]


@pytest.mark.parametrize("folder", ["/proc/junkdna", "file/under"])
def test_folder_that_cannot_be_written(tmp_path, monkeypatch, folder):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JUNKDNA_RUNS", str(tmp_path / folder))
    called = []
    with pytest.raises(StudyError, match="cannot write"):
        run_recorded(GlueConfig(), lambda c, r: called.append(1))
    assert not called


def test_root_is_found_from_anywhere(tmp_path, monkeypatch):
    root = project_root()
    monkeypatch.delenv("JUNKDNA_RUNS")
    for place in (root, root / "nbs", tmp_path):
        monkeypatch.chdir(place)
        assert runs_dir("02_glue") == root / "papermill_runs" / "02_glue"


WRITER = """
import sys, pandas as pd
from junkdna_nb.base.records import save_record
for i in range(10**6):
    record = dict(schema_version=1, experiment='02_glue', name='x', digest='d', status='ok',
                  config={}, metrics={}, environment={}, i=i, pad=[f'{i:09d}'] * 20000)
    save_record(record, pd.DataFrame(dict(id=range(5000), i=i)))
    print(i, flush=True)
"""


def test_kill_at_any_moment_leaves_records_whole_or_absent(runs):
    "A process that rewrites one record as fast as it can is killed at random moments."
    rng, states = random.Random(0), set()
    for _ in range(8):
        p = subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        time.sleep(rng.uniform(0, 0.4))
        p.send_signal(signal.SIGKILL)
        p.wait()
        path = runs / "02_glue" / "x.json"
        states.add(path.exists())
        if path.exists():
            record = load_record(path)
            assert len(record["pad"]) == 20000 and set(record["pad"]) == {f"{record['i']:09d}"}
            items = load_items(record)
            assert len(items) == 5000 and set(items.i) == {record["i"]}
    write_atomic((runs / "02_glue" / "x.json", b""))
    assert not list((runs / "02_glue").glob(".tmp-x.json-*")), (
        "temporary files of a killed writer are removed by the next"
    )
    assert True in states


@pytest.mark.parametrize(
    "harm",
    [
        dict(metrics={"accuracy": 3}),
        dict(relative="x"),
        dict(certificate=[1]),
        dict(certificate=dict(evaluation=None)),
        dict(metric=["a"]),
    ],
    ids=str,
)
def test_records_of_the_wrong_shape_are_skipped_too(runs, harm):
    record = run_recorded(GlueConfig(), _work)
    (runs / "02_glue" / "odd.json").write_text(json.dumps({**record, **harm}))
    (runs / "02_glue" / "deep.json").write_text("[" * 200_000)
    with pytest.warns(UserWarning, match="odd.json|deep.json"):
        assert len(load_runs()) == 1


def test_two_writers_of_one_file_do_not_disturb_each_other(runs):
    code = (
        "from junkdna_nb.base.storage import write_atomic\n"
        "for _ in range(400): write_atomic(('{}', b'x' * 100000))"
    ).format(runs / "x")
    both = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [(p.communicate()[1], p.returncode) for p in both] == [("", 0)] * 2
    assert [p.name for p in runs.iterdir()] == ["x"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which processes there are")
def test_leftovers_of_ended_processes_are_found(tmp_path):
    "Of one that is gone or a zombie; not of one that lives, nor of another machine"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    while Path(f"/proc/{ended.pid}/stat").read_text().split(")")[1].split()[0] != "Z":
        time.sleep(0.05)
    mine = tmp_path / temporary_for("x")
    left = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
    mine.touch(), left.touch(), left.with_name(f".tmp-x-elsewhere-{ended.pid}-").touch()
    assert stale(tmp_path) == [left]
    ended.wait()
    assert stale(tmp_path) == [left]
    check_writable(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3, "the trial goes again"


def test_abandoned_locks_are_told_from_trials_of_the_folder(runs):
    "Two sweeps start at once: one clears abandoned locks while the other tries to write there"
    folder = runs / ".locks"
    folder.mkdir(parents=True)
    (folder / "abandoned").touch()
    (folder / ".tmp-probe-1").touch()
    with hold(folder / "held"):
        assert [p.name for p in unheld(remove=True)] == ["abandoned"]
        assert sorted(p.name for p in folder.iterdir()) == [".tmp-probe-1", "held"]


CHANGES = [
    ("compression/pruning.py", True),
    ("base/tasks.py", True),
    ("transfer/modes.py", True),
    ("decoding/scoring.py", True),
]
CHANGES += [
    (f, False)
    for f in (
        "evidence/claims.py",
        "evidence/plots.py",
        "machinery/site.py",
        "machinery/cli.py",
        "decoding/harness.py",
    )
]


@pytest.mark.parametrize("module, counts", CHANGES)
def test_code_version_follows_what_can_change_a_result(tmp_path, module, counts):
    "A statement of evidence, machinery or the harness leaves it; a comment always does"
    package = tmp_path / "junkdna_nb"
    shutil.copytree(
        project_root() / "junkdna_nb", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    assert _fingerprint(package) == code_version()
    changed = package / module
    changed.write_text(changed.read_text() + "\n# a comment\n")
    assert _fingerprint(package) == code_version()
    changed.write_text(changed.read_text() + "\nCHANGED = True\n")
    assert (_fingerprint(package) != code_version()) == counts


def answer(code):
    "What a new process prints"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_record_reads_the_same_when_only_records_is_imported(runs):
    "Fields that an experiment got later are there, at their defaults"
    record = run_recorded(GlueConfig(), _work)
    later = {"steps", "input_share", "probabilities"}
    config = {k: v for k, v in record["config"].items() if k not in later}
    path = Path(record["path"])
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))
    code = "import json; from junkdna_nb.base.records import load_record; "
    read = json.loads(answer(f"{code}print(json.dumps(load_record({str(path)!r})['config']))"))
    assert read == record["config"] and len(config) == len(read) - len(later)


def test_records_are_imported_without_the_experiments():
    "The register of experiments is filled by them; what lies below knows their names only"
    loaded = "[m for m in sys.modules if m.endswith(('.experiments', '.models', '.tasks'))]"
    assert answer(f"import sys; import junkdna_nb.base.records; print({loaded})") == "[]"
