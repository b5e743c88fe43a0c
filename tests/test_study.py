"Records become tasks, tasks become effects: against numbers worked out by hand."

import itertools
import os

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from junkdna_nb.base.experiments import GlueConfig, OptionsConfig
from junkdna_nb.base.records import load_record, new_record, save_record
from junkdna_nb.evidence.claims import CLAIMS, DATA_LEVELS, WORD_LEVELS, contrast_of
from junkdna_nb.evidence.study import (
    Run,
    Study,
    average,
    mean_of,
    orders,
    settings_of,
    task_effect,
    usability,
)
from junkdna_nb.machinery.grid import _work, read_grid

N = 200
LABELS = np.arange(N) % 2


def write(folder, right, ids=None, created="2026-01-01", task="tweet_irony", **params):
    "A fine-tuning record whose model has the first `right` items right"
    config = GlueConfig.make(task=task, precision="bf16", **params)
    predicted = np.where(np.arange(N) < right, LABELS, 1 - LABELS)
    items = pd.DataFrame(
        dict(
            set="validation",
            id=ids or [str(i) for i in range(N)],
            label=LABELS,
            prediction=predicted,
            correct=predicted == LABELS,
        )
    )
    metric = "accuracy"
    record = new_record(config, "bf16") | dict(
        created=created,
        metric=metric,
        scale="by hand",
        origin=dict(model="package", data="here"),
        metrics={metric: dict(value=right / N, se=0.0, n=N, chance=0.5, human=0.9)},
        environment=dict(precision="bf16", device="cpu", versions={}),
    )
    save_record(record, items, folder / "02_glue")


@pytest.fixture
def study(tmp_path, monkeypatch):
    "Folder of a study's records"
    monkeypatch.setenv("JUNKDNA_STUDY", str(tmp_path / "study"))
    monkeypatch.delenv("JUNKDNA_MIRROR", raising=False)
    return tmp_path / "study"


def test_an_effect_by_hand(study):
    for seed, dense, sparse in ((41, 180, 160), (42, 176, 150)):
        write(study, dense, mode="dense", seed=seed)
        write(study, sparse, mode="sparse", sparsity=0.6, seed=seed)
    [task] = Study().encoder()
    pairs = itertools.product(("dense", "sparse 0.6"), (41, 42))
    assert task.runs == tuple(Run(c, "", s) for c, s in pairs)
    points = task_effect(task, mean_of(["sparse 0.6"]), "points")
    assert points.by_seed == pytest.approx((20 / N, 26 / N)) and points.value == pytest.approx(
        23 / N
    )
    signal = task_effect(task, mean_of(["sparse 0.6"]), "signal")
    z = [np.arctanh(2 * r / N - 1) for r in (180, 160, 176, 150)]
    assert signal.value == pytest.approx((z[0] - z[1] + z[2] - z[3]) / 2, abs=1e-9)
    normalised = task_effect(task, mean_of(["sparse 0.6"]), "normalised")
    assert normalised.value == pytest.approx((20 / 80 + 26 / 76) / 2)
    relative = task_effect(task, mean_of(["sparse 0.6"]), "relative")
    assert relative.value == pytest.approx((20 / 180 + 26 / 176) / 2)
    assert len(signal.records) == 4 and task.human == 0.9


def test_levels_are_their_own_runs(study):
    write(study, 180, mode="dense")
    write(study, 160, mode="sparse", sparsity=0.6)
    for share, dense, sparse in ((0.3, 160, 130), (0.1, 140, 100)):
        write(study, dense, mode="dense", data_share=share, steps=126)
        write(study, sparse, mode="sparse", sparsity=0.6, data_share=share, steps=126)
    write(study, 150, mode="dense", input_share=0.5)
    [task] = Study().encoder()
    assert {r.level for r in task.runs} == {*DATA_LEVELS, WORD_LEVELS[1]}
    contrast = task_effect(task, contrast_of(["sparse 0.6"], DATA_LEVELS), "points")
    assert contrast.value == pytest.approx(40 / N - 20 / N)


def test_the_newest_record_counts_and_foreign_items_are_left_out(study):
    write(study, 180, mode="dense")
    write(study, 120, mode="sparse", sparsity=0.6, created="2026-01-01")
    write(study, 160, mode="sparse", sparsity=0.6, created="2026-02-01")
    write(study, 150, mode="sparse", sparsity=0.8, ids=[f"x{i}" for i in range(N)])
    records = Study()
    [task] = records.encoder()
    assert task_effect(task, mean_of(["sparse 0.6"]), "points").value == pytest.approx(20 / N)
    assert [r.condition for r in task.runs] == ["dense", "sparse 0.6"]
    assert "1 runs on other items left out" in " ".join(records.notes)


def test_other_training_is_another_setting(study):
    for sparsity in (0.4, 0.6):
        write(study, 180, mode="dense", max_train=2000)
        write(study, 160, mode="sparse", sparsity=sparsity, max_train=2000)
    write(study, 100, mode="dense", max_train=50)
    records = Study()
    [task] = records.encoder()
    assert len(task.runs) == 3 and "1 records of other settings" in " ".join(records.notes)


def test_old_and_new_tasks_never_meet(study):
    write(study, 180, mode="dense", task="movie")
    write(study, 180, mode="dense", task="tweet_irony")
    assert [t.name for t in Study(old=True).encoder()] == ["movie"]
    assert [t.name for t in Study().encoder()] == ["tweet_irony"]


def test_a_level_at_chance_is_not_usable(study):
    write(study, 180, mode="dense")
    write(study, 102, mode="dense", data_share=0.1, steps=126)
    records = Study()
    assert [t.name for t in records.usable()] == ["tweet_irony"]
    assert records.usable(levels=("", "data 0.1")) == []
    [bad] = usability(records.encoder(), ("data 0.1",))
    assert not bad.usable and "below 0.1" in bad.reason


def ask(folder, seed, method, right, **params):
    "A record of 03 with two levels, of which the model has the first `right` items right"
    config = OptionsConfig.make(
        task="arc_challenge", method=method, seed=seed, options="2 4", precision="bf16", **params
    )
    rows, levels = [], []
    for level, count in zip((2, 4), right, strict=True):
        rows += [dict(level=level, draw=0, id=str(i), correct=float(i < count)) for i in range(N)]
        levels.append(dict(level=level, metric="accuracy", value=count / N, chance=1 / level))
    record = new_record(config, "bf16") | dict(
        created="2026-01-01",
        metric="accuracy_4",
        scale="by hand",
        origin=dict(model="package", data="here"),
        levels=levels,
        metrics=dict(accuracy_4=dict(value=right[1] / N)),
        environment=dict(precision="bf16", device="cpu", versions={}),
    )
    save_record(record, pd.DataFrame(rows), folder / "03_options")


def test_levels_of_questions_and_their_draws(study):
    from scipy.stats import norm

    for seed in (41, 42):
        ask(study, seed, "none", (180, 150), distractors=seed - 41)
        ask(study, seed, "magnitude", (160, 120), sparsity=0.3, distractors=seed - 41)
    [task] = Study().decoder("03_options")
    assert {r.level for r in task.runs} == {"2", "4"} and task.seeds == (41, 42)
    two = task_effect(task, mean_of(["sparse 0.3"], "2"), "signal")
    assert two.value == pytest.approx(
        2**0.5 * (norm.ppf(0.9) - norm.ppf(0.8)), abs=1e-5
    )  # d' of two alternatives
    assert len(two.by_seed) == 2


def test_one_task_has_no_mean_and_no_order(study):
    write(study, 180, mode="dense")
    write(study, 160, mode="sparse", sparsity=0.6)
    tasks = Study().encoder()
    mean = average([task_effect(t, mean_of(["sparse 0.6"]), "signal") for t in tasks]).meta
    assert mean.k == 1 and mean.p is None and np.isfinite(mean.mean)
    assert orders(tasks, mean_of(["sparse 0.6"]), "signal") is None


def test_what_claims_ask_for_is_in_the_grid():
    "The frozen design's conditions and levels are points of the confirmatory grid, its arms blocks"
    from dataclasses import asdict

    from junkdna_nb.evidence.study import condition_of, level_of

    if not os.environ.get("JUNKDNA_MIRROR"):
        os.environ.pop("JUNKDNA_MIRROR", None)
    points, _ = read_grid(ROOT / "nbs/configs/confirmatory.yaml")
    blocks = {p.block for p in points}
    wanted = set(",".join(c.arm for c in CLAIMS.values()).split(","))
    assert wanted <= blocks, wanted - blocks
    of = {
        (condition_of(asdict(p.config)), level_of(asdict(p.config), 2))
        for p in points
        if p.config.experiment == "02_glue"
    }
    for condition in (
        "sparse 0.4",
        "sparse 0.8",
        "frozen 0.6",
        "sparse_to_dense 0.8",
        "random 0.6",
        "4 bits",
        "3 bits",
        "sparse 0.2",
        "wanda 0.6",
        "sparse 4:8",
    ):
        assert (condition, "") in of, condition
    for level in (*DATA_LEVELS, *WORD_LEVELS):
        assert {("dense", level), ("sparse 0.6", level), ("sparse 0.8", level)} <= of, level
    assert all(p.config.precision == "bf16" for p in points)
    # what is run of it differs in its arithmetic alone
    known = {p.config.digest for p in points}
    reduced, _ = read_grid(ROOT / "nbs/configs/reduced.yaml")
    assert {p.config.replace(precision="bf16").digest for p in reduced} <= known
    assert {p.config.precision for p in reduced} == {"fp32"}


def test_other_ways_to_prune_are_other_settings(committed):
    "The newest record of one setting counts; one of another granularity is no such record"
    record = load_record(next((committed / "02_glue").glob("*-sparse-*.json")))
    for name, other in dict(granularity="layer", group_size=0, calibration="mine.txt").items():
        changed = record | dict(config=record["config"] | {name: other})
        assert settings_of(changed) != settings_of(record), name
    again = record | dict(config=record["config"] | dict(seed=7, sparsity=0.1))
    assert settings_of(again) == settings_of(record)


def test_work_is_counted_in_updates_where_they_are_given():
    whole = GlueConfig.make(max_train=2000, epochs=2, max_eval=1000)
    few = whole.replace(data_share=0.1, steps=125)  # 125 batches of 32 are two epochs of 2,000
    assert _work(few) == pytest.approx(_work(whole))
    assert _work(whole.replace(data_share=0.1)) < _work(whole) / 3
