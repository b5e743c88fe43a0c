"The table of tasks; metrics and human scores against hand-computed values; own tasks; subsets."

import csv
import itertools
import json
import math
import operator
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT, committed_files
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from junkdna_nb.base.config import StudyError
from junkdna_nb.base.experiments import GlueConfig, get_experiment
from junkdna_nb.base.records import load_record
from junkdna_nb.base.tasks import (
    METRICS,
    TASKS,
    Part,
    bootstrap_se,
    chance_level,
    check_task,
    get_task,
    human_scores,
    item_agreement,
    load_task,
    make_task,
    nested_order,
    score,
    subset,
    task_version,
    tasks_overview,
)

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
    assert abs((y[rows] > 2).mean() - 0.5) <= 0.05 and list(nested_order(y, 3)) != list(
        nested_order(y, 4)
    )


def test_head_rule_is_the_beginning_of_the_file_for_every_seed():
    assert [list(subset(range(10), s, 0.3, rule="head")) for s in (41, 42)] == [[0, 1, 2]] * 2
    assert list(subset([0] * 10, 41, 0.5, cap=4, rule="head")) == [0, 1]


def test_metrics_by_hand():
    y, p = np.array([1, 1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 1, 1])
    tp, fp, fn, tn = 3, 1, 1, 1
    assert METRICS["accuracy"](y, p) == pytest.approx(4 / 6)
    assert METRICS["f1"](y, p) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert METRICS["matthews"](y, p) == pytest.approx(
        (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    )
    a, b = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert METRICS["pearson"](a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert METRICS["spearman"](a, b) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_constant_answers_score_chance_exactly():
    y = np.array([1, 1, 1, 0, 0, 1, 0, 1])
    assert METRICS["accuracy"](y, np.ones_like(y)) == chance_level("accuracy", y, 1)
    assert METRICS["f1"](y, np.ones_like(y)) == pytest.approx(chance_level("f1", y))
    assert (
        METRICS["matthews"](y, np.ones_like(y))
        == METRICS["pearson"](y * 1.0, np.ones(8))
        == METRICS["spearman"](y * 1.0, np.ones(8))
        == 0
    )


def test_standard_errors_against_theory():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 400), rng.integers(0, 2, 400)
    a = METRICS["accuracy"](y, p)
    assert score(TASKS["sst2"], y, p, majority=1)["accuracy"]["se"] == pytest.approx(
        math.sqrt(a * (1 - a) / 400)
    )
    assert bootstrap_se(METRICS["accuracy"], y, p) == pytest.approx(
        math.sqrt(a * (1 - a) / 400), rel=0.15
    )
    x = rng.normal(size=400)
    z = 0.6 * x + 0.8 * rng.normal(size=400)
    r = METRICS["pearson"](x, z)
    assert bootstrap_se(METRICS["pearson"], x, z) == pytest.approx(
        (1 - r * r) / math.sqrt(400), rel=0.2
    )


@pytest.mark.parametrize("name", [t for t in TASKS if TASKS[t].package])
def test_packaged_tasks(name):
    data = load_task(name)
    train, validation = data.train, data.evals[""]
    ids = {r["id"] for r in train}
    assert len(ids) == len(train) and not ids & {r["id"] for r in validation}
    text = operator.itemgetter(*data.task.text)

    def texts(rows):
        return {str(text(r)).casefold() for r in rows}

    assert not texts(train) & texts(validation), "no text stands on both sides"
    if name in ("product", "editorial"):

        def document(rows):
            return {r["id"].split("_")[0] for r in rows}

        assert not document(data.train) & document(data.evals[""])
    share = len(data.evals[""]) / (len(data.train) + len(data.evals[""]))
    assert (
        0.15 < share < 0.25
        and all(r["label"] in (0, 1) for r in data.train)
        and all(r[c].strip() for r, c in itertools.product(data.train[:50], data.task.text))
    )
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
    with pytest.raises(StudyError, match="data of task 'rte' could not be opened .* three ways"):
        load_task("rte")


def _unreachable(*args, **kw):
    raise ConnectionError("no route")


# The table


def test_the_table_names_every_task_once_and_says_what_is_known():
    lines = (ROOT / "nbs/configs/tasks.yaml").read_text(encoding="utf-8").splitlines()
    names = [line.rstrip(":") for line in lines if line and line[0] not in " #"]
    assert names == list(TASKS) and len(set(names)) == len(names)
    sets = Counter(t.set for t in TASKS.values())
    assert sets == dict(exploratory=15, confirmatory=85, overlap=4, multilingual=6)
    for task in TASKS.values():
        assert task.rows.keys() == {"train", "validation"} and task.chance is not None, task.name
        assert task.licence or task.source == "glue", task.name
        assert not task.human or task.human_source, task.name
        assert task.human or not task.ratings, task.name


def test_digests_of_committed_records(mirror):
    paths = [f for f in committed_files() if f.suffix == ".json"]
    records = [load_record(path) for path in paths]
    assert len(records) >= 579
    for r in records:
        assert get_experiment(r["experiment"]).make(**r["config"]).digest == r["digest"], r["name"]


def test_rows_of_committed_records(mirror):
    "The rows of every task a record was made with are the same rows today"
    seen = {}
    for path in committed_files():
        if path.suffix != ".json" or path.parent.name != "02_glue":
            continue
        record = load_record(path)
        seen.setdefault(record["config"]["task"], record)
    assert len(seen) >= 9
    for task, record in seen.items():
        c = record["config"]
        rule = "head" if c["recipe"] == "reference" else "nested"
        data = load_task(task, c["seed"], c["data_share"], c["max_train"], c["max_eval"], rule)
        assert data.fingerprint == record["fingerprints"]["data"], task
        assert (list(data.notes), data.sizes) == (record["notes"], record["sizes"])
        assert data.origin == record["origin"]["data"]
        for metric, told in record["metrics"].items():
            human = data.human.get(metric, dict(value=None, se=None, source=None))
            assert human["value"] == told["human"], task
            assert human["source"] == told.get("human_source"), task


def test_every_task_loads_from_the_mirror(mirror):
    with open(mirror / "COUNTS.tsv") as f:
        told = list(csv.DictReader(f, delimiter="\t"))
    counts = {(r["repository"], r["config"], r["split"]): int(r["rows"]) for r in told}
    computed = 0
    for name, task in TASKS.items():
        if task.package or not (mirror / task.hub).is_dir():
            continue
        data = load_task(name, max_train=50, max_eval=0 if task.ratings else 50)
        place = (task.hub, task.config)
        split = task.train[0] if (*place, task.train[0]) in counts else task.train[-1]
        assert data.sizes["train_available"] == counts[*place, split], name
        assert data.sizes["eval_available"] == counts[*place, task.validation[""][0]], name
        rows = data.train + data.evals[""]
        assert all(r[c].strip() for r, c in itertools.product(rows, task.text)), name
        if task.labels:
            assert {r["label"] for r in rows} <= set(range(len(task.labels))), name
        if task.ratings:
            computed += 1
            human, told = data.human[task.metrics[0]], task.human[task.metrics[0]]
            assert human["value"] == pytest.approx(told, abs=0.005) and human["se"] > 0, name
            assert human["source"].startswith("computed")
            assert len(data.agreement[""]) == len(data.evals[""])
    assert computed >= 19


def test_facts_of_the_table_are_those_of_the_data(mirror):
    for name in ("trec", "chaos_snli", "conv_abuse", "amazon_counterfactual", "xnli_zh", "tweet"):
        task, data = get_task(name), load_task(name)
        y = np.array([r["label"] for r in data.evals[""]])
        chance = chance_level(task.metrics[0], y, data.majority)
        assert task.chance == pytest.approx(chance, abs=1e-4)
        assert task.rows["validation"] == len(y)


def test_xnli_trains_on_what_is_there(mirror):
    data = load_task("xnli_de", max_train=30, max_eval=30)
    assert data.sizes["train_available"] == 2490 and data.sizes["eval_available"] == 5010
    assert data.notes == ("no train in facebook/xnli in the mirror: validation is used",)
    assert {r["label"] for r in data.train} == {0, 1, 2} and not data.human


def test_overview(monkeypatch, mirror):
    frame = tasks_overview()
    assert list(frame.name) == list(TASKS)
    places = dict(zip(frame.name, frame.place, strict=True))
    assert (places["movie"], places["rte"], places["trec"]) == ("packaged", "mirror", "mirror")
    monkeypatch.delenv("JUNKDNA_MIRROR")
    few = tasks_overview(["conv_abuse", "stsb"]).set_index("name")
    assert few.loc["conv_abuse", "place"] == "hub" and few.loc["conv_abuse", "human_verified"]
    assert few.loc["conv_abuse", "human"] == 0.888 and few.loc["stsb", "chance"] == 0
    assert few.classes.isna().tolist() == [False, True]


# Macro F1


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_macro_f1_is_scikit_learns(pairs):
    y, p = np.array(pairs).T
    expected = f1_score(y, p, average="macro", zero_division=0)
    assert METRICS["macro_f1"](y, p) == pytest.approx(expected)
    constant = np.full_like(y, p[0])
    expected = f1_score(y, constant, average="macro", zero_division=0)
    assert chance_level("macro_f1", y, p[0]) == pytest.approx(expected)


# Human scores from ratings


def of_ratings(**row):
    return make_task("rated", dict(data="rated.jsonl", ratings="votes") | row)


def human(task, ratings, labels=None):
    labels = labels or [0] * len(ratings)
    return human_scores(task, Part([dict(label=label) for label in labels], ratings))


def test_one_rater_against_the_majority_by_hand():
    task = of_ratings(labels=["no", "yes"], metric=["accuracy", "macro_f1"])
    # Item 1: the two 0 see a tie of the others, the 1 is wrong. Item 2: three are right.
    # Item 3 decides nothing. Item 4: the 0s agree; a rating that is no class is wrong.
    found = human(task, [[0, 0, 1], [1, 1, 1], [0, 1], [0, 0, 0, 2]])
    assert found["accuracy"]["value"] == pytest.approx(6 / 8)
    f1 = [2 * 3 / (5 + 3), 2 * 3 / (3 + 4)]
    assert found["macro_f1"]["value"] == pytest.approx(sum(f1) / 2)
    assert "8 ratings" in found["accuracy"]["source"] and found["accuracy"]["se"] > 0
    assert item_agreement(task, [[0, 0, 1], [1, 1, 1], [1]])[:2] == pytest.approx([2 * 0.5 / 3, 1])
    assert math.isnan(item_agreement(task, [[1]])[0])


def test_one_rater_against_the_label():
    task = of_ratings(labels=["no", "yes"], rating_rule="gold")
    assert human(task, [[0, 1], [1, 1]], [0, 1])["accuracy"]["value"] == 3 / 4


def test_one_rater_against_the_mean():
    rng = np.random.default_rng(0)
    ratings = (rng.normal(3, 1, (300, 1)) + rng.normal(0, 1, (300, 6))).round(1)
    others = (ratings.sum(1, keepdims=True) - ratings) / 5
    found = human(of_ratings(), ratings.tolist())["pearson"]
    assert found["value"] == pytest.approx(np.corrcoef(ratings.ravel(), others.ravel())[0, 1])
    assert 0.01 < found["se"] < 0.05


def test_error_of_a_human_score_covers_other_items():
    "Standard error over items against the spread over samples of items"
    rng, task = np.random.default_rng(1), of_ratings(labels=["no", "yes"])
    values, errors = [], []
    for _ in range(60):
        right = rng.random((200, 5)) < rng.beta(6, 2, (200, 1))
        found = human(task, right.astype(int).tolist())["accuracy"]
        values.append(found["value"])
        errors.append(found["se"])
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.3)


def test_published_score_where_there_are_no_ratings():
    task = of_ratings(labels=["no", "yes"], human={"accuracy": 0.9}, human_source="a paper")
    assert human(task, []) == {"accuracy": dict(value=0.9, se=None, source="a paper")}
    assert human(task, [[1], [0, 1]])["accuracy"]["value"] == 0.9, "nothing to compare"


# A user's own tasks

SENTENCES = [(f"Sentence number {i}.", "good" if i % 4 else "bad") for i in range(100)]
ROW = "reviews:\n  data: {file}\n  text: text\n  label: label\n  labels: [bad, good]\n"


@pytest.fixture
def own(tmp_path, monkeypatch):
    "Write a table of one's own tasks, with CSV data beside it, and use it"

    def write(text, content=None):
        with open(tmp_path / "reviews.csv", "w", newline="", encoding="utf-8") as f:
            csv.writer(f).writerows(content or [("text", "label"), *SENTENCES])
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        monkeypatch.setenv("JUNKDNA_TASKS", str(tmp_path / "mine.yaml"))
        return tmp_path

    return write


def write_as(path):
    "The sentences as JSON lines or Parquet, with class numbers and ratings"
    import pandas as pd

    frame = pd.DataFrame(SENTENCES, columns=["text", "label"])
    frame["label"] = (frame.label == "good").astype(int)
    frame["votes"] = [[label] * 3 for label in frame.label]
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))


@pytest.mark.parametrize("file", ["reviews.csv", "reviews.jsonl", "reviews.parquet"])
def test_own_files(own, file):
    folder = own(ROW.format(file=file) + ("" if file.endswith("csv") else "  ratings: votes\n"))
    if not file.endswith("csv"):
        write_as(folder / file)
    data = load_task("reviews")
    assert (len(data.train), len(data.evals[""])) == (80, 20)
    assert sum(r["label"] for r in data.evals[""]) == 15, "stratified"
    ids = [r["id"] for r in data.train + data.evals[""]]
    assert len(set(ids)) == 100
    assert any("split here, stratified, seed 0" in note for note in data.notes)
    assert "80 rows train, 20 validate" in check_task("reviews")
    if not file.endswith("csv"):
        assert data.human["accuracy"]["value"] == 1 and data.agreement[""] == [1.0] * 20
    assert tasks_overview(["reviews"]).iloc[0].to_dict()["place"] == "file"


def test_own_files_by_split_and_scores(own):
    text = "marks:\n  data: {train: reviews.csv, validation: more.csv}\n  text: [text, other]\n"
    text += "  label: mark\n"
    rows = [("text", "other", "mark"), *((f"a{i}", f"b{i}", i / 10) for i in range(30))]
    folder = own(text, rows)
    (folder / "more.csv").write_text("text,other,mark\nc,d,1.5\ne,NA,2\n")
    data = load_task("marks")
    assert data.task.metrics == ("pearson",) and data.task.pair
    assert data.majority is None and not data.notes
    assert [r["label"] for r in data.evals[""]] == [1.5, 2.0] and data.evals[""][1]["other"] == "NA"


def test_own_hub_data_set(own, mirror):
    row = "polarity:\n  hub: nyu-mll/glue\n  config: rte\n  text: sentence1\n"
    row += "  labels: ['no', 'yes']\n"
    own(row)
    data = load_task("polarity")
    assert len(data.train) == 2490 and data.train[0].keys() == {"id", "label", "sentence1"}
    assert task_version("polarity") != task_version("rte")


def test_digest_follows_own_data_and_row(own):
    own(ROW.format(file="reviews.csv"))
    first = GlueConfig(task="reviews").digest
    assert GlueConfig(task="reviews").digest == first
    longer = [("text", "label"), *SENTENCES, ("One more.", "good")]
    folder = own(ROW.format(file="reviews.csv"), longer)
    second = GlueConfig(task="reviews").digest
    turned = ROW.format(file="reviews.csv").replace("[bad, good]", "[good, bad]")
    (folder / "mine.yaml").write_text(turned)
    assert len({first, second, GlueConfig(task="reviews").digest}) == 3
    assert GlueConfig(task="movie").digest == GlueConfig().digest


BAD_ROWS = {
    "lables: [bad, good]": "lables: unknown key; did you mean 'label.*allowed: hub|category",
    "metric: acuracy": "metric: unknown 'acuracy'; did you mean 'accuracy'",
    "metric: pearson": "metric: 'pearson' needs scores and the row has 2 classes "
    ".allowed: accuracy",
    "labels: [bad, fair, good]\n  metric: f1": "'f1' needs two classes and the row has 3",
    "labels: [false, true]": "labels: .False, True. does not fit .*in quotes",
    "labels: [worse, better]": "labels: 'bad' in column 'label' .allowed: worse, better, or 0",
    "text: txt": "text: no column 'txt' in the file; did you mean 'text'",
    "label: mark": r"label: no column 'mark' .*there are: text, label",
    "id: key": "id: no column 'key'",
    "text: [a, b, c]": "text: .*one or two different columns",
    "train: big": "train: no split 'big' in reviews.csv .there are: train, validation",
    "validation: train": "validation: 'train' is the training split too",
    "ratings: votes": "ratings: no column 'votes'",
    "ratings: votes\n  metric: f1": "ratings: cannot give 'f1'",
    "rating_rule: mean": "rating_rule: 'mean' does not fit",
    "human: {pearson: 0.5}": "human: 'pearson' is no metric of the row",
    "set: confirmatory": "set: 'confirmatory' is for the project's tasks",
    "hub: nyu-mll/glue": "hub: the row has hub and data .allowed: one of hub, package, data",
    "data: none.csv": "data: none.csv does not exist beside mine.yaml",
    "data: reviews.xls": "data: reviews.xls .allowed: .csv, .jsonl, .parquet",
    "data: 3": "data: 3 does not fit",
}


@pytest.mark.parametrize("line", BAD_ROWS)
def test_bad_rows_are_refused_in_one_line(own, line):
    keys = {entry.split(":")[0].strip() for entry in line.split("\n")}
    lines = ROW.format(file="reviews.csv").splitlines()
    row = [kept for kept in lines if kept.split(":")[0].strip() not in keys]
    folder = own("\n".join([*row, "  " + line]) + "\n")
    with pytest.raises(StudyError, match=BAD_ROWS[line]) as told:
        load_task("reviews")
    assert "\n" not in str(told.value) and str(told.value).startswith("mine.yaml: task 'reviews'")
    assert str(folder) not in str(told.value)


BAD_FILES = {
    "empty": ("reviews.csv", b"", "reviews.csv has no rows"),
    "header": ("reviews.csv", b"text,label\n", "reviews.csv has no rows"),
    "ragged": ("reviews.csv", b"text,label\na,b,c\n", "row 1 has other columns"),
    "binary": ("reviews.csv", b"\xff\xfe\x00", "no text in UTF-8"),
    "json": ("reviews.jsonl", b"{'a': 1}\n", "reviews.jsonl cannot be read"),
    "list": ("reviews.jsonl", b"[1]\n", "line 1 is not an object"),
    "parquet": ("reviews.parquet", b"no parquet", "reviews.parquet cannot be read"),
    "null": ("reviews.jsonl", b'{"text": null, "label": "bad"}\n', "'text' is empty in row 0"),
    "ratings": ("reviews.jsonl", b'{"text": "", "label": "bad", "votes": [0.5]}\n', "no classes"),
    "single": ("reviews.csv", b"text,label\na,bad\n", "has one row"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_in_one_line(own, kind):
    file, content, why = BAD_FILES[kind]
    folder = own(ROW.format(file=file) + ("  ratings: votes\n" if kind == "ratings" else ""))
    (folder / file).write_bytes(content)
    with pytest.raises(StudyError, match=why) as told:
        load_task("reviews")
    assert str(told.value).startswith("mine.yaml: task 'reviews'") and "\n" not in str(told.value)


def test_bad_tables_are_refused_in_one_line(own, monkeypatch):
    own(ROW.format(file="reviews.csv").replace("reviews:", "movie:"))
    with pytest.raises(StudyError, match="mine.yaml: task 'movie', name: is taken"):
        get_task("movie")
    bad = {"a: [": "mine.yaml:[12]: not YAML", "": "holds no tasks", "a: 3": "row: 3 is no row"}
    for text, why in bad.items():
        own(text)
        with pytest.raises(StudyError, match=why):
            get_task("movie")
    monkeypatch.setenv("JUNKDNA_TASKS", "nowhere.yaml")
    with pytest.raises(StudyError, match="JUNKDNA_TASKS='nowhere.yaml' was not found"):
        get_task("movie")
