"Evidence stands apart: whatever a user runs, the study's records are read and never written."

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass

import pandas as pd
import pytest
from conftest import ROOT, command

from junkdna_nb.base import config, records
from junkdna_nb.base.config import Config, StudyError, machine_precision, param, resolve_precision
from junkdna_nb.base.experiments import EXPERIMENTS, GlueConfig, get_experiment
from junkdna_nb.base.records import (
    arithmetic_of,
    comparable,
    find_baseline,
    find_record,
    load_record,
    load_runs,
    new_record,
    run_recorded,
    save_record,
    valid_record,
)
from junkdna_nb.base.storage import record_places
from junkdna_nb.evidence.study import Study
from junkdna_nb.machinery.cli import find_digest, main
from junkdna_nb.machinery.grid import make_plan, read_grid
from junkdna_nb.machinery.runner import record_failure

TINY = ["model=tiny/bert", "max_train=64", "max_eval=32", "epochs=1", "max_length=32"]
OTHER = dict(bf16="fp32", fp32="bf16")


def git(*words, cwd):
    asked = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *map(str, words)]
    return subprocess.run(asked, cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "A clone of the repository as it lies here, uncommitted changes included"
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    folder = tmp_path_factory.mktemp("clone") / "project"
    git("clone", "-q", ROOT, folder, cwd=ROOT)
    changed = git("ls-files", "-z", "--modified", "--others", "--exclude-standard", cwd=ROOT)
    for name in changed.split("\0"):
        if not name:
            continue
        target = folder / name
        target.unlink(missing_ok=True)
        if (ROOT / name).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    git("add", "-A", cwd=folder)
    git("commit", "-q", "--allow-empty", "-m", "as it lies here", cwd=folder)
    return folder


def contents(folder):
    "Path -> hash of every file below a folder"
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def inside(clone, monkeypatch):
    "Commands run in the clone, with its code, where a newcomer's would write"
    for name in ("JUNKDNA_RUNS", "JUNKDNA_STUDY"):
        monkeypatch.delenv(name)
    return dict(cwd=clone, env=dict(PYTHONPATH=str(clone), JUNKDNA_ROOT=str(clone)))


def test_runs_of_either_arithmetic_change_no_tracked_file(clone, inside, tiny, tmp_path):
    "On a study that cannot be written; then one run is made again, its baseline in another study"
    study = clone / "papermill_runs" / "study"
    before = contents(study)
    subprocess.run(["chmod", "-R", "a-w", study], check=True)
    try:
        for precision in ("fp32", "bf16"):
            done = command("junkdna", "run", "02_glue", *TINY, f"precision={precision}", **inside)
            assert done.returncode == 0, done.stderr
            assert f"-{precision}-" in done.stdout.splitlines()[-1], done.stdout
    finally:
        subprocess.run(["chmod", "-R", "u+w", study], check=True)
    made = sorted(p for p in (clone / "papermill_runs" / "02_glue").glob("*.json"))
    assert len(made) == 4
    assert [p.name for p in (clone / "papermill_runs").iterdir() if p.is_file()] == ["README.md"]
    assert git("status", "--porcelain", cwd=clone) == "" and contents(study) == before
    commit = git("rev-parse", "HEAD", cwd=clone).strip()
    for record in map(load_record, made):
        environment = record["environment"]
        assert record["precision"] == environment["precision"] == record["config"]["precision"]
        assert environment["code"]["commit"] == commit

    shutil.copytree(clone / "papermill_runs" / "02_glue", tmp_path / "evidence" / "02_glue")
    places = dict(JUNKDNA_STUDY=str(tmp_path / "evidence"), JUNKDNA_RUNS=str(tmp_path / "nothing"))
    sparse = next(r for r in map(load_record, made) if r["config"]["mode"] == "sparse")
    done = command("junkdna", "rerun", sparse["digest"], cwd=clone, env=inside["env"] | places)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dense baseline: found" in done.stdout and "agrees" in done.stdout, done.stdout
    assert not (tmp_path / "nothing").exists()


@pytest.fixture
def study(committed, monkeypatch):
    monkeypatch.setenv("JUNKDNA_STUDY", str(committed))
    return committed


def headline():
    "The record that `make glue` would have overwritten"
    return find_record(GlueConfig(), "bf16", "study")


def test_a_committed_record_stands_for_its_arithmetic_only(study, runs):
    record = headline()
    config = GlueConfig.make(**record["config"])
    assert record["digest"] == config.digest
    assert "precision" not in record and arithmetic_of(record) == "bf16"
    assert find_record(config, "fp32") is None and valid_record(config, "fp32") is None
    assert (find_record(config) is not None) == (config.arithmetic == "bf16")


def test_a_baseline_of_other_arithmetic_is_refused(study, runs, monkeypatch):
    record = headline()
    dense = GlueConfig.make(**record["config"]).baseline()
    monkeypatch.setattr(records, "environment", lambda: find_record(dense, "bf16")["environment"])
    assert find_baseline(dense, record["fingerprints"], "bf16")["digest"] == dense.digest
    assert find_baseline(dense, record["fingerprints"], "fp32") is None
    assert find_baseline(dense, dict(record["fingerprints"], data="other"), "bf16") is None


@pytest.mark.parametrize("place", ["mine", "study"])
def test_one_digest_in_two_arithmetics_side_by_side(study, runs, tmp_path, monkeypatch, place):
    record = headline()
    config = GlueConfig.make(**record["config"])
    if place == "study":  # the study's own records are made with both variables at one folder
        for folder in ("JUNKDNA_RUNS", "JUNKDNA_STUDY"):
            monkeypatch.setenv(folder, str(tmp_path / "both"))
        shutil.copytree(study, tmp_path / "both")
    before = contents(study)
    path = save_record(record | new_record(config, "fp32") | dict(metrics=record["metrics"]))
    assert path.name == f"{config.name_with('fp32')}.json" != f"{record['name']}.json"
    assert [arithmetic_of(find_record(config, a)) for a in ("bf16", "fp32")] == ["bf16", "fp32"]
    assert find_record(config, "fp32")["path"] == str(path)
    assert find_record(config, "bf16")["name"] == record["name"]
    both = load_runs("02_glue")
    both = both[both["digest"] == config.digest]
    assert sorted(both["arithmetic"]) == ["bf16", "fp32"] and set(both["of"]) == {place, "study"}
    assert len(comparable(both, record)) == 1 and contents(study) == before


def _work(config, record):
    record |= dict(scale="", metric="accuracy", metrics={"accuracy": dict(value=0.5, se=0.1, n=2)})
    return pd.DataFrame(dict(id=list("ab"), correct=[True, False]))


def _fail(config, record):
    raise RuntimeError("out of ink")


def test_a_run_made_again_takes_the_place_of_its_old_name(runs):
    config = GlueConfig()
    record = run_recorded(config, _work)
    old = runs / "02_glue" / f"{config.name.replace('-' + config.arithmetic, '')}.json"
    for path in (runs / "02_glue").glob(f"{config.name}.*"):
        path.rename(path.with_name(path.name.replace(config.name, old.stem)))
    told = json.loads(old.read_text())  # as it was written before
    del told["precision"]
    told |= dict(name=old.stem, items=told["items"] | dict(file=f"{old.stem}.parquet"))
    told["environment"]["precision"] = config.arithmetic
    old.write_text(json.dumps(told))
    assert valid_record(config)["name"] == old.stem
    run_recorded(config, _work, OTHER[config.arithmetic])
    assert old.exists()
    assert run_recorded(config, _work)["name"] == record["name"]
    names = {p.stem for p in (runs / "02_glue").iterdir()}
    assert names == {config.name_with("bf16"), config.name_with("fp32")}, "the old files have gone"


@pytest.mark.parametrize("good", ["mine", "study"])
def test_a_failed_run_neither_hides_nor_replaces_a_good_record(runs, tmp_path, monkeypatch, good):
    config = GlueConfig()
    run_recorded(config, _work)
    if good == "study":
        shutil.move(runs, tmp_path / "study")
    with pytest.raises(RuntimeError):
        run_recorded(config, _fail)
    assert not record_failure(config, "out of ink")
    other = OTHER[config.arithmetic]
    with pytest.raises(RuntimeError):
        run_recorded(config, _fail, other)
    assert valid_record(config)["status"] == "ok" and valid_record(config, other) is None
    assert find_digest(config.digest)["status"] == "ok"
    assert load_runs(status="failed")["arithmetic"].tolist() == [other] and len(load_runs()) == 1


def test_own_records_come_before_the_studys(runs, tmp_path):
    config = GlueConfig()
    run_recorded(config, _work)
    shutil.copytree(runs, tmp_path / "study")
    assert find_record(config)["path"].startswith(str(runs))
    (runs / "02_glue" / f"{config.name}.parquet").write_bytes(b"damaged")
    assert valid_record(config)["path"].startswith(str(tmp_path / "study"))
    assert [len(load_runs(where=where)) for where in ("study", "mine", "all")] == [1, 1, 2]
    with pytest.raises(StudyError, match="unknown where 'own'"):
        load_runs(where="own")


def test_a_plan_counts_the_studys_records_of_its_arithmetic(study, runs):
    points, _ = read_grid(ROOT / "nbs" / "configs" / "study.yaml")
    done = {}
    for arithmetic in ("bf16", "fp32", None):
        _, rest = make_plan(points, machine=arithmetic)
        done[arithmetic] = sum(t.state == "done" for t in rest)
    assert done["bf16"] > 100 and done["fp32"] == 0
    assert done[None] == done[machine_precision()]


def test_verdicts_are_judged_from_the_study_unless_others_are_asked_for(study, runs, capsys):
    glue = [r for r in Study(old=True).records if r["experiment"] == "02_glue"]
    records = [load_record(r["path"]) for r in glue[:40]]
    for record in records:  # as if the same points had been run here, in the other arithmetic
        config = GlueConfig.make(**record["config"])
        own = {**record, **{k: new_record(config, "fp32")[k] for k in ("name", "precision")}}
        own["environment"] = {**record["environment"], "precision": "fp32"}
        save_record(own)
    alone, both = Study(old=True), Study(old=True, mine=True)
    assert len(alone.records) == 557 and 557 < len(both.records) <= 557 + len(records)
    before = {t.name: t for t in alone.encoder()}
    after = {t.name: t for t in both.encoder()}
    assert before and before.keys() == after.keys()
    # the arithmetic of most runs is taken as a whole, never a mixture
    assert all(before[name].runs == after[name].runs for name in before)
    assert len(both.notes) > len([n for n in alone.notes if n.startswith("02_glue")])
    capsys.readouterr()
    assert main(["verdict", "--mine"]) == 0
    told = capsys.readouterr().out
    assert "with records of your own" in told and "no claim is decided here" in told


def test_the_command_says_that_own_records_are_judged(runs, capsys):
    run_recorded(GlueConfig(), _work)
    listed = main(["runs"]), capsys.readouterr().out.splitlines()[1].split()[-2]
    assert listed == (0, "mine")
    for path in runs.rglob("*.json"):
        path.unlink()
    assert main(["verdict", "--mine"]) == 0
    assert "with records of your own" in capsys.readouterr().out


def test_clean_never_touches_the_study(runs, tmp_path, monkeypatch, capsys):
    mine, evidence = (folder / "02_glue" / "orphan.png" for folder in (runs, tmp_path / "study"))
    for orphan in (mine, evidence):
        orphan.parent.mkdir(parents=True)
        orphan.touch()
    assert main(["clean", "--yes"]) == 0
    assert not mine.exists() and evidence.exists()
    monkeypatch.setenv("JUNKDNA_RUNS", str(tmp_path / "study"))
    assert main(["clean", "--yes"]) == 0 and "nothing to remove" in capsys.readouterr().out
    assert evidence.exists()
    assert [whose for whose, _ in record_places()] == ["study"]


def test_the_arithmetic_is_the_one_torch_would_use():
    assert machine_precision() == resolve_precision() == config._torch_precision()
    assert [machine_precision(a) for a in ("bf16", "fp32")] == ["bf16", "fp32"]
    code = "from junkdna_nb.base.experiments import GlueConfig; GlueConfig().name"
    code += "; import sys; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False", "a name must not wait for torch"


KINDS = [({"avx512_bf16"}, "bf16"), ({"amx_tile"}, "bf16"), ({"avx2"}, "fp32")]


@pytest.mark.parametrize("flags, expected", KINDS)
def test_processors_of_either_kind(monkeypatch, flags, expected):
    monkeypatch.setattr(config, "_ACCELERATORS", ())
    monkeypatch.setattr(config, "processor_flags", lambda: flags)
    config._hardware_precision.cache_clear()
    try:
        assert GlueConfig().arithmetic == expected and f"-{expected}-" in GlueConfig().name
        assert GlueConfig(precision="fp32").arithmetic == "fp32"
    finally:
        config._hardware_precision.cache_clear()


@dataclass(frozen=True)
class Longer(GlueConfig):
    "02_glue with a parameter it got later"

    clip: float = param(1.0, "(0, inf)", later=True)


def test_a_field_added_later_orphans_no_record(study, runs, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "02_glue", Longer)
    made = load_runs("02_glue", where="study")
    assert len(made) > 300 and set(made["clip"]) == {1.0}
    for record in map(load_record, made.path):
        config = get_experiment("02_glue").make(**record["config"])
        assert config == Longer(**record["config"]) and asdict(config) == record["config"]
        assert config.unused_fields() == record["unused"]
        before = GlueConfig(**{k: v for k, v in record["config"].items() if k != "clip"})
        assert config.digest == before.digest != config.replace(clip=2).digest
    dense = Longer(mode="dense", clip=2.0)
    assert dense.digest == dense.replace(sparsity=0.1).digest
    assert find_record(Longer(), "bf16")["digest"] == GlueConfig().digest
    assert find_record(Longer(clip=2), "bf16") is None
    assert Config.canonical(Longer(clip=2))["clip"] == 2.0
