"The claims: worlds in which they are wrong, lost records, strange input, and what is frozen."

import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from scipy import stats

from junkdna_nb.base.config import StudyError
from junkdna_nb.base.records import load_record, load_runs
from junkdna_nb.base.tasks import TASKS
from junkdna_nb.evidence.claims import (
    CLAIMS,
    MARGIN,
    SPARSITIES,
    Evidence,
    OnScale,
    _row,
    at,
    judge,
    verdict_of,
)
from junkdna_nb.evidence.freeze import changed, frozen_parts, read_lock, undeclared, write_lock
from junkdna_nb.evidence.study import Run, Study, TaskRuns, is_old
from junkdna_nb.evidence.tables import claim_report, in_columns, verdict_table

sys.path.insert(0, str(ROOT / "benchmarks"))
import calibration  # noqa: E402

VERDICTS = {
    "supported",
    "contradicted",
    "depends on the scale",
    "equivalent",
    "inconclusive",
    "not run",
}
EVERY = [
    *at("sparse"),
    "sparse 0.2",
    *at("frozen"),
    *at("sparse_to_dense"),
    "random 0.6",
    "4 bits",
    "3 bits",
    "wanda 0.6",
    "sparsegpt 0.6",
    "sparse 4:8",
]
BITS = {"dense": 16.0, "sparse 0.6": 7.4, "sparse 0.8": 4.2, "4 bits": 4.3}


def task(name, share, rng, conditions=EVERY, seeds=(41, 42), n=400, **more):
    "Runs of two classes; share(condition) is the accuracy, or an array of what is right (n,)"
    pairs = itertools.product(("dense", *conditions), seeds)
    runs = [Run(c, "", s) for c, s in pairs]
    if len(seeds) > 1:
        runs.append(Run("dense", "", 43))
    labels, strength = np.arange(n) % 2, rng.normal(size=n)
    right = []
    for run in runs:
        wanted = share(run.condition)
        if np.ndim(wanted) == 0:
            limit = stats.norm.ppf(np.clip(wanted + rng.normal(0, 0.008), 0.001, 0.999))
            wanted = (strength + 0.5 * rng.normal(size=n)) / 1.25**0.5 < limit
        right.append(wanted)
    answers = np.where(np.array(right, bool), labels, 1 - labels)
    more = {"bits": tuple(BITS.get(r.condition, 8.0) for r in runs)} | more
    chance = np.full(len(runs), 0.5)
    return TaskRuns(name, tuple(runs), labels, answers, "accuracy", "correlation_k", chance, **more)


class Given(Study):
    "Tasks as given instead of from records"

    def __init__(self, tasks, old=False):
        self.given, self.old = list(tasks), old
        self.notes, self.records, self._found = [], [], {}

    def encoder(self, model="minilm"):
        return self.given

    def decoder(self, experiment, model="smollm2"):
        return []


def accuracy(z):
    return (1 + np.tanh(z)) / 2


WORLDS = {  # hardness in [0, 1], is it pruned? -> share of right answers
    "equal log-odds": lambda h, lost: accuracy(1.6 - 1.2 * h - 0.3 * lost),
    "equal points": lambda h, lost: accuracy(1.6 - 1.2 * h) - 0.08 * lost,
    "harder loses more": lambda h, lost: accuracy(1.8 - h - (0.05 + 0.5 * h) * lost),
}


def world(name, seed, tasks=24):
    rng, made = np.random.default_rng(seed), []
    for i in range(tasks):
        hard = i / (tasks - 1)

        def share(c, hard=hard):
            return WORLDS[name](hard, c != "dense")

        made.append(task(f"task {i}", share, rng, at("sparse"), n=600))
    return Given(made)


@pytest.mark.parametrize("name", WORLDS)
def test_steeper_is_supported_only_where_hard_tasks_lose_more_on_every_scale(name):
    for seed in range(4):
        [row] = judge(world(name, seed), ["C1 steeper"])
        if name == "harder loses more":
            assert row.verdict == "supported", (seed, row.evidence.on)
        else:
            assert row.verdict != "supported", (seed, row.evidence.on)
            assert row.evidence.on["normalised"].estimate > 0.3  # where dividing makes an order


def on_scales(signal, points=0.0, se=0.02):
    "Evidence with an estimate on two scales, 30 degrees of freedom"

    def one(x):
        return OnScale(
            x,
            x - 2.04 * se,
            x + 2.04 * se,
            float(2 * stats.t.sf(abs(x) / se, 30)),
            se,
            30,
            31,
            None,
        )

    return Evidence({"signal": one(signal), "points": one(points)})


@pytest.mark.parametrize(
    "name, signal, points, passed, verdict",
    [
        ("C1 steeper", 0.3, 0.3, True, "supported"),
        ("C1 steeper", 0.3, 0.0, True, "supported"),
        ("C1 steeper", 0.3, -0.3, True, "depends on the scale"),
        ("C1 steeper", -0.3, 0.3, True, "depends on the scale"),
        ("C1 steeper", -0.3, -0.3, True, "contradicted"),
        ("C1 steeper", 0.01, 0.3, False, "inconclusive"),
        ("C2 irreversible", 0.3, -0.3, True, "supported"),  # a mean is no interaction
        ("C2 irreversible", -0.3, -0.3, True, "contradicted"),
        ("C2 irreversible", 0.005, 0.0, False, "equivalent"),
        ("C2 irreversible", 0.05, 0.0, False, "inconclusive"),
        ("C6 flat", 0.0, 0.0, True, "supported"),
        ("C6 flat", MARGIN, 0.0, False, "inconclusive"),
        ("C6 flat", MARGIN + 0.1, 0.1, False, "contradicted"),
    ],
)
def test_verdicts_by_hand(name, signal, points, passed, verdict):
    assert verdict_of(CLAIMS[name], on_scales(signal, points), passed, 0.05 / 7) == verdict


def test_a_primary_claim_in_the_wrong_direction_opens_no_gate():
    rng, conditions = np.random.default_rng(0), at("sparse_to_dense", (0.6, 0.8))
    for gain, opens in ((-0.1, True), (0.1, False)):
        tasks = [
            task(f"{i}", lambda c, g=gain: 0.75 + g * (c != "dense"), rng, conditions)
            for i in range(8)
        ]
        rows = {r.claim.name: r for r in judge(Given(tasks))}
        assert rows["C2 irreversible"].verdict == ("supported" if opens else "contradicted")
        second = rows["C2 irreversible at 0.6"]
        assert (second.p is not None) == opens and ("closed" in second.reason) != opens


@pytest.mark.parametrize(
    "name, signal, alone",
    [
        ("C2 irreversible at 0.6", 0.005, "equivalent"),
        ("C6 flat", MARGIN + 0.1, "contradicted"),
    ],
)
def test_nothing_behind_a_closed_gate_is_decided(name, signal, alone):
    claim, evidence = CLAIMS[name], on_scales(signal, 0.1)
    assert verdict_of(claim, evidence, False, 0.05 / 7) == alone
    row = _row(claim, evidence, {}, 7, Given([]))
    assert (row.verdict, row.p) == ("inconclusive", None) and "closed" in row.reason


def test_small_calibration_has_no_false_support():
    "A small version of benchmarks/calibration.py"
    small = dict(
        tasks=20,
        shared=2,
        arm_b=10,
        small=5,
        data=6,
        words=5,
        second=5,
        criteria=4,
        options=4,
        shots=4,
        context=4,
        formats=4,
        human=9,
        items=400,
        asked=200,
    )
    for name in ("none", "log_odds"):
        for seed in range(1, 11):
            rows = judge(calibration.Simulated(name, seed, small))
            tested = [r for r in rows if r.claim.role != "check"]
            assert sum(r.evidence.main is not None for r in tested) >= 12
            false = [r for r in tested if calibration.is_false(name, r.claim)]
            assert not [r.claim.name for r in false if r.verdict == "supported"], (name, seed)


RNG = np.random.default_rng(0)
HALF = np.arange(400) % 4 < 3
STRANGE = {
    "no tasks": [],
    "one task": [task("a", lambda c: 0.8 - 0.1 * (c != "dense"), RNG)],
    "one seed": [
        task(f"{i}", lambda c: 0.8 - 0.1 * (c != "dense"), RNG, seeds=(41,)) for i in range(6)
    ],
    "dense at chance": [task(f"{i}", lambda c: 0.5, RNG) for i in range(6)],
    "nothing differs": [
        task(f"{i}", lambda c, i=i: np.arange(400) < 300 + 10 * i, RNG) for i in range(6)
    ],
    "all alike": [task(f"{i}", lambda c: HALF, RNG) for i in range(6)],
    "all right": [task(f"{i}", lambda c: np.ones(400), RNG, human=1.0) for i in range(6)],
    "all wrong": [task(f"{i}", lambda c: np.zeros(400), RNG) for i in range(6)],
    "one item": [task(f"{i}", lambda c: np.ones(1), RNG, n=1) for i in range(6)],
    "compressed all wrong": [task(f"{i}", lambda c: HALF * (c == "dense"), RNG) for i in range(6)],
    "human scores missing": [
        task(
            f"{i}",
            lambda c: 0.8 - 0.1 * (c != "dense"),
            RNG,
            human=0.9 if i else None,
            verified=i > 1,
        )
        for i in range(6)
    ],
}


@pytest.mark.parametrize("case", STRANGE)
@pytest.mark.filterwarnings("error")
def test_strange_input_gives_defined_rows(case):
    rows = judge(Given(STRANGE[case]))
    assert [r.claim.name for r in rows if r.claim.role == "primary"]
    assert {r.claim.name for r in rows} == set(CLAIMS)
    shown = in_columns(verdict_table(rows)) + "\n".join(map(claim_report, rows))
    assert not re.search(r"\b(nan|inf|none)\b", shown.lower())
    for row in rows:
        x = row.evidence.main
        assert row.verdict in VERDICTS
        assert (x is None) == (row.verdict == "not run") and (x is not None or row.reason)
        assert x is None or np.isfinite([x.estimate, x.low, x.high, x.p, x.se]).all()
        assert x is None or (x.low <= x.estimate <= x.high and 0 <= x.p <= 1)
    told = {r.claim.name: r for r in rows}
    if case in ("no tasks", "one task", "dense at chance", "all wrong", "one item"):
        assert {r.verdict for r in rows} == {"not run"}
    if case == "human scores missing":
        assert told["C5 gap"].verdict == "not run"  # four, and five are needed
        assert told["C5 gap, all"].evidence.main.k == 5


@pytest.fixture
def copied(tmp_path, committed, monkeypatch):
    "The study's records, to be changed"
    folder = tmp_path / "copied"
    shutil.copytree(committed, folder)
    monkeypatch.setenv("JUNKDNA_STUDY", str(folder))
    return folder


def evidence(rows):
    "Claim -> what the records say"
    found = {}
    for row in rows:
        on = {s: (x.estimate, x.low, x.high, x.p, x.k) for s, x in (row.evidence.on or {}).items()}
        found[row.claim.name] = on, row.evidence.tasks, row.evidence.items, row.evidence.seeds
    return found


def test_removing_a_record_changes_what_depends_on_it_and_nothing_else(copied):
    before = judge(Study(old=True))
    assert evidence(judge(Study(old=True))) == evidence(before)
    wanted = dict(task="mnli", mode="sparse", method="magnitude", sparsity=0.6)
    for record in Study(old=True).records:
        if all(record["config"].get(k) == v for k, v in wanted.items()):
            break
    for path in Path(record["path"]).parent.glob(f"*{record['digest']}*"):
        path.unlink()
    after = evidence(judge(Study(old=True)))
    depends = {r.claim.name for r in before if record["digest"] in r.evidence.records}
    differs = {name for name, found in evidence(before).items() if found != after[name]}
    # an order of tasks may stay the same where a drop has changed a little
    sure = {name for name in depends if CLAIMS[name].kind != "order"}
    assert sure <= differs <= depends
    assert {"C1 steeper", "C3 values"} <= depends and len(depends) < 20


def test_every_row_says_what_it_rests_on(copied):
    rows = [r for r in judge(Study(old=True)) if r.evidence.main is not None]
    assert len(rows) >= 15
    for row in rows:
        report = claim_report(row)
        assert row.population == "tasks seen before" and f"population {row.population}: " in report
        items, seeds = row.evidence.items, row.evidence.seeds
        assert (
            items[0] >= 200 and 1 <= seeds[0] <= seeds[1] and re.search(r"items .*; seeds ", report)
        )
        assert re.search(rf"^signal .*k = {row.evidence.main.k}\b", report, re.M)
        assert set(row.evidence.tasks) <= {t for t, x in TASKS.items() if x.set == "exploratory"}


def test_tasks_seen_before_never_decide(copied):
    for name, one in TASKS.items():
        record = dict(experiment="02_glue", config=dict(task=name))
        assert is_old(record) == (one.set == "exploratory")
    for name, old in (("facts", True), ("squad", True), ("logiqa", False)):
        assert is_old(dict(experiment="03_options", config=dict(task=name, kind="all"))) == old
    new, old = Study(), Study(old=True)
    runs = load_runs("02_glue", where="study")
    path = next(Path(p) for p, task in zip(runs.path, runs.task, strict=True) if task == "movie")
    record = json.loads(path.read_text())
    record["config"]["task"] = next(n for n, t in TASKS.items() if t.set == "confirmatory")
    path.write_text(json.dumps(record))
    assert load_record(path)["config"]["task"] == record["config"]["task"]
    assert len(Study(old=True).records) == len(old.records) - 1
    added = [r["config"]["task"] for r in Study().records]
    assert len(added) == len(new.records) + 1 and record["config"]["task"] in added
    # without its new tasks a study decides nothing
    for r in [record, *new.records]:
        for path in copied.rglob(f"*{r['digest']}.json"):
            path.unlink()
    assert Study().records == [] and {r.verdict for r in judge(Study())} == {"not run"}


@pytest.fixture
def tree(tmp_path):
    "What is frozen, to be changed"
    folder = tmp_path / "tree"
    for name in ("nbs/01_protocol.ipynb", "nbs/configs", "junkdna_nb/evidence"):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    without_deviations(folder / "nbs/01_protocol.ipynb")
    return folder


def without_deviations(path):
    "Drop the entries there are, so that a test sees its own alone"
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        before, heading, _ = "".join(cell["source"]).partition("## Deviations")
        cell["source"] = [before + heading]
    path.write_text(json.dumps(notebook))


def test_what_was_settled_beforehand_is_as_it_was(tree):
    assert undeclared() == [] and undeclared(tree) == []


def test_comments_may_be_improved(tree):
    write_lock(tree)
    code = tree / "junkdna_nb/evidence/claims.py"
    code.write_text(code.read_text() + "\n# a comment\n")
    assert changed(tree) == []


def declare(tree, part):
    "An entry under Deviations"
    path = tree / "nbs/01_protocol.ipynb"
    notebook = json.loads(path.read_text())
    line = f"\n- 2026-12-01 {part}: why, and the verdict under the old rule"
    notebook["cells"].append(dict(cell_type="markdown", id="0", metadata={}, source=[line]))
    path.write_text(json.dumps(notebook))


@pytest.mark.parametrize(
    "part, name, old, new",
    [
        ("grid", "nbs/configs/confirmatory.yaml", "seed: [41, 42, 43]", "seed: [41, 42]"),
        ("reduced", "nbs/configs/reduced.yaml", "seed: [41, 43]", "seed: [41]"),
        ("protocol", "nbs/01_protocol.ipynb", "# protocol", "# protocol, otherwise"),
        ("claims", "junkdna_nb/evidence/claims.py", "MARGIN = 0.06", "MARGIN = 0.1"),
        ("inference", "junkdna_nb/evidence/inference.py", "SMALLEST = 5", "SMALLEST = 4"),
    ],
)
def test_a_change_is_reported_unless_it_is_declared(tree, part, name, old, new):
    path = tree / name
    write_lock(tree)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert undeclared(tree) == [part]
    declare(tree, "tasks")
    assert undeclared(tree) == [part]
    declare(tree, part)  # without the hash, or with that of another change
    declare(tree, f"{part} 00000000")
    assert undeclared(tree) == [part]
    with pytest.raises(StudyError, match=f"{part} changed without an entry under Deviations"):
        write_lock(tree)
    declare(tree, f"tasks 00000000, {part} {frozen_parts(tree)[part][:8]}")
    assert undeclared(tree) == [] and changed(tree) == [part]
    write_lock(tree)
    assert changed(tree) == []


def test_the_page_about_the_lock_shows_the_lock():
    shown = (ROOT / "nbs/47_freeze.ipynb").read_text()
    assert all(digest[:12] in shown for digest in read_lock().values())


def test_sparsities_are_those_of_the_grid():
    grid = yaml.safe_load((ROOT / "nbs/configs/confirmatory.yaml").read_text())["blocks"]
    assert sorted(grid["A"]["cross"]["sparsity"]) == list(SPARSITIES)
