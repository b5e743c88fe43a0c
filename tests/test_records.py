"The committed records: intact, certified, and what the README says follows from them."
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from conftest import ROOT, command
from matplotlib.testing.compare import compare_images

from junkdna_nb.claims import Study, judge
from junkdna_nb.core import load_items, load_record, load_runs
from junkdna_nb.experiments import EXPERIMENTS, closing_lines, get_experiment
from junkdna_nb.sweep import read_grid


@pytest.fixture
def records(committed, monkeypatch):
    monkeypatch.setenv("JUNKDNA_RUNS", str(committed))
    return [load_record(p) for p in load_runs(status=None).path]


def test_records_are_intact_and_few_megabytes(records, committed):
    assert len(records) >= 96 and {r["status"] for r in records} == {"ok"}
    names = {r["name"] for r in records}
    for r in records:
        config = get_experiment(r["experiment"]).make(**r["config"])
        assert config.unused() == r["unused"] and r["name"].endswith(r["digest"])
        if r["origin"]["data"] != "package" and "mirror" not in r["origin"]["data"]:
            assert config.digest == r["digest"], r["name"]   # packaged data: the configuration alone names the run
        assert len(load_items(r)) == r["items"]["rows"]      # checks the hash as well
        dense = (r.get("relative") or {}).get("dense_digest")
        assert dense is None or any(n.endswith(dense) for n in names), f"{r['name']} is compared with a record that is not there"
    stems = {n for n in names} | {f"{n}.dynamics" for n in names}
    assert {f.stem for f in committed.rglob("*") if f.is_file()} <= stems, "a file without a record"
    assert sum(f.stat().st_size for f in committed.rglob("*") if f.is_file()) < 60e6


def test_every_record_is_a_point_of_the_study(records):
    points, _ = read_grid(ROOT / "nbs/configs/study.yaml")
    known = [p.config for p in points] + [get_experiment(e).make() for e in EXPERIMENTS]   # or what a notebook runs by default
    known += [dense for c in known if (dense := c.baseline())]
    known = [(c.experiment, asdict(c)) for c in known]
    for r in records:
        config = get_experiment(r["experiment"]).make(**r["config"])   # fields added later are at their defaults
        assert (config.experiment, asdict(config)) in known, r["name"]


def asked(c):
    "(share to be removed, how far from it the count may be)"
    if c["pattern"] == "nm":
        return 1 - c["n_kept"] / c["m_group"], 2e-3          # a shorter last group of a row
    whole = c["granularity"] in ("auto", "model", "global") and c["method"] in ("magnitude", "random")
    return c["sparsity"], 1e-6 if whole else 2e-3            # rounded per matrix or row


def test_every_certificate_agrees_with_its_configuration(records):
    seen = Counter()
    for r in records:
        c, certificate = r["config"], r.get("certificate")
        mode = c.get("mode") or ("dense" if c["method"] == "none" else "quantized" if c["method"] in ("rtn", "gptq") else "sparse")
        seen[mode] += 1
        if mode == "dense":
            assert not certificate, r["name"]
            continue
        start, end = certificate["pruning"], certificate["evaluation"]
        if mode == "quantized":
            assert end["violations"] == 0 and end["bits"] == c["bits"] and 2 <= end["levels"] <= 2 ** c["bits"] and end["size"] > 0, r["name"]
            continue
        wanted, tolerance = asked(c)
        assert abs(start["mask_sparsity"] - wanted) <= tolerance and start["masked"] == round(start["mask_sparsity"] * start["size"]), (r["name"], start)
        if c.get("recipe") == "reference":     # the authors' mask is not applied after the last step
            assert start["violations"] == 0 < end["violations"] and end["masked"] == start["masked"], r["name"]
        elif mode == "sparse":
            assert start["violations"] == end["violations"] == 0 and end["zeros"] >= end["masked"] == start["masked"], r["name"]
            assert abs(end["sparsity"] - wanted) <= tolerance or end["ties_at_threshold"] or c["method"] != "magnitude", r["name"]
        elif mode == "dense_frozen":
            assert start["changed"] == end["changed"] == 0 and end["masked"] == start["masked"], r["name"]
        elif mode == "sparse_to_dense":
            assert start["violations"] == 0 and end["sparsity"] < start["sparsity"] and end["violations"] > 0, r["name"]
    assert seen["dense"] and seen["sparse"], seen


def cells(text):
    "Rows of a Markdown table as lists of cells"
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.strip().splitlines() if line.startswith("|") and not line.startswith("|:")]


def alike(a, b):
    "The same words, and numbers that differ by rounding at most"
    number = r"[-+]?\d+\.\d+(?:e-?\d+)?"
    return re.sub(number, "#", a) == re.sub(number, "#", b) and all(abs(float(x) - float(y)) <= 0.003 + 0.05 * abs(float(x)) for x, y in zip(re.findall(number, a), re.findall(number, b)))


@pytest.fixture(scope="module")
def rendered(committed, tmp_path_factory):
    "07 to 09 executed on the committed records: (notebooks, folder of the figures)"
    folder, notebooks = tmp_path_factory.mktemp("rendered"), {}
    with pytest.MonkeyPatch.context() as m:
        for name, value in dict(JUNKDNA_RUNS=committed, TMPDIR=folder, IN_TEST=1).items():   # as a test they leave their figures in the temporary folder
            m.setenv(name, str(value))
        for name in ("07_true_gem", "08_quantization", "09_difficulty"):
            notebooks[name] = papermill.execute_notebook(ROOT / "nbs" / f"{name}.ipynb", folder / f"{name}.ipynb", cwd=ROOT / "nbs", kernel_name="python3", progress_bar=False, iopub_timeout=120)
    return notebooks, folder


def words(notebook):
    "Tables and printed lines that a notebook shows"
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return "\n".join(o.text if o.output_type == "stream" else o.data.get("text/markdown", "") for o in outputs if o.output_type in ("stream", "display_data", "execute_result")).splitlines()


def test_what_the_analysis_notebooks_show_follows_from_the_records(rendered):
    for name, made in rendered[0].items():
        shown, now = words(nbformat.read(ROOT / "nbs" / f"{name}.ipynb", 4)), words(made)
        assert len(shown) == len(now) >= 10, name
        for a, b in zip(shown, now):
            assert alike(" ".join(a.split()).replace("-|", "|"), " ".join(b.split()).replace("-|", "|")) or set(a) <= set("|-: "), f"{name} shows {a}, the records say {b}: run make verdict"


def test_the_table_of_claims_in_the_readme_follows_from_the_records(rendered):
    shown = cells(re.search(r"<!-- verdicts begin -->(.*?)<!-- verdicts end -->", (ROOT / "README.md").read_text(), re.S)[1])
    made = cells("\n".join(words(rendered[0]["09_difficulty"])))[:len(shown)]
    assert len(shown) >= 24
    for a, b in zip(shown, made):
        assert len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b)), f"README.md says {a}, the records say {b}: run make verdict"


def test_the_figures_follow_from_the_records(rendered):
    made = {f.name: f for f in rendered[1].glob("*/*.png")}
    assert set(made) == {f.name for f in (ROOT / "figures").glob("*.png")} and {f"{Path(n).stem}.svg" for n in made} == {f.name for f in (ROOT / "figures").glob("*.svg")}
    for name, file in made.items():
        assert compare_images(str(ROOT / "figures" / name), str(file), tol=3) is None, f"figures/{name} shows something else than the records: run make verdict"


def test_what_is_said_of_the_claims_is_what_was_found(rendered):
    "Every claim has its paragraph in 09, and the paragraph its verdict"
    notebook = nbformat.read(ROOT / "nbs" / "09_difficulty.ipynb", 4)
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    said = {claim.strip(): verdict for claims, verdict in re.findall(r"^- \*\*(.+?) - (supported|contradicted|inconclusive|not run)\.\*\*", text, re.M) for claim in claims.split(";")}
    table = cells("\n".join(words(rendered[0]["09_difficulty"])))
    found = {row[0]: re.match(r"supported|contradicted|inconclusive|not run", row[table[0].index("verdict")])[0] for row in table[1:] if re.match(r"C\d ", row[0])}
    assert said == found
    readme = (ROOT / "README.md").read_text()
    assert all(f"{claim[3:]} **{verdict}**" in readme for claim, verdict in found.items()), "the map in the README: run make verdict"


def test_the_example_in_the_readme_is_a_committed_record(records):
    text = (ROOT / "README.md").read_text()
    name = re.search(r"^files:  papermill_runs/02_glue/(\S+)\.ipynb", text, re.M)[1]
    record = next(r for r in records if r["name"] == name)
    assert "\n".join(closing_lines(record)) in text and committed_notebook(record).is_file()


def committed_notebook(record): return ROOT / "papermill_runs" / record["experiment"] / f"{record['name']}.ipynb"


def test_every_experiment_has_an_executed_notebook():
    for name in EXPERIMENTS:
        found = [n for n in (ROOT / "papermill_runs" / name).glob("*.ipynb") if ".failed." not in n.name and not n.name.startswith(".")]
        assert found, name
        for path in found:
            outputs = [o for c in nbformat.read(path, 4).cells for o in c.get("outputs", ())]
            assert any("image/png" in o.get("data", {}) for o in outputs) and not any(o.output_type == "error" or "Warning" in o.get("text", "") for o in outputs), path
            assert not re.search(r"[\" ](?:/[a-z]+){2,}", path.read_text()) and path.stat().st_size < 200_000, f"{path} names a path of a machine"


def test_what_is_missing_can_be_run(runs):
    "The commands that a table without records names are blocks of the study"
    verdicts = judge(Study())
    blocks = {b for v in verdicts for b in re.search(r"study\.yaml --block (\S+)", v.command)[1].split(",")}
    assert len(blocks) >= 8 and blocks <= set(yaml.safe_load((ROOT / "nbs" / "configs" / "study.yaml").read_text())["blocks"])
    named = {b for m in re.findall(r"--block ([\w,]+)", (ROOT / "README.md").read_text()) for b in m.split(",")}
    assert blocks <= named | {"seeds_modes"} and named <= set(yaml.safe_load((ROOT / "nbs" / "configs" / "study.yaml").read_text())["blocks"])


def test_rerun_tells_whether_a_record_comes_out_again(runs):
    "A real run, made again by the command; then the record is changed by hand"
    done = command("junkdna", "run", "02_glue", "max_train=64", "max_eval=32", "epochs=1", "max_length=32")
    assert done.returncode == 0, done.stderr
    found = load_runs()
    record = load_record(found[found["mode"] == "sparse"].path.item())
    done = command("junkdna", "rerun", record["digest"][:6])
    assert done.returncode == 0 and "every answer is the same: agrees" in done.stdout, done.stdout + done.stderr
    assert len(load_runs()) == 2                             # it left nothing here
    path = next(runs.glob(f"*/{record['name']}.parquet"))
    items = load_items(record)
    items["correct"] = ~items["correct"]
    items.to_parquet(path, index=False)
    refused = command("junkdna", "rerun", record["digest"])
    assert refused.returncode == 2 and "not the one its record describes" in refused.stderr, refused.stderr
    assert command("junkdna", "rerun", "0000").returncode == 2
