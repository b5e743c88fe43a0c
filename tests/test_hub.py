"The hub road: the real client and its real cache, against a small hub on loopback."

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, command
from hub import dataset_files, serve, tiny_llama, tiny_roberta
from safetensors.torch import save

from junkdna_nb.base.records import load_record, load_runs

TEXTS = ["A man plays a guitar in the street.", "Somebody plays.", "What is seven and one?"]
PAIRS = []
for i in range(48):
    pair = dict(sentence1=f"A man number {i} plays a guitar.", sentence2=f"Number {i} plays.")
    PAIRS.append(dict(**pair, label=i % 2, idx=i))


def sums(first, last):
    "Rows of ARC: what is i and one?"
    rows = []
    for i in range(first, last):
        choices = dict(text=[str(i + 1), str(i), "none", "all"], label=list("ABCD"))
        row = dict(id=f"sum{i}", question=f"What is {i} and one?", choices=choices)
        rows.append(dict(**row, answerKey="A"))
    return rows


def read(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def without(files, *names):
    return {name: content for name, content in files.items() if name not in names}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "Files of a small RoBERTa and of a small Llama"
    folder = tmp_path_factory.mktemp("tiny")
    tiny_roberta(folder / "roberta", TEXTS)
    tiny_llama(folder / "llama", TEXTS)
    return read(folder / "roberta"), read(folder / "llama")


@pytest.fixture(scope="module")
def hub(tiny):
    "A hub with what is in order; its first transfer of RoBERTa's weights breaks off"
    roberta, llama = tiny
    with serve() as hub:
        hub.add("owner/tiny-roberta", roberta, cut={"model.safetensors"})
        hub.add("owner/tiny-llama", llama)
        glue = dataset_files("rte", dict(train=PAIRS, validation=PAIRS[:16]))
        other = {path.replace("rte", "wnli"): content for path, content in glue.items()}
        hub.add("nyu-mll/glue", other | glue, "datasets")
        arc = dataset_files("ARC-Easy", dict(train=sums(0, 20), test=sums(20, 40)))
        hub.add("allenai/ai2_arc", arc, "datasets")
        yield hub


@pytest.fixture(scope="module")
def place(hub, tmp_path_factory):
    "The environment of every process here: this hub, and caches that are empty at first"
    home = tmp_path_factory.mktemp("home")
    return hub.environment(home) | dict(JUNKDNA_CACHE=str(home / "junkdna"))


def papermill(place, name, tmp_path, **params):
    "Run a notebook from the shell"
    words = []
    for key, value in params.items():
        words += ["-p", key, value]
    done = command("papermill", f"nbs/{name}.ipynb", tmp_path / "out.ipynb", *words, env=place)
    assert done.returncode == 0, done.stderr[-2000:]


def test_glue_runs_from_the_hub(hub, place, runs, tmp_path):
    "Task and model are fetched once, only what is needed; a transfer that broke off is done again"
    small = dict(max_train=32, max_eval=16, epochs=1, max_length=32)
    papermill(place, "02_glue", tmp_path, model="owner/tiny-roberta", task="rte", **small)
    found = load_runs("02_glue")
    record = load_record(found[found["mode"] == "sparse"].path.item())
    assert record["origin"] == dict(model="hub", data="nyu-mll/glue on the hub")
    assert record["certificate"]["reloaded"]["violations"] == 0
    fetched = [
        Path(path).name for verb, path, _ in hub.asked if verb == "GET" and "resolve" in path
    ]
    assert fetched.count("model.safetensors") == 2 and fetched.count("config.json") == 1
    assert not any("wnli" in path for _, path, _ in hub.asked if "resolve" in path)


def test_options_run_from_the_hub(hub, place, runs, tmp_path):
    "A decoder in several files and a set of questions, dense and compressed"
    asked = dict(model="owner/tiny-llama", task="arc_easy", max_eval=4)
    papermill(place, "03_options", tmp_path, **asked)
    found = load_runs("03_options")
    assert sorted(found["method"]) == ["magnitude", "none"]
    record = load_record(found[found["method"] == "magnitude"].path.item())
    assert record["origin"] == dict(model="hub", data="allenai/ai2_arc on the hub")
    assert record["levels"][-1]["n"] == 4


ASK = """
import sys
from junkdna_nb.base.config import StudyError
from junkdna_nb.base.models import load_config, load_decoder, load_tokenizer, resolve_model
from junkdna_nb.base.questions import load_questions
from junkdna_nb.base.tasks import load_task

def decoder(name):
    source = resolve_model(name)
    return load_config(source), load_tokenizer(source), load_decoder(source), source.fingerprint

for word in sys.argv[1:]:
    kind, name = word.split("=")
    ask = dict(model=decoder, task=load_task, questions=load_questions)[kind]
    try:
        print(name, "given", str(ask(name)[-1]) if kind == "model" else ask(name).fingerprint)
    except StudyError as e:
        print(name, e)
"""


def answers(place, **names):
    "Ask one process for models, tasks and sets of questions: name -> what it says"
    words = []
    for kind, wanted in names.items():
        words += [f"{kind}={name}" for name in wanted.split()]
    done = subprocess.run(
        [sys.executable, "-c", ASK, *words],
        env={**os.environ, **place},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def answered(hub, place, tiny):
    "What is said of repositories that are not in order, and of a large one that is cut"
    import torch

    roberta, llama = tiny
    own = b'{"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}'
    weights = save({"a": torch.arange(6_000_000.0)})
    shard = "model-00002-of-00003.safetensors"
    pickled = {**without(roberta, "model.safetensors"), "pytorch_model.bin": b"cos\nsystem\n"}
    hub.add("owner/pickled", pickled)
    hub.add("owner/code", {**llama, "config.json": own, "mine.py": b"raise SystemExit"})
    hub.add("owner/bare", without(llama, "config.json"))
    hub.add("owner/silent", without(llama, "tokenizer.json", "tokenizer_config.json"))
    hub.add("owner/shard", without(llama, shard))
    hub.add("owner/lost", llama, lost={"tokenizer.json"})
    hub.add("owner/gated", llama, gated=True)
    hub.add("owner/slow", llama, slow={shard})
    hub.add("owner/large", {**llama, "model.safetensors": weights}, cut={"model.safetensors"})
    hub.add("allenai/openbookqa", dataset_files("other", dict(train=PAIRS)), "datasets")
    hub.add("ybisk/piqa", dataset_files("plain_text", dict(train=PAIRS)), "datasets", gated=True)
    names = "pickled code bare silent shard lost gated none slow large tiny-llama"
    models = " ".join(f"owner/{name}" for name in names.split())
    return answers(place, model=models, task="rte sst2", questions="arc_easy openbookqa piqa sciq")


@pytest.mark.parametrize(
    "name,said",
    {
        "owner/pickled": "has no .safetensors file; other formats are not loaded",
        "owner/code": "it asks for code of its own to be run (auto_map), which is never done",
        "owner/bare": "cannot be loaded (AutoConfig): Unrecognized model in owner/bare",
        "owner/silent": "cannot be loaded (AutoTokenizer): ",
        "owner/shard": "lacks model-00002-of-00003.safetensors, which its index names",
        "owner/lost": "the hub has lost a file that owner/lost lists",
        "owner/gated": "owner/gated is gated: accept its terms on the hub and set HF_TOKEN",
        "owner/none": "the hub has no public owner/none",
        "owner/slow": "the hub sent nothing of owner/slow within its time limit, again and again",
        "sst2": "BuilderConfig 'sst2' not found",
        "openbookqa": "BuilderConfig 'main' not found. Available: ['other']",
        "piqa": "ybisk/piqa is gated: accept its terms on the hub and set HF_TOKEN",
        "sciq": "the hub has no public allenai/sciq",
    }.items(),
)
def test_what_is_wrong_is_told_in_one_line(answered, name, said):
    assert said in answered[name]
    if name == "owner/slow":
        assert "HF_HUB_DOWNLOAD_TIMEOUT (1 s)" in answered[name]


def test_a_cut_transfer_is_resumed(answered, hub):
    "What has come of a large file is not fetched again; the weights are checked as a whole"
    asked = [range for verb, path, range in hub.asked if "large" in path and "model.safe" in path]
    assert [r for r in asked if r] == ["bytes=10485760-"]
    # it has come whole; that it is no Llama's is found afterwards
    assert (
        "owner/large" in answered
        and "is no complete decoder: its files lack" in answered["owner/large"]
    )


def test_offline(answered, hub, place):
    "A client without a network has what is in its cache, and says so of all else"
    before = len(hub.asked)
    names = dict(model="owner/tiny-llama owner/slow owner/none", task="rte")
    said = answers(place | dict(HF_HUB_OFFLINE="1"), **names, questions="arc_easy commonsense_qa")
    assert len(hub.asked) == before
    assert said["owner/tiny-llama"] == answered["owner/tiny-llama"]
    for name in ("owner/tiny-llama", "rte", "arc_easy"):
        assert said[name].startswith("given ")
        assert said[name] == answered[name]
    for name in ("owner/slow", "owner/none", "commonsense_qa"):
        assert "HF_HUB_OFFLINE is set and " in said[name]
