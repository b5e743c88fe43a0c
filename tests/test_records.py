"The committed records: intact, certified, and what the README says follows from them."

import itertools
import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from conftest import ROOT, STUDY, cell_outputs, command
from matplotlib.testing.compare import compare_images

from junkdna_nb.base.experiments import EXPERIMENTS, closing_lines, get_experiment
from junkdna_nb.base.records import load_items, load_record, load_runs, valid_record
from junkdna_nb.evidence.claims import CLAIMS
from junkdna_nb.machinery.grid import read_grid


@pytest.fixture
def records(committed, monkeypatch):
    monkeypatch.setenv("JUNKDNA_STUDY", str(committed))
    return [load_record(p) for p in load_runs(status=None, where="study").path]


def test_records_are_intact_and_few_megabytes(records, committed):
    assert len(records) >= 96 and {r["status"] for r in records} == {"ok"}
    names = {r["name"] for r in records}
    for r in records:
        config = get_experiment(r["experiment"]).make(**r["config"])
        assert config.unused_fields() == r["unused"] and r["name"].endswith(r["digest"])
        if r["origin"]["data"] != "package" and "mirror" not in r["origin"]["data"]:
            assert config.digest == r["digest"], r[
                "name"
            ]  # packaged data: the configuration alone names the run
        assert len(load_items(r)) == r["items"]["rows"]  # checks the hash as well
        dense = (r.get("relative") or {}).get("dense_digest")
        assert dense is None or any(n.endswith(dense) for n in names), (
            f"{r['name']} is compared with a record that is not there"
        )
    stems = set(names) | {f"{n}.dynamics" for n in names}
    assert {f.stem for f in committed.rglob("*") if f.is_file()} <= stems, "a file without a record"
    assert sum(f.stat().st_size for f in committed.rglob("*") if f.is_file()) < 60e6


def test_every_record_is_a_point_of_the_study(records):
    "Of the exploratory or a confirmatory grid, or what a notebook runs by default"

    def key(config):
        return (config.experiment, json.dumps(asdict(config), sort_keys=True))

    names = ("study.yaml", "confirmatory.yaml", "reduced.yaml")
    grids = [read_grid(ROOT / "nbs/configs" / name)[0] for name in names]
    known = [get_experiment(e).make() for e in EXPERIMENTS]
    known += [p.config for p in itertools.chain(*grids)]
    known += [config.baseline() for config in known]
    known = {key(c) for c in known if c}
    made = [(r["name"], get_experiment(r["experiment"]).make(**r["config"])) for r in records]
    assert not [name for name, config in made if key(config) not in known]


def asked(c):
    "(share to be removed, how far from it the count may be)"
    if c["pattern"] == "nm":
        return 1 - c["n_kept"] / c["m_group"], 2e-3  # a shorter last group of a row
    whole = c["granularity"] in ("auto", "model", "global") and c["method"] in (
        "magnitude",
        "random",
    )
    return c["sparsity"], 1e-6 if whole else 2e-3  # rounded per matrix or row


def test_every_certificate_agrees_with_its_configuration(records):
    seen = Counter()
    for r in records:
        c, certificate = r["config"], r.get("certificate")
        of_method = {"none": "dense", "rtn": "quantized", "gptq": "quantized"}
        mode = c.get("mode") or of_method.get(c["method"], "sparse")
        seen[mode] += 1
        if mode == "dense":
            assert not certificate, r["name"]
            continue
        start, end = certificate["pruning"], certificate["evaluation"]
        if mode == "quantized":
            assert (
                end["violations"] == 0
                and end["bits"] == c["bits"]
                and 2 <= end["levels"] <= 2 ** c["bits"]
                and end["size"] > 0
            ), r["name"]
            continue
        wanted, tolerance = asked(c)
        assert abs(start["mask_sparsity"] - wanted) <= tolerance and start["masked"] == round(
            start["mask_sparsity"] * start["size"]
        ), (r["name"], start)
        if c.get("recipe") == "reference":  # the authors' mask is not applied after the last step
            assert (
                start["violations"] == 0 < end["violations"] and end["masked"] == start["masked"]
            ), r["name"]
        elif mode == "sparse":
            assert (
                start["violations"] == end["violations"] == 0
                and end["zeros"] >= end["masked"] == start["masked"]
            ), r["name"]
            assert (
                abs(end["sparsity"] - wanted) <= tolerance
                or end["ties_at_threshold"]
                or c["method"] != "magnitude"
            ), r["name"]
        elif mode == "dense_frozen":
            assert start["changed"] == end["changed"] == 0 and end["masked"] == start["masked"], r[
                "name"
            ]
        elif mode == "sparse_to_dense":
            assert (
                start["violations"] == 0
                and end["sparsity"] < start["sparsity"]
                and end["violations"] > 0
            ), r["name"]
    assert seen["dense"] and seen["sparse"], seen


def alike(a, b):
    "The same words, and numbers that differ by rounding at most"
    number = r"[-+]?\d+\.\d+(?:e-?\d+)?"
    return re.sub(number, "#", a) == re.sub(number, "#", b) and all(
        abs(float(x) - float(y)) <= 0.003 + 0.05 * abs(float(x))
        for x, y in zip(re.findall(number, a), re.findall(number, b), strict=True)
    )


@pytest.fixture(scope="module")
def rendered(committed, tmp_path_factory):
    "07 to 09 and the landing page, executed: (notebooks, folder of the figures)"
    folder, notebooks = tmp_path_factory.mktemp("rendered"), {}
    with pytest.MonkeyPatch.context() as m:
        for name, value in dict(
            JUNKDNA_STUDY=committed, TMPDIR=folder, IN_TEST=1
        ).items():  # as a test they leave their figures in the temporary folder
            m.setenv(name, str(value))
        for name in ("07_true_gem", "08_quantization", "09_difficulty", "index"):
            notebooks[name] = papermill.execute_notebook(
                ROOT / "nbs" / f"{name}.ipynb",
                folder / f"{name}.ipynb",
                cwd=ROOT / "nbs",
                kernel_name="python3",
                progress_bar=False,
                iopub_timeout=120,
            )
    return notebooks, folder


def words(notebook):
    "Tables and printed lines that a notebook shows"
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                found.append(output.text)
            elif output.output_type in ("display_data", "execute_result"):
                found.append(output.data.get("text/markdown", ""))
    return "\n".join(found).splitlines()


def plain(line):
    "A line without the padding and rules of a table"
    return " ".join(line.split()).replace("-|", "|")


def test_what_the_analysis_notebooks_show_follows_from_the_records(rendered):
    for name, made in rendered[0].items():
        shown, now = words(nbformat.read(ROOT / "nbs" / f"{name}.ipynb", 4)), words(made)
        assert len(shown) == len(now) >= 10, name
        for a, b in zip(shown, now, strict=True):
            same = alike(plain(a), plain(b)) or set(a) <= set("|-: ")
            assert same, f"{name} shows {a}, the records say {b}: run make verdict"


def test_the_analysis_notebooks_judge_every_primary_claim(rendered):
    "Under its figure every primary claim has a sentence for new tasks and for tasks seen before"
    shown = list(itertools.chain(*map(words, rendered[0].values())))
    for claim in CLAIMS.values():
        if claim.role == "primary":
            for population in ("new tasks", "tasks seen before"):
                assert any(line.startswith(f"- {population}, **{claim.name}**") for line in shown)
    exploratory = [line for line in shown if line.startswith("- tasks seen before, **C")]
    assert len(exploratory) >= 7
    for claim in CLAIMS.values():  # the others stand in tables, in both populations
        rows = [
            line for line in shown if line.startswith(f"| {claim.name} ") and "seen before" in line
        ]
        assert rows or claim.role == "primary", claim.name
    assert all("decides nothing" in line or "not run" in line for line in exploratory)
    assert not [line for line in shown if re.search(r"\b(nan|None|inf)\b", line)]


def test_arithmetics_are_compared_on_the_same_runs():
    "Of one model: a run in fp32 has the configuration of its partner in bf16, and differs little"
    fp32, apart = {}, []
    for path in (STUDY / "02_glue").glob("*-dense-*-fp32-*.json"):
        record = json.loads(path.read_text())
        fp32[json.dumps(record["config"] | dict(precision=""), sort_keys=True)] = record
    for path in (STUDY.parent / "partial" / "02_glue").glob("*-dense-*.json"):
        bf16 = json.loads(path.read_text())
        key = json.dumps(bf16["config"] | dict(precision=""), sort_keys=True)
        if key in fp32:
            (a, b) = (r["metrics"][r["metric"]] for r in (fp32[key], bf16))
            apart.append(abs(a["value"] - b["value"]) / a["se"])
    text = (ROOT / "nbs" / "09_difficulty.ipynb").read_text()
    told = re.search(r"(\d+) runs; the largest difference is ([\d.]+) standard errors", text)
    assert (int(told[1]), float(told[2])) == (len(apart), round(max(apart), 2))


def test_the_figures_follow_from_the_records(rendered):
    made = {f.name: f for f in rendered[1].glob("*/*.png")}
    assert set(made) == {f.name for f in (ROOT / "figures").glob("*.png")}
    vector = {f.name for f in (ROOT / "figures").glob("*.svg")}
    assert {f"{Path(n).stem}.svg" for n in made} == vector
    for name, file in made.items():
        different = compare_images(str(ROOT / "figures" / name), str(file), tol=3)
        assert different is None, f"figures/{name} is not what the records give: run make verdict"


def test_the_map_names_what_there_is():
    "Primary claims, blocks of the grids and figures"
    notebook = nbformat.read(ROOT / "nbs/09_difficulty.ipynb", 4)
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    rows = re.findall(r"^\| (C\d[^|:]*): [^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$", text, re.M)
    primary = [c.name for c in CLAIMS.values() if c.role == "primary"]
    assert [name for name, *_ in rows] == primary
    grids = {}
    for grid in ("confirmatory", "study"):
        grids[grid] = set(yaml.safe_load((ROOT / f"nbs/configs/{grid}.yaml").read_text())["blocks"])
    figures = {f.stem.removesuffix("_old") for f in (ROOT / "figures").glob("*.png")}
    for _, _, confirmatory, exploratory, named in rows:
        assert set(confirmatory.strip(" `").split(",")) <= grids["confirmatory"]
        assert set(exploratory.strip(" `").split(",")) <= grids["study"]
        assert set(re.findall(r"`(\w+)`", named)) <= figures


def test_the_readme_is_short_has_figures_and_shows_a_committed_record(committed, monkeypatch):
    "Its numbers are those of the landing page, which is compared with the records above"
    monkeypatch.setenv("JUNKDNA_STUDY", str(committed))
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 800
    figures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(figures) >= 2 and all((ROOT / name).is_file() for name in figures)
    default = valid_record(get_experiment("02_glue").make(), precision="bf16", where="study")
    assert "\n".join(closing_lines(default)) in text
    for cell in nbformat.read(ROOT / "nbs/index.ipynb", 4).cells:
        for output in cell.get("outputs", ()):
            shown = output.get("data", {}).get("text/markdown", "")
            assert shown.replace("](../", "](") in text


def test_every_experiment_has_an_executed_notebook():
    for name in EXPERIMENTS:
        found = [
            n
            for n in (STUDY / name).glob("*.ipynb")
            if ".failed." not in n.name and not n.name.startswith(".")
        ]
        assert found, name
        for path in found:
            outputs = cell_outputs(nbformat.read(path, 4))
            assert any("image/png" in o.get("data", {}) for o in outputs) and not any(
                o.output_type == "error" or "Warning" in o.get("text", "") for o in outputs
            ), path
            assert (
                not re.search(r"[\" ](?:/[a-z]+){2,}", path.read_text())
                and path.stat().st_size < 200_000
            ), f"{path} names a path of a machine"


def test_rerun_tells_whether_a_record_comes_out_again(runs, tiny):
    "A real run, made again by the command; then the record is changed by hand"
    small = "model=tiny/bert", "max_train=64", "max_eval=32", "epochs=1", "max_length=32"
    done = command("junkdna", "run", "02_glue", *small)
    assert done.returncode == 0, done.stderr
    found = load_runs()
    record = load_record(found[found["mode"] == "sparse"].path.item())
    done = command("junkdna", "rerun", record["digest"][:6])
    assert done.returncode == 0 and "every answer is the same: agrees" in done.stdout, (
        done.stdout + done.stderr
    )
    assert len(load_runs()) == 2  # it left nothing here
    path = next(runs.glob(f"*/{record['name']}.parquet"))
    items = load_items(record)
    items["correct"] = ~items["correct"]
    items.to_parquet(path, index=False)
    refused = command("junkdna", "rerun", record["digest"])
    assert refused.returncode == 2 and "not the one its record describes" in refused.stderr, (
        refused.stderr
    )
    assert command("junkdna", "rerun", "0000").returncode == 2
