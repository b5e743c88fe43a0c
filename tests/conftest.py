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


SMALL = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50
)
FAMILIES = dict(  # name -> transformers' configuration and model, and its shape: two layers of 16
    gpt2=(
        "GPT2Config",
        "GPT2LMHeadModel",
        dict(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=256)
        | dict(bos_token_id=0, eos_token_id=0),
    ),
    opt=(
        "OPTConfig",
        "OPTForCausalLM",
        dict(hidden_size=16, word_embed_proj_dim=8, num_hidden_layers=2, num_attention_heads=2)
        | dict(ffn_dim=32, vocab_size=50, max_position_embeddings=256),
    ),
    llama=(
        "LlamaConfig",
        "LlamaForCausalLM",
        dict(SMALL, num_key_value_heads=1, tie_word_embeddings=True),
    ),
    llama_untied=("LlamaConfig", "LlamaForCausalLM", dict(SMALL, num_key_value_heads=1)),
    qwen2=("Qwen2Config", "Qwen2ForCausalLM", dict(SMALL, num_key_value_heads=1)),
    neox=("GPTNeoXConfig", "GPTNeoXForCausalLM", SMALL),
    bloom=(  # biases by distance, no positions
        "BloomConfig",
        "BloomForCausalLM",
        dict(hidden_size=16, n_layer=2, n_head=2, vocab_size=50),
    ),
    gemma3=(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        dict(SMALL, head_dim=8, num_key_value_heads=1, sliding_window=4)
        | dict(layer_types=["sliding_attention", "full_attention"]),
    ),
    bert=("BertConfig", "BertForSequenceClassification", SMALL),
    roberta=("RobertaConfig", "RobertaForSequenceClassification", SMALL),
    mpnet=("MPNetConfig", "MPNetForSequenceClassification", SMALL),
    albert=("AlbertConfig", "AlbertForSequenceClassification", dict(SMALL, embedding_size=8)),
    t5=(
        "T5Config",
        "T5ForConditionalGeneration",
        dict(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50)
        | dict(decoder_start_token_id=0),
    ),
)


def tiny_model(family):
    "A random model of a family, the same at every call"
    import transformers

    config, model, shape = FAMILIES[family]
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**shape)).eval()


# Files that take longest, first, so that all workers end together (with --dist loadfile).
LONGEST = [
    "sweep",
    "audit",
    "axes",
    "transfer",
    "papermill",
    "compress",
    "records",
    "evidence",
    "site",
]


def pytest_collection_modifyitems(items):
    order = {f"test_{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


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
