"The table of tasks, its metrics against hand-computed values, and its subsets."
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from junkdna_nb.core import StudyError
from junkdna_nb.base.tasks import METRICS, TASKS, bootstrap_se, chance_level, load_task, nested_order, score, subset

labels = st.lists(st.integers(0, 3), min_size=4, max_size=300)


@given(labels, st.integers(0, 2**32 - 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_shares_are_nested(y, seed, a, b):
    small, large = sorted((a, b))
    assert set(subset(y, seed, small)) <= set(subset(y, seed, large))
    assert len(subset(y, seed, large)) == max(1, round(large * len(y)))
    assert sorted(subset(y, seed, 1.0)) == list(range(len(y)))


@given(labels, st.integers(0, 1000), st.floats(0.05, 1))
def test_shares_are_stratified(y, seed, share):
    "Every class has its share of the subset, to within one example per class"
    rows = subset(y, seed, share)
    y = np.array(y)
    for c in np.unique(y):
        assert abs((y[rows] == c).sum() - len(rows) * (y == c).mean()) <= len(np.unique(y))


def test_scores_are_stratified_by_their_nearest_number():
    y = np.array([0.1, 0.4, 4.9, 5.0] * 50)
    rows = subset(y, 3, 0.1)
    assert abs((y[rows] > 2).mean() - 0.5) <= 0.05 and list(nested_order(y, 3)) != list(nested_order(y, 4))


def test_head_rule_is_the_beginning_of_the_file_for_every_seed():
    assert [list(subset(range(10), s, 0.3, rule="head")) for s in (41, 42)] == [[0, 1, 2]] * 2
    assert list(subset([0] * 10, 41, 0.5, cap=4, rule="head")) == [0, 1]


def test_metrics_by_hand():
    y, p = np.array([1, 1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 1, 1])
    tp, fp, fn, tn = 3, 1, 1, 1
    assert METRICS["accuracy"](y, p) == pytest.approx(4 / 6)
    assert METRICS["f1"](y, p) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert METRICS["matthews"](y, p) == pytest.approx((tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    a, b = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert METRICS["pearson"](a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert METRICS["spearman"](a, b) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_constant_answers_score_chance_exactly():
    y = np.array([1, 1, 1, 0, 0, 1, 0, 1])
    assert METRICS["accuracy"](y, np.ones_like(y)) == chance_level("accuracy", y, 1)
    assert METRICS["f1"](y, np.ones_like(y)) == pytest.approx(chance_level("f1", y))
    assert METRICS["matthews"](y, np.ones_like(y)) == METRICS["pearson"](y * 1.0, np.ones(8)) == METRICS["spearman"](y * 1.0, np.ones(8)) == 0


def test_standard_errors_against_theory():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 400), rng.integers(0, 2, 400)
    a = METRICS["accuracy"](y, p)
    assert score(TASKS["sst2"], y, p, majority=1)["accuracy"]["se"] == pytest.approx(math.sqrt(a * (1 - a) / 400))
    assert bootstrap_se(METRICS["accuracy"], y, p) == pytest.approx(math.sqrt(a * (1 - a) / 400), rel=0.15)
    x = rng.normal(size=400)
    z = 0.6 * x + 0.8 * rng.normal(size=400)
    r = METRICS["pearson"](x, z)
    assert bootstrap_se(METRICS["pearson"], x, z) == pytest.approx((1 - r * r) / math.sqrt(400), rel=0.2)


@pytest.mark.parametrize("name", [t for t in TASKS if TASKS[t].source != "glue"])
def test_packaged_tasks(name):
    data = load_task(name)
    ids = {s: [r["id"] for r in rows] for s, rows in dict(train=data.train, validation=data.evals[""]).items()}
    assert not set(ids["train"]) & set(ids["validation"]) and len(set(ids["train"])) == len(ids["train"])
    text = lambda rows: {tuple(r[c].casefold() for c in data.task.text) for r in rows}
    assert not text(data.train) & text(data.evals[""]), "no text stands on both sides"
    if name in ("product", "editorial"):
        document = lambda rows: {r["id"].split("_")[0] for r in rows}
        assert not document(data.train) & document(data.evals[""])
    share = len(data.evals[""]) / (len(data.train) + len(data.evals[""]))
    assert 0.15 < share < 0.25 and all(r["label"] in (0, 1) for r in data.train) and all(v.strip() for r in data.train[:50] for c in data.task.text for v in [r[c]])
    assert load_task(name).fingerprint == data.fingerprint
    if data.task.category == "sentiment":
        assert 0.8 < data.human["accuracy"]["value"] < 0.97 and data.human["accuracy"]["se"] < 0.01


def test_glue_rows_match_the_official_counts(mirror):
    for name in ("cola", "rte", "stsb", "wnli", "mrpc"):
        data = load_task(name)
        assert not data.notes and data.sizes["train_available"] == TASKS[name].official["train"]
    mnli = load_task("mnli", max_train=9, max_eval=30)
    assert any("subset" in n for n in mnli.notes) and any("mismatched" in n for n in mnli.notes)
    assert {r["label"] for r in mnli.train} == {0, 1, 2}


def test_data_that_cannot_be_found(monkeypatch, tmp_path):
    monkeypatch.setenv("JUNKDNA_MIRROR", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", _unreachable)
    with pytest.raises(StudyError, match="data of task 'rte' was not found .* three ways"):
        load_task("rte")


def _unreachable(*args, **kw):
    raise ConnectionError("no route")
