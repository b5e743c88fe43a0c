import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
STUDY = ROOT / "papermill_runs" / "study"
MIRROR = Path(os.environ.get("JUNKDNA_MIRROR") or ROOT.parent / "shared" / "data")


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    "Records of every test go to a folder of its own, and it sees no others."
    folder = tmp_path / "runs"
    monkeypatch.setenv("JUNKDNA_RUNS", str(folder))
    monkeypatch.setenv("JUNKDNA_STUDY", str(tmp_path / "study"))
    monkeypatch.delenv("IN_TEST", raising=False)
    return folder


@pytest.fixture
def mirror(monkeypatch):
    "A mirror of the hub's GLUE; the test is skipped where there is none."
    if not (MIRROR / "nyu-mll" / "glue").is_dir():
        pytest.skip("no mirror of nyu-mll/glue (set JUNKDNA_MIRROR)")
    monkeypatch.setenv("JUNKDNA_MIRROR", str(MIRROR))
    return MIRROR


@pytest.fixture(scope="session")
def tiny_mirror(tmp_path_factory):
    "A mirror with what the real one has, and two random models: tiny/bert and tiny/llama"
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    from junkdna_nb.base.models import load_tokenizer, resolve_model

    folder = tmp_path_factory.mktemp("mirror")
    for place in MIRROR.iterdir() if MIRROR.is_dir() else ():
        if place.name != "models":
            (folder / place.name).symlink_to(place)
    shape = dict(hidden_size=40, num_hidden_layers=2, num_attention_heads=2, intermediate_size=80)
    for name, like, build in (
        ("bert", "minilm", lambda size: BertModel(BertConfig(**shape, vocab_size=size))),
        (
            "llama",
            "smollm2",
            lambda size: LlamaForCausalLM(
                LlamaConfig(**shape, vocab_size=size, max_position_embeddings=8192)
            ),
        ),
    ):
        tokenizer = load_tokenizer(resolve_model(like))
        torch.manual_seed(0)
        build(len(tokenizer)).save_pretrained(folder / "models" / "tiny" / name)
        tokenizer.save_pretrained(folder / "models" / "tiny" / name)
    return folder


@pytest.fixture
def tiny(tiny_mirror, monkeypatch):
    "The models tiny/bert and tiny/llama can be asked for"
    monkeypatch.setenv("JUNKDNA_MIRROR", str(tiny_mirror))


def command(*words, cwd=ROOT, env=None, **kw):
    "Run one of the environment's commands for real; its output is captured."
    return subprocess.run(
        [str(BIN / words[0]), *map(str, words[1:])],
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        timeout=600,
        **kw,
    )


def cell_outputs(nb, kind=None):
    "Outputs of a notebook, of one type or of all"
    found = []
    for cell in nb.cells:
        found += cell.get("outputs", [])
    return [o for o in found if kind in (None, o.output_type)]


def committed_files():
    "Records under version control; all there are where git does not answer"
    words = ["git", "ls-files", STUDY.relative_to(ROOT)]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    found = [ROOT / f for f in told.stdout.splitlines()]
    if told.returncode or not found:
        found = list(STUDY.rglob("*"))
    return [f for f in found if f.suffix in (".json", ".parquet")]


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    "A copy of the study's records; a test that reads them sets JUNKDNA_STUDY to it"
    folder = tmp_path_factory.mktemp("committed")
    for f in committed_files():
        target = folder / f.relative_to(STUDY)
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(f, target)
    return folder
