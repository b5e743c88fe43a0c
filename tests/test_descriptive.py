"Descriptive results against values by hand and the committed records; figures do not change."

import itertools
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from junkdna_nb.base.config import StudyError
from junkdna_nb.base.experiments import GlueConfig
from junkdna_nb.base.records import load_items
from junkdna_nb.evidence.descriptive import (
    Flips,
    agreement,
    breaking_table,
    breaking_text,
    cartography,
    difficulty_table,
    flips,
    flips_table,
    isotonic_p,
    kept_samples,
    largest_rise,
    markdown,
    populations,
    sentences,
    special_records,
    steps_table,
    v_information,
)
from junkdna_nb.evidence.plots import overlay, paper_points, split_condition, task_curves
from junkdna_nb.evidence.study import Run, Study, TaskRuns


def toy_task(right, n=8, seeds=(41,)):
    "Runs that answer the first so many of n items right"
    labels = np.arange(n) % 2
    runs = [Run(c, "", s) for c, s in itertools.product(right, seeds)]
    answers = [np.where(np.arange(n) < right[r.condition], labels, 1 - labels) for r in runs]
    chance = np.full(len(runs), 0.5)
    return TaskRuns(
        "toy", tuple(runs), labels, np.array(answers), "accuracy", "correlation_k", chance
    )


def test_breaking_points_by_hand():
    task = toy_task({"dense": 6, "sparse 0.1": 5, "sparse 0.2": 4})
    amounts, shares = kept_samples(task, resamples=500)
    assert np.allclose(amounts, [0.1, 0.2]) and np.allclose(shares[0], [5 / 6, 4 / 6])
    at = 0.1 * (1 - 0.95) / (1 - 5 / 6)
    assert breaking_text(amounts, shares).startswith(f"{at:.2f} [")
    same = toy_task({"dense": 6, "sparse 0.1": 6})
    assert breaking_text(*kept_samples(same, resamples=100)) == "above 0.1 [above 0.1, above 0.1]"
    nothing = kept_samples(toy_task({"dense": 0, "sparse 0.1": 0}), resamples=100)[1]
    assert np.isfinite(nothing).all()


def test_seeds_are_averaged_and_a_seed_without_dense_is_left_out():
    task = toy_task({"dense": 6, "sparse 0.1": 3}, seeds=(41, 42))
    runs = tuple(r for r in task.runs if r != Run("dense", "", 42))
    at = [task.index[r] for r in runs]
    part = TaskRuns(
        "part",
        runs,
        task.labels,
        task.predictions[at],
        "accuracy",
        "correlation_k",
        np.full(3, 0.5),
    )
    for one in (task, part):
        assert np.allclose(kept_samples(one, resamples=10)[1][0], 0.5)


def test_steps_and_flips_by_hand():
    assert np.isclose(largest_rise([[0.5, 0.625], [0.5, 0.625], [0.4, 0.5]]).size, 0.125)
    assert largest_rise([[0.7, 0.6, 0.5]] * 3).p == 1.0 and largest_rise([[0.7]] * 3).size == 0
    rng = np.random.default_rng(1)
    level = rng.random((4, 300)) < 0.7
    falling = rng.random((4, 300)) < [[0.8], [0.7], [0.6], [0.5]]
    assert isotonic_p(level) > 0.05 and isotonic_p(falling) == 0.001
    assert flips([1, 1, 0], [1, 0, 0]) == Flips(3, 1, 0, 1.0)
    assert flips([1, 0], [1, 0]).p == 1.0
    with pytest.raises(StudyError, match="same items"):
        flips([1], [1, 1])


def test_flips_agree_with_mcnemar():
    from statsmodels.stats.contingency_tables import mcnemar

    rng = np.random.default_rng(0)
    for _ in range(20):
        before, after = rng.random((2, 60)) < [[0.7], [0.6]]
        found = flips(before, after)
        expected = mcnemar([[0, found.lost], [found.gained, 0]], exact=True).pvalue
        assert np.isclose(found.p, expected)


def test_cartography_by_hand():
    found = cartography(dict(gold_probabilities=[[0.9, 0.7], [0.2, 0.4], [0.4, 0.6]]))
    assert np.isclose(found.confidence, 3.2 / 6) and np.isclose(found.hard, 1 / 3)
    assert np.isclose(found.variability, 0.1) and (found.n, found.epochs) == (3, 2)


def test_conditions_in_words():
    assert [split_condition(c) for c in ("dense", "rtn 2 bits", "sparse_to_dense 0.6")] == [
        ("dense", 0.0),
        ("rtn", 2.0),
        ("sparse_to_dense", 0.6),
    ]


def leaked_data(folder, leaked, rng):
    "SST-2 in a mirror: sentences that name their label, or that have nothing to do with it"
    words = ["river", "stone", "window", "paper", "garden", "morning"]
    sizes = {"train": 80, "validation": 100}
    folder.mkdir(parents=True)
    files = "".join(f"  - split: {split}\n    path: sst2/{split}-*\n" for split in sizes)
    head = "---\nconfigs:\n- config_name: sst2\n  data_files:\n"
    (folder.parent / "README.md").write_text(f"{head}{files}---\n")
    for split, half in sizes.items():
        label = np.random.default_rng(half).permutation([0, 1] * half)
        says = np.where(label == 1, "good", "terrible") if leaked else ["some"] * len(label)
        text = [f"a {w} {rng.choice(words)} by the {rng.choice(words)}" for w in says]
        table = pd.DataFrame(dict(sentence=text, label=label, idx=range(len(label))))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_v_information_of_a_leaked_and_of_a_shuffled_label(runs, tmp_path, monkeypatch):
    "Real fine-tuning; the labels, and so the model without text, are the same in both"
    from junkdna_nb.transfer.finetuning import run

    rng, found = np.random.default_rng(0), {}
    small = dict(max_train=160, max_eval=0, epochs=3, max_length=16, batch_size=8)
    small |= dict(task="sst2", mode="dense", learning_rate=2e-4)
    for kind, inputs in (("leaked", "text"), ("leaked", "none"), ("shuffled", "text")):
        mirror = tmp_path / kind
        if not mirror.is_dir():
            leaked_data(mirror / "nyu-mll" / "glue" / "sst2", kind == "leaked", rng)
        monkeypatch.setenv("JUNKDNA_MIRROR", str(mirror))
        found[kind, inputs] = load_items(run(GlueConfig(inputs=inputs, **small)))
    null = found["leaked", "none"]
    leaked = v_information(found["leaked", "text"], null)
    shuffled = v_information(found["shuffled", "text"], null)
    assert 0.9 < leaked.value < 1.05 and not leaked.collapsed, leaked
    assert abs(shuffled.value) < 0.1, shuffled
    assert 0.98 < leaked.null_entropy < 1.05


def test_no_records_at_all():
    study = Study(old=True)
    tables = (breaking_table, steps_table, flips_table, difficulty_table)
    assert [markdown(make(study)) for make in tables] == ["*not run*"] * 4
    assert len(agreement(difficulty_table(study))) == 0 and special_records(True) == {}
    said = sentences(populations(), "C1 steeper", "C2 irreversible")
    assert said.count("not run") == 4


def test_the_committed_records_say_something(committed, monkeypatch):
    monkeypatch.setenv("JUNKDNA_STUDY", str(committed))
    study = Study(old=True)
    measures = difficulty_table(study)
    tables = [
        measures,
        agreement(measures, 200),
        breaking_table(study, resamples=500),
        steps_table(study, 200),
        flips_table(study),
    ]
    for table in tables:
        assert len(table) >= 8 and not re.search(r"\b(nan|inf|none)\b", markdown(table).lower())
    assert measures["V-information"].notna().sum() >= 4
    assert measures.set_index("task")["usable"]["rte"] == "no"


def test_overlay_has_every_published_curve():
    task = toy_task({"dense": 7, "sparse 0.4": 6, "sparse 0.8": 5})
    [(_, [curve])] = task_curves([("a", [("sparse", task, "sparse", "")])], "relative")
    figure = overlay([("a", [(curve, paper_points("true_gem", "QNLI 100%", "sparse_transfer"))])])
    shown = [t.get_text() for t in figure.legends[0].get_texts()]
    assert shown == ["sparse", "sparse, paper"]


DRAW = """
import sys
from junkdna_nb.evidence.claims import at, judge
from junkdna_nb.evidence.plots import *
from junkdna_nb.evidence.study import Study, average, mean_of, orders, task_effect
study, folder = Study(old=True), sys.argv[1]
tasks, terms = study.usable(), mean_of(at("sparse"))
rows = judge(study, ["C1 steeper", "C2 irreversible"])
save(verdict_figure(rows), "verdicts", folder)
save(scale_figure(rows[0]), "scales", folder)
save(difficulty_scatter({"signal": orders(tasks, terms, "signal")}), "difficulty", folder)
save(forest(average([task_effect(t, terms, "signal") for t in tasks])), "forest", folder)
panels = [(t.name, [("sparse", t, "sparse", "")]) for t in tasks]
save(drop_curves(task_curves(panels)), "drops", folder)
"""


def test_figures_are_the_same_from_the_same_records(committed, monkeypatch, tmp_path):
    monkeypatch.setenv("JUNKDNA_STUDY", str(committed))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        subprocess.run([sys.executable, "-c", DRAW, tmp_path / name], check=True, cwd=ROOT)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert len(files) == 10
    for f in files:
        assert (tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes(), f
