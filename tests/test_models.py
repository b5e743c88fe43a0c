"Real models from packages, a mirror folder, and everything that can be wrong with a file."

import os
import shutil
import zipfile

import pytest
import torch

from junkdna_nb.base import models, packages
from junkdna_nb.base.config import StudyError
from junkdna_nb.base.models import (
    ALIASES,
    check_model_name,
    count_parameters,
    load_classifier,
    load_tokenizer,
    resolve_model,
)
from junkdna_nb.base.packages import Packaged, fetch, read_member
from junkdna_nb.base.storage import cache_dir


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    "A cache of its own that shares the fetched archives by hard link, and nothing built from them"
    fetch(ALIASES["minilm"].packages[0])
    cache = tmp_path / "cache"
    (cache / "packages").mkdir(parents=True)
    for package in (ALIASES["minilm"].packages[0],):
        shutil.copy(cache_dir() / "packages" / package.file, cache / "packages")
    monkeypatch.setenv("JUNKDNA_CACHE", str(cache))
    return cache


@pytest.mark.parametrize(
    "alias,parameters", [("minilm", 22_713_986), ("mpnet", 109_488_242), ("smollm2", 134_516_160)]
)
def test_packaged_models_load_and_answer(alias, parameters):
    source = resolve_model(alias)
    assert source.kind == "package" and resolve_model(alias) == source
    tokenizer = load_tokenizer(source)
    model, new = load_classifier(source, 2, 41, tokenizer)
    assert all("classifier" in n or "score" in n for n in new) and new
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.01)
    with torch.no_grad():
        logits = model.eval()(
            **tokenizer(
                ["a fine film", "a dull one, much too long"], padding=True, return_tensors="pt"
            )
        ).logits
    assert (
        logits.shape == (2, 2)
        and torch.isfinite(logits).all()
        and not torch.equal(logits[0], logits[1])
    )


def test_gemma_is_built_from_its_parts():
    "Four parts make one GGUF file; skipped where they have not been fetched"
    alias = ALIASES["gemma3"]
    if not all((packages.packages_dir() / package.file).is_file() for package in alias.packages):
        pytest.skip("the packages of gemma3 are not in the cache")
    source = resolve_model("gemma3")
    assert source.kind == "package" and count_parameters(source) == 268_098_176
    tokenizer = load_tokenizer(source)
    assert tokenizer("Paris")["input_ids"][0] == tokenizer.bos_token_id


def test_terms_are_stated_at_the_first_use(capsys):
    models._state_terms("gemma3")
    models._state_terms("smollm2")
    (line,) = capsys.readouterr().err.splitlines()
    assert "Gemma Terms of Use" in line and "ai.google.dev/gemma/terms" in line


def test_converted_decoder_speaks():
    "The 4-bit file was expanded to weights that still know something"
    from transformers import AutoModelForCausalLM

    source = resolve_model("smollm2")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(source.folder, dtype="float32"),
        load_tokenizer(source),
    )
    out = model.generate(
        **tokenizer("The capital of France is", return_tensors="pt"),
        max_new_tokens=4,
        do_sample=False,
    )
    assert "Paris" in tokenizer.decode(out[0])


def test_mirror_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JUNKDNA_MIRROR", str(tmp_path))
    shutil.copytree(resolve_model("minilm").folder, tmp_path / "models" / "me" / "mine")
    source = resolve_model("me/mine")
    assert source.kind == "mirror" and source.fingerprint == resolve_model("minilm").fingerprint


def test_alias_falls_back_to_the_mirror_and_says_why_not(own_cache, monkeypatch, tmp_path):
    real = resolve_model("minilm").folder
    monkeypatch.setenv("JUNKDNA_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no route")),
    )
    with pytest.raises(
        StudyError,
        match="model 'minilm' was not found: .*pip is not installed.*"
        "hub cannot be reached.*three ways",
    ):
        resolve_model("minilm")
    monkeypatch.setenv("JUNKDNA_MIRROR", str(tmp_path))
    shutil.copytree(real, tmp_path / "models" / ALIASES["minilm"].hub_id)
    assert resolve_model("minilm").kind == "mirror"


@pytest.mark.parametrize("harm", ["truncate", "tamper"])
def test_damaged_weights_are_refused(own_cache, harm):
    weights = resolve_model("minilm").folder / "model.safetensors"
    if harm == "truncate":
        os.truncate(weights, weights.stat().st_size // 2)
    else:
        with open(weights, "r+b") as f:
            f.seek(-5, 2)
            f.write(b"\x01")
    with pytest.raises(StudyError, match="minilm.*is damaged.*delete.*run again") as e:
        resolve_model("minilm")
    assert "\n" not in str(e.value)


def test_damaged_archive_is_refused(own_cache):
    archive = next((own_cache / "packages").glob("*.whl"))
    os.truncate(archive, 1000)
    with pytest.raises(StudyError, match="is damaged: its SHA-256"):
        resolve_model("minilm")


def test_a_package_with_another_hash_is_not_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("JUNKDNA_CACHE", str(tmp_path))
    with pytest.raises(StudyError, match="countryinfo==1.0.1 is not the pinned file"):
        fetch(Packaged("countryinfo", "1.0.1", "0" * 64, "countryinfo-1.0.1-py3-none-any.whl"))
    assert not list(tmp_path.rglob("*.whl"))


def test_a_pickle_is_never_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("JUNKDNA_MIRROR", str(tmp_path))
    folder = tmp_path / "models" / "me" / "pickled"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(StudyError, match="no .safetensors file"):
        resolve_model("me/pickled")


def test_archive_paths_are_not_trusted(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("m/../../evil.json", "!")
        z.writestr("m/good.json", "{}")
    target = tmp_path / "in" / "target"
    target.mkdir(parents=True)
    packages.copy_members(archive, "m", target, lambda n: True)
    assert [p.name for p in tmp_path.rglob("*.json")] == ["good.json"]
    with pytest.raises(StudyError):
        read_member(archive, "m/absent.json")


@pytest.mark.parametrize(
    "name", ["minlm", "", "a/b/c", "../../etc/passwd", "/abs/olute", "roberta-lrge"]
)
def test_names_that_are_none(name):
    with pytest.raises(StudyError, match="unknown model"):
        check_model_name(name)
