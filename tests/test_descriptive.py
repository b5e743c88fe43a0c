"Descriptive results against values by hand, a real model and the committed records."

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
    _constant_is_enough,
    agreement,
    bits_limit,
    breaking_table,
    cartography,
    difficulty_table,
    fewest_bits,
    flips,
    flips_table,
    harder,
    isotonic_p,
    keep_limit,
    keep_limits,
    kept_samples,
    largest_rise,
    limit_text,
    special_records,
    steps_table,
    v_information,
)
from junkdna_nb.evidence.plots import (
    amounts_of,
    harder_figure,
    overlay,
    overview,
    split_condition,
    task_curves,
)
from junkdna_nb.evidence.study import Run, Study, TaskRuns
from junkdna_nb.evidence.tables import (
    PUBLISHED,
    claims_table,
    markdown,
    paper_points,
    paper_says,
    populations,
    readme_table,
    sentences,
    verdict_below,
)


def toy_task(right, n=8, seeds=(41,)):
    "Runs that answer the first so many of n items right"
    labels = np.arange(n) % 2
    runs = [Run(c, "", s) for c in right for s in seeds]
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
    limit = keep_limit(task, resamples=500)
    assert np.isclose(limit.value, at) and limit.least == 0.1
    assert limit_text(limit).startswith("below 0.1 [below 0.1, ")
    same = toy_task({"dense": 6, "sparse 0.1": 6})
    assert limit_text(keep_limit(same, resamples=100)) == "above 0.1 [above 0.1, above 0.1]"
    assert keep_limit(toy_task({"dense": 6}), resamples=100) is None
    nothing = kept_samples(toy_task({"dense": 0, "sparse 0.1": 0}), resamples=100)[1]
    assert np.isfinite(nothing).all()


def test_no_limit_where_a_constant_answer_is_enough():
    "Nine of ten items are of one class; their most frequent class in training is the other"
    from dataclasses import replace

    task = toy_task({"dense": 92, "sparse 0.4": 90}, n=100)
    rare = replace(task, labels=(np.arange(100) >= 90).astype(int), chance=np.full(2, 0.1))
    rare = replace(rare, predictions=np.where(task.predictions == task.labels, rare.labels, 0))
    assert _constant_is_enough(rare, 0.95) and not _constant_is_enough(task, 0.95)


def test_fewest_bits_by_hand():
    "By a loop: the fewest bits from which on every share is high enough"
    rng, bits = np.random.default_rng(0), [2, 3, 4, 8]
    shares = rng.random((200, 4)) * 0.2 + 0.85
    for share, found in zip(shares, fewest_bits(bits, shares), strict=True):
        expected = np.inf
        for amount, kept in zip(bits[::-1], share[::-1], strict=True):
            if kept < 0.95:
                break
            expected = amount
        assert found == expected
    task = toy_task({"dense": 100, "4 bits": 99, "3 bits": 80}, n=200)
    assert bits_limit(task, resamples=200).value == 4
    assert amounts_of(task, "rounded") == {3.0: "3 bits", 4.0: "4 bits"}


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
    tables = (steps_table, flips_table, difficulty_table)
    assert [markdown(make(study)) for make in tables] == ["*not run*"] * 3
    assert markdown(breaking_table(keep_limits(study))) == "*not run*"
    assert len(agreement(difficulty_table(study))) == 0 and special_records(True) == {}
    both = populations()
    assert sentences(both, "C1 steeper", "C2 irreversible").count("not run") == 4
    assert readme_table(both[0].rows).count("not run") == 7
    figure = harder_figure([harder(p) for p in both])
    assert [t.get_text() for t in figure.axes[0].texts] == ["new tasks: not run"]


def test_verdicts_say_how_sure_they_are(committed, monkeypatch):
    monkeypatch.setenv("JUNKDNA_STUDY", str(committed))
    both = populations()
    for row in both[1].rows:
        name = row.claim.name
        below, table = verdict_below(both, name), claims_table(both, name)
        assert row.claim.question in below and "What would change it: " in below
        judged = [p.row(name).verdict != "not run" for p in both]
        assert below.count("Verdict: ") == sum(judged)
        assert row.verdict in below and row.verdict in table
        if row.verdict == "inconclusive":
            assert re.search("detectable with|too few sources", below)
            assert re.search("detectable with|too few sources|not tested", table)
        assert ("no points" in below) == (name not in PUBLISHED)
    assert paper_says("C2 irreversible").count(" %") == 2
    assert max(line.count("|") for line in readme_table(both[1].rows).splitlines()) == 6


def test_the_committed_records_say_something(committed, monkeypatch):
    monkeypatch.setenv("JUNKDNA_STUDY", str(committed))
    study = Study(old=True)
    measures = difficulty_table(study)
    tables = [
        measures,
        agreement(measures, 200),
        breaking_table(keep_limits(study, 500)),
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


def test_of_many_tasks_the_mean_and_extremes_are_shown():
    from dataclasses import replace

    tasks = []
    for i in range(12):
        task = toy_task({"dense": 80, "sparse 0.4": 78 - i, "frozen 0.4": 78}, n=100)
        tasks.append(replace(task, name=f"task {i}"))
    groups = [(t.name, [(k, t, k, "") for k in ("sparse", "frozen")]) for t in tasks]
    shown = overview(groups, most=4)
    assert [title for title, _ in shown] == [
        "mean (3 of 12 tasks follow)",
        "task 11",
        "task 10",
        "task 9",
    ]
    assert [c.k for c in shown[0][1]] == [12, 12]
    assert [title for title, _ in overview(groups, most=12)] == [t.name for t in tasks]


DRAW = """
import sys
from junkdna_nb.evidence.claims import at, judge
from junkdna_nb.evidence.plots import *
from junkdna_nb.evidence.descriptive import harder, keep_limits
from junkdna_nb.evidence.study import Study, average, mean_of, task_effect
from junkdna_nb.evidence.tables import Population
study, folder = Study(old=True), sys.argv[1]
tasks, terms = study.usable(), mean_of(at("sparse"))
rows = judge(study, ["C1 steeper", "C2 irreversible", "C4 data", "C4 words"])
save(verdict_figure(rows), "verdicts", folder)
save(harder_figure([harder(Population("old", study, rows))]), "difficulty", folder)
save(keep_figure(keep_limits(study, 200)), "keep", folder)
save(forest(average([task_effect(t, terms, "signal") for t in tasks])), "forest", folder)
groups = [(t.name, [("sparse", t, "sparse", "")]) for t in tasks]
save(drop_curves(task_curves(groups)), "drops", folder)
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
