"The audit: bad input, the search on a known task, a killed command, and what it leaves."

import csv
import json
import os
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
from conftest import BIN, ROOT, command

from junkdna_nb.base.config import StudyError
from junkdna_nb.evidence.measures import Estimates
from junkdna_nb.evidence.search import (
    DENSE,
    Margin,
    Search,
    Synthetic,
    margin,
    seed_variance,
    simulate,
)
from junkdna_nb.machinery.audit import Progress, _batch, _Budget, carry_out, make_audit, own_task
from junkdna_nb.machinery.handover import _licence, finished, hand_over, read_result, render

LEVELS = np.arange(1, 20) / 20


@pytest.fixture(autouse=True)
def no_table(monkeypatch):
    "An audit of a file names its table in the environment"
    monkeypatch.setenv("JUNKDNA_TASKS", "")


SHAPES = [1.5 * LEVELS**2, 0.02 * LEVELS + 3 * (LEVELS > 0.85), 1.5 * LEVELS]


def test_interval_covers_the_breaking_point():
    told = [simulate(lost, draws=2, repetitions=150, n=500) for lost in SHAPES]
    assert min(t.coverage for t in told) >= 0.93


def test_search_takes_half_the_runs_of_the_grid():
    search = [simulate(lost, draws=3, repetitions=50) for lost in SHAPES]
    grid = [simulate(lost, draws=2, repetitions=50, full=True) for lost in SHAPES]
    assert sum(s.width for s in search) <= sum(g.width for g in grid)
    assert sum(s.runs for s in search) <= sum(g.runs for g in grid) / 2


@pytest.mark.parametrize("lost, ends", [(np.zeros(19), (18, 18)), (np.full(19, 2.0), (-1, -1))])
def test_all_of_it_and_none_of_it_are_answers(lost, ends):
    task, search = Synthetic(lost, n=4000, runs=0), Search(19, 0.9, 2)
    while asked := search.todo():
        search.known |= {(level, draw): task.run(level) for level, draw in asked}
    found = search.found()
    assert (found.low, found.high) == ends and found.done


def test_half_a_search_says_what_it_knows():
    task, search = Synthetic(SHAPES[0]), Search(19, 0.95, 2)
    while asked := search.todo():
        assert not search.found().done
        level, draw = asked[0]
        search.known[level, draw] = task.run(level)
        found = search.found()
        assert found.low <= found.best <= found.high
    assert search.found().done


def naive_margin(right, dense, keep):
    "Value, variance over items, and pooled variance between seeds, written from the definition"
    line = right.mean(0) - keep * dense.mean(0)
    squares = sum(len(answers) * answers.mean(1).var() for answers in (right, dense))
    return line.mean(), line.var() / right.shape[1], squares / (len(right) + len(dense) - 2)


def test_margin_is_that_of_the_definition():
    rng = np.random.default_rng(3)
    right, dense = (rng.random((3, 400)) < p for p in (0.7, 0.8))
    known = {}
    for level, answers in ((0, right), (DENSE, dense)):
        for draw, one in enumerate(answers.astype(float)):
            known[level, draw] = Estimates(np.array([one.mean()]), (one - one.mean())[None])
    spread = seed_variance(known, [DENSE, 0], range(3))
    found = margin(known, 0, range(3), 0.95, spread)
    value, items, seeds = naive_margin(right.astype(float), dense.astype(float), 0.95)
    assert np.allclose([found.value, found.items], [value, items])
    assert np.isclose(spread[0], seeds) and spread[1] == 4
    assert np.isclose(found.seeds, seeds * (1 + 0.95**2) / 3)
    assert Margin(0.1, 0.01, 0, 1).bound(0.5) == pytest.approx(0.1)


def test_few_items_show_nothing():
    "No answer of 15 changes: that does not show that 95 % are kept"
    answers = np.r_[np.ones(12), np.zeros(3)]
    one = Estimates(np.array([0.8]), (answers - 0.8)[None])
    task, search = (
        {(level, draw): one for level in range(-1, 6) for draw in range(3)},
        Search(6, 0.95, 2),
    )
    while asked := search.todo():
        search.known |= {run: task[run] for run in asked}
    assert (search.found().low, search.found().high) == (-1, 5)


def test_a_broken_setting_says_nothing_of_a_milder_one():
    task, search = Synthetic([0.1, 0.2], n=200), Search(2, 0.95, 2)
    search.known = {(level, draw): task.run(level) for level in (DENSE, 0) for draw in range(3)}
    alone = search.confirmed()[0]
    task.runs = 2.0
    search.known |= {(1, draw): task.run(1) for draw in range(3)}
    assert search.confirmed()[0] == alone and search.confirmed()[1].seeds > 10 * alone.seeds
    # what is called safe is judged by its own spread, where that is the larger one
    cautious = search.confirmed(cautious=True)
    assert cautious[1].seeds > search.confirmed()[1].seeds


ROWS = [
    (f"a {a} and {b} film, {i}", "good" if a in "fine warm" else "bad")
    for i in range(6)
    for a in ("fine", "warm", "dull", "poor")
    for b in ("short", "long", "new")
]


def written(path, rows, names=("text", "label")):
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([names, *rows])
    return path


def relabelled(label):
    return [(text, label(i)) for i, (text, _) in enumerate(ROWS)]


@pytest.mark.parametrize(
    "rows, asked, told",
    [
        (ROWS, dict(text="review"), "text='review' is no column"),
        (ROWS, dict(label="labels"), "did you mean 'label'? (allowed: text, label)"),
        (relabelled(lambda i: "good"), {}, "every label is 'good'"),
        (ROWS[:40], {}, "40 usable examples (allowed: at least 50)"),
        ([(i, label) for i, (_, label) in enumerate(ROWS)], {}, "'text' is made of numbers"),
        ([(ROWS[0][0], "good")] * 90, {}, "1 usable examples"),
        (relabelled(lambda i: f"kind {i}"), {}, "72 different labels in 72 rows"),
        (ROWS, dict(keep=0), "keep=0 is out of range (allowed: a number in (0, 1])"),
        (ROWS, dict(keep=1.01), "keep=1.01 is out of range"),
        (ROWS, dict(hours=0), "hours=0 is out of range (allowed: more than 0)"),
        (ROWS, dict(seeds=1), "seeds=1 is out of range"),
        (ROWS, dict(methods="gptq"), "methods='gptq' does not fit minilm"),
        (ROWS, dict(methods="rtm"), "unknown method 'rtm'; did you mean 'rtn'?"),
        (ROWS, dict(modes="quantized"), "unknown mode 'quantized'"),
        (ROWS, dict(epochs=0), "epochs=0 is out of range"),
        (ROWS, dict(text2="label"), "label='label' name one column twice"),
        (ROWS, dict(max_eval=1), "max_eval=1 is out of range (allowed: 0 for all, or at least 50)"),
        (ROWS, dict(max_train=2), "max_train=2 is out of range"),
        (ROWS, dict(max_length=513), "max_length=513 is more than minilm can read"),
        (relabelled(lambda i: 10.0**i), {}, "score 1e+71 (allowed: at most 1,000,000 in size)"),
        (relabelled(lambda i: i or "none of it"), {}, "of which none of it is no number"),
        (relabelled(lambda i: "no" if i else "yes"), {}, "one label only among its evaluated rows"),
    ],
)
def test_bad_input_is_told_in_a_line(tmp_path, runs, rows, asked, told):
    path = written(tmp_path / "reviews.csv", rows)
    with pytest.raises(StudyError) as e:
        make_audit("minilm", str(path), **asked)
    assert told in str(e.value) and "\n" not in str(e.value)
    assert not runs.joinpath("02_glue").exists()


JSON = [json.dumps(dict(text=text, label=label), ensure_ascii=False) for text, label in ROWS]


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("a.csv", b"text,text,label\na,b,1\n", "column 'text' stands there twice"),
        ("a.csv", b"text;label\na, b;1\n", "its only column is 'text;label'"),
        ("a.csv", "text,label\ncafé,1\n".encode("latin-1"), "no text in UTF-8"),
        ("a.jsonl", "\n".join([*JSON, "{"]).encode(), "line 73: "),
        ("a.jsonl", b'{"text": ["a"], "label": 1}', "column 'text' holds a list"),
        ("a.txt", b"text", "is a file of another kind (allowed: .csv, .jsonl, .parquet)"),
    ],
)
def test_bad_files_are_told_in_a_line(tmp_path, runs, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StudyError) as e:
        make_audit("minilm", str(tmp_path / name))
    assert told in str(e.value) and "\n" not in str(e.value)


def test_files_of_other_programs_are_read(tmp_path):
    "Ends of lines inside a text, bytes, capitals in a file's name"
    lines = [line.replace("film", "film\u2028\x85") for line in JSON]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert "labels are classes (bad, good)" in own_task(tmp_path / "a.jsonl").notes
    pd.DataFrame(dict(text=[t.encode() for t, _ in ROWS], label=[b for _, b in ROWS])).to_parquet(
        tmp_path / "b.parquet"
    )
    own = own_task(tmp_path / "b.parquet")
    assert "b'" not in (own.table.parent / "train.jsonl").read_text()
    assert own_task(written(tmp_path / "C.CSV", ROWS)).notes == own.notes


def test_classes_are_not_merged(tmp_path):
    codes = relabelled(lambda i: ("01", "1", "2")[i % 3])
    assert "labels are classes (01, 1, 2)" in own_task(written(tmp_path / "c.csv", codes)).notes
    words = relabelled(lambda i: ("Yes", "yes", "NaN")[i % 3])
    notes = own_task(written(tmp_path / "w.csv", words)).notes
    assert "classes that differ in upper case only: Yes, yes" in notes
    assert "NaN is taken as a class (an empty cell would be no label)" in notes


def test_repetitions_in_capitals_are_repetitions(tmp_path):
    rows = [*ROWS, *((text.upper(), "other") for text, _ in ROWS[:5])]
    notes = "; ".join(own_task(written(tmp_path / "r.csv", rows)).notes)
    assert "5 rows left out: the text is repeated (the first is kept), 5 of them with" in notes


def test_every_seed_must_train_on_every_class(tmp_path):
    rows = relabelled(lambda i: "rare" if i < 5 else ("good", "bad")[i % 2])
    rows += [(f"{text}, {i}", label) for i in range(4) for text, label in rows[5:]]
    path = written(tmp_path / "rare.csv", rows)
    with pytest.raises(StudyError, match="rare is evaluated and never trained on"):
        make_audit("minilm", str(path), max_train=50, seeds=20)


def test_what_runs_use_is_told(tmp_path):
    long = [
        (" ".join([text] * (40 if i % 2 else 1)), label) for i, (text, label) in enumerate(ROWS)
    ]
    notes = make_audit("minilm", str(written(tmp_path / "l.csv", long))).notes
    assert "50 rows train and 22 are evaluated in each run" in notes
    assert "50% of texts are longer than max_length=64 tokens and are cut" in notes


def test_options_that_do_nothing_are_refused():
    with pytest.raises(StudyError, match="text='review' is for a file, and 'movie' is none"):
        make_audit("minilm", "movie", text="review")


def test_what_is_left_out_is_told(tmp_path):
    rows = [*ROWS, ROWS[0], ROWS[1], ("", "bad"), ("no label here", "")]
    notes = "; ".join(own_task(written(tmp_path / "r.csv", rows)).notes)
    assert "1 row left out: a text is empty" in notes and "1 row left out: no label" in notes
    assert "2 rows left out: the text is repeated" in notes and "classes (bad, good)" in notes


def test_what_is_no_number_is_no_label(tmp_path):
    labels = ["nan", *(i % 2 for i in range(71))]
    own = own_task(written(tmp_path / "n.csv", relabelled(lambda i: labels[i])))
    assert "labels are classes (0, 1)" in own.notes
    assert "1 row left out: no label" in "; ".join(own.notes)


def test_scores_pairs_and_other_files(tmp_path):
    scores = relabelled(lambda i: i / 7)
    assert "labels are scores" in own_task(written(tmp_path / "s.csv", scores)).notes
    whole = "\n".join(own_task(written(tmp_path / "w.csv", relabelled(lambda i: i % 24))).notes)
    assert "labels are scores (if these numbers are classes, write them as words)" in whole
    lines = [json.dumps(dict(a=text, b="x y", n=i % 3)) for i, (text, _) in enumerate(ROWS)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    own = own_task(tmp_path / "p.jsonl", "a", "n", "b")
    assert "labels are classes (0, 1, 2)" in own.notes
    first = json.loads((own.table.parent / "train.jsonl").read_text().splitlines()[0])
    assert set(first) == {"row", "label", "text", "text2"}
    # the splits are stratified, and together they are the file
    train, held = (
        (own.table.parent / f"{s}.jsonl").read_text().splitlines() for s in ("train", "validation")
    )
    assert len(train) + len(held) == len(ROWS)
    labels = [json.loads(line)["label"] for line in held]
    assert max(map(labels.count, "012")) - min(map(labels.count, "012")) <= 1


def test_class_that_is_never_trained_on(tmp_path, monkeypatch):
    written(tmp_path / "train.csv", [(t, "good") for t, _ in ROWS])
    written(tmp_path / "held.csv", [(t, "bad") for t, _ in ROWS])
    row = "films: {data: {train: train.csv, validation: held.csv}, text: text, label: label, "
    (tmp_path / "mine.yaml").write_text(row + "labels: [bad, good]}")
    monkeypatch.setenv("JUNKDNA_TASKS", str(tmp_path / "mine.yaml"))
    with pytest.raises(StudyError, match="bad is evaluated and never trained on"):
        make_audit("minilm", "films")


def test_model_without_the_hub():
    offline = dict(HF_HUB_OFFLINE="1", JUNKDNA_MIRROR="")
    told = command("junkdna", "audit", "nobody/nothing", "movie", env=offline)
    assert told.returncode == 2 and told.stdout == ""
    assert told.stderr.startswith("error: model 'nobody/nothing' was not found")
    assert told.stderr.count("\n") == 1


SCRIPT = "<script>alert(1)</script>"
GOOD, BAD = ("wonderful great", "brilliant lovely"), ("awful terrible", "boring poor")
ASKED = ("--methods", "rtn", "--keep", "0.6", "--max-train", "0", "--max-eval", "0")
ASKED += ("--epochs", "10", "--max-length", "24", "--learning-rate", "0.005")
ASKED += ("--batch-size", "32")


@pytest.fixture(scope="module")
def killed(tmp_path_factory, tiny_mirror):
    "A folder in which an audit of one's own file was killed after some runs"
    folder = tmp_path_factory.mktemp("audit")
    rows = [
        (f"{SCRIPT} {w} film {i}", label)
        for i in range(40)
        for label, words in (("good", GOOD), ("bad", BAD))
        for w in words
    ]
    written(folder / "reviews.csv", rows)
    env = dict(JUNKDNA_RUNS=str(folder / "runs"), JUNKDNA_STUDY=str(folder / "study"))
    env |= dict(JUNKDNA_MIRROR=str(tiny_mirror))
    words = [str(BIN / "junkdna"), "audit", "tiny/bert", str(folder / "reviews.csv"), *ASKED]
    options = dict(cwd=ROOT, env=os.environ | env, start_new_session=True)
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, **options
    )
    records, until = folder / "runs" / "02_glue", time.monotonic() + 300
    while not list(records.glob("*.json")) and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    made = {p.name: p.stat().st_mtime_ns for p in records.glob("*.json")}
    return folder, words, env, made


@pytest.fixture(scope="module")
def audited(killed):
    "The same audit, gone on with to its end"
    folder, words, env, made = killed
    told = command("junkdna", *words[1:], env=env)
    assert told.returncode == 0, told.stderr
    (result,) = (folder / "runs" / "audit").glob("reviews_*/audit.json")
    return folder, told.stdout, result.parent, made


def test_killed_audit_goes_on(audited):
    folder, said, _, made = audited
    records = {p.name: p.stat().st_mtime_ns for p in (folder / "runs" / "02_glue").glob("*.json")}
    assert made and made.items() <= records.items()
    assert "labels are classes (bad, good)" in said and "split here, stratified, seed 0" in said
    result = read_result(audited[2])
    assert result["done"] and len(records) == result["runs"] and result["advice"] in said


def test_second_call_answers_from_what_is_there(audited, killed):
    folder, _, where, _ = audited
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    told = command("junkdna", *killed[1][1:], env=killed[2])
    assert told.returncode == 0 and read_result(where)["advice"] in told.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_saved_model_has_the_score_that_is_reported(audited, monkeypatch):
    from transformers import pipeline

    folder, _, where, _ = audited
    card, saved = (where / "model" / "README.md").read_text(), read_result(where)["model"]
    assert 'pipeline("text-classification", ".")' in card
    assert "license: other" in card  # the tiny model states none
    assert saved["same"] == saved["n"] and f"{saved['score']:.4f}" in card
    (held,) = (folder / "runs" / "audit" / "data").glob("*/validation.jsonl")
    rows = [json.loads(line) for line in held.read_text().splitlines()]
    monkeypatch.chdir(where / "model")
    model = pipeline("text-classification", ".")
    said = [answer["label"] for answer in model([row["text"] for row in rows])]
    right = [row["label"] == s for row, s in zip(rows, said, strict=True)]
    assert np.mean(right) == pytest.approx(saved["score"])


def test_report_is_one_file_and_texts_stay_texts(audited, tmp_path):
    result = read_result(audited[2])
    result["flips"]["first"] = [dict(text=f"{SCRIPT} & <b>bold</b>", change="lost")]
    result["notes"] = ["labels are classes (<img src=x onerror=alert(1)>, __init__)"]
    (tmp_path / "audit.json").write_text(json.dumps(result))
    page = render(tmp_path).read_text()
    assert result["advice"] in page and "data:image/png;base64," in page
    assert "&lt;script&gt;alert(1)" in page and "<script" not in page and "<b>bold" not in page
    assert "&lt;img src=x" in page and "<img src=x" not in page and "__init__" in page
    assert 'src="http' not in page and "from junkdna_nb" not in page
    assert "<script" not in (audited[2] / "report.html").read_text()


def test_licence_is_that_of_the_base_model():
    assert (_licence("minilm"), _licence("gemma3")) == ("apache-2.0", "gemma")


def test_no_time_is_said():
    audit = make_audit("minilm", "movie", methods="rtn", max_train=64, max_eval=64)
    with pytest.raises(StudyError, match="time was up before the dense model was run"):
        hand_over(carry_out(audit, hours=1e-9))


def test_no_slot_is_left_idle():
    "Three dense runs and one of each route: what would run alone waits for the next round"
    progress = Progress(make_audit("minilm", "movie", max_train=64, max_eval=64))
    assert len(progress.todo()) == 6
    for slots, count in ((1, 6), (2, 6), (4, 4), (5, 5), (8, 6)):
        tasks = _batch(progress, _Budget(float("inf")), slots)
        assert len(tasks) == count
        assert [t.config.mode for t in tasks[:3]] == 3 * ["dense"]


def test_damaged_result_is_none(tmp_path):
    (tmp_path / "audit.json").write_text('{"done": tr')
    assert read_result(tmp_path) is None and read_result(tmp_path / "nowhere") is None
    (tmp_path / "audit.json").write_text('{"done": true}')
    assert finished(tmp_path) is None
