"Masks against a brute-force oracle written from the definitions, in plain Python."
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MPNetConfig,
                          MPNetForSequenceClassification, OPTConfig, OPTForCausalLM, RobertaConfig, RobertaForSequenceClassification, T5Config,
                          T5ForConditionalGeneration)

from junkdna_nb.core import StudyError
from junkdna_nb.pruning import Masks, certify, hash_weights, make_masks, n_of_m, prunable, prune_count, smallest

# Few distinct values, so that ties and zeros are the rule and not the exception.
tied = st.sampled_from([0.0, 0.25, 0.5, 0.5, 1.0, 2.0])
free = st.floats(0, 100, width=32)


@st.composite
def tensors(draw, max_tensors=4):
    value = draw(st.sampled_from([tied, free]))
    shapes = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=max_tensors))
    return [torch.tensor(draw(st.lists(value, min_size=r * c, max_size=r * c))).reshape(r, c) for r, c in shapes]


def oracle_count(n, sparsity):
    return math.floor(Fraction(str(sparsity)) * n + Fraction(1, 2))


def oracle_prune(entries, k):
    "The positions of the k smallest of [(score, position)], the earlier position first among equals"
    return {position for _, position in sorted(entries)[:k]}


def oracle_groups(scores, per):
    entries = [[(float(s[i, j]), (t, i, j)) for i in range(s.shape[0]) for j in range(s.shape[1])] for t, s in enumerate(scores)]
    if per == "global":
        return [sum(entries, [])]
    if per == "layer":
        return entries
    return [[e for e in layer if e[1][1] == i] for layer, s in zip(entries, scores) for i in range(s.shape[0])]


def positions(masks):
    return {(t, i, j) for t, m in enumerate(masks) for i in range(m.shape[0]) for j in range(m.shape[1]) if not m[i, j]}


@settings(deadline=None, max_examples=150)
@given(tensors(), st.decimals(0, "0.99", places=2).map(float), st.sampled_from(["global", "layer", "row"]))
def test_unstructured_equals_the_oracle(scores, sparsity, per):
    masks, _ = smallest(scores, sparsity, per)
    expected = set().union(*[oracle_prune(g, oracle_count(len(g), sparsity)) for g in oracle_groups(scores, per)] or [set()])
    assert positions(masks) == expected
    assert [m.shape for m in masks] == [s.shape for s in scores]


@settings(deadline=None, max_examples=150)
@given(tensors(), st.integers(1, 9).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m))))
def test_n_of_m_equals_the_oracle(scores, nm):
    n, m = nm
    masks, _ = n_of_m(scores, n, m)
    expected = set()
    for t, s in enumerate(scores):
        for i in range(s.shape[0]):
            for start in range(0, s.shape[1], m):
                group = [(float(s[i, j]), (t, i, j)) for j in range(start, min(start + m, s.shape[1]))]
                keep = n if len(group) == m else max(1, math.floor(Fraction(len(group) * n, m) + Fraction(1, 2)))
                expected |= oracle_prune(group, len(group) - keep)
    assert positions(masks) == expected


@settings(deadline=None, max_examples=80)
@given(tensors(), st.decimals("0.05", "0.95", places=2).map(float))
def test_strict_threshold_keeps_only_what_is_above(scores, sparsity):
    masks, _ = smallest(scores, sparsity, "global", "strict")
    values = sorted((float(v) for s in scores for v in s.reshape(-1)), reverse=True)
    keep = len(values) - oracle_count(len(values), sparsity)
    if keep in (0, len(values)):
        return
    threshold = values[keep - 1]   # the keep-th largest
    kept = [float(v) for s, m in zip(scores, masks) for v in s[m]]
    assert sorted(kept, reverse=True) == [v for v in values if v > threshold] and len(kept) < keep


def test_number_of_ties_is_reported():
    assert smallest([torch.ones(3, 4)], 0.5)[1] == 12
    assert smallest([torch.ones(3, 4)], 0.0)[1] == 0
    assert smallest([torch.tensor([[1.0, 2.0, 3.0, 4.0]])], 0.5)[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_ties_are_exact(dtype):
    torch.manual_seed(0)
    w = (torch.randn(257, 129) / 10).to(dtype)
    (mask,), _ = smallest([w.abs()], 0.37)
    flat = sorted((abs(float(v)), i) for i, v in enumerate(w.reshape(-1)))
    assert {i for _, i in flat[:prune_count(w.numel(), 0.37)]} == set((~mask).reshape(-1).nonzero().squeeze(1).tolist())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad):
    model = models()["bert"]
    model.bert.encoder.layer[0].output.dense.weight.data[0, 0] = bad
    for kw in (dict(sparsity=0.5), dict(pattern="nm", n_kept=2, m_group=4)):
        with pytest.raises(StudyError, match="NaN or infinite"):
            make_masks(model, **kw)


def models():
    torch.manual_seed(0)
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=60)
    return dict(
        bert=BertForSequenceClassification(BertConfig(**small)), roberta=RobertaForSequenceClassification(RobertaConfig(**small)),
        mpnet=MPNetForSequenceClassification(MPNetConfig(**small)), gpt2=GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60, n_positions=32)),
        opt=OPTForCausalLM(OPTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, vocab_size=60, word_embed_proj_dim=16, max_position_embeddings=32)),
        llama=LlamaForCausalLM(LlamaConfig(**small, num_key_value_heads=1, tie_word_embeddings=True)),
        llama_untied=LlamaForCausalLM(LlamaConfig(**small, num_key_value_heads=1, tie_word_embeddings=False)),
        t5=T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=60)))


@pytest.mark.parametrize("name", list(models()))
def test_scope_of_model_families(name):
    model = models()[name]
    weights = prunable(model)
    embedded = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    assert all(w.param.ndim == 2 and id(w.param) not in embedded for w in weights)
    assert not any(k in w.name for w in weights for k in ("classifier", "pooler", "lm_head", "embed", "wte", "wpe", "shared", "relative"))
    linear = {id(m.weight) for n, m in model.base_model.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and "pooler" not in n} - embedded
    assert {id(w.param) for w in weights} == linear, "every linear map of the body, and nothing else"
    assert all(w.transposed == (name == "gpt2") for w in weights)
    masks = make_masks(model, sparsity=0.6)
    c = certify(masks.apply_(model), masks)
    assert c["zeros"] == c["masked"] == prune_count(c["size"], 0.6) and c["violations"] == 0


def test_conv1d_groups_run_along_the_inputs():
    model = models()["gpt2"]
    masks = make_masks(model, pattern="nm", n_kept=1, m_group=4)
    stored = masks["transformer.h.0.mlp.c_fc.weight"]      # (inputs, outputs)
    assert (stored.T.reshape(-1, 4).sum(1) == 1).all()


def test_tied_weights_are_counted_once():
    model = models()["bert"]
    first, second = model.bert.encoder.layer
    second.output.dense.weight = first.output.dense.weight
    names = [w.name for w in prunable(model)]
    assert "bert.encoder.layer.0.output.dense.weight" in names and "bert.encoder.layer.1.output.dense.weight" not in names


def test_random_masks_follow_the_seed_and_not_the_weights():
    a, b = models()["bert"], models()["roberta"]
    assert make_masks(a, "random", sparsity=0.5, seed=1).equal(make_masks(a, "random", sparsity=0.5, seed=1))
    assert not make_masks(a, "random", sparsity=0.5, seed=1).equal(make_masks(a, "random", sparsity=0.5, seed=2))
    masks = make_masks(b, "random", sparsity=0.5, seed=1)
    assert sum(int((~m).sum()) for m in masks.values()) == prune_count(sum(m.numel() for m in masks.values()), 0.5)


@pytest.mark.parametrize("how", [dict(sparsity=0.3), dict(pattern="nm", n_kept=3, m_group=7)])
def test_saved_masks_are_bound_to_their_weights(tmp_path, how):
    model, path = models()["gpt2"], tmp_path / "masks.safetensors"
    masks = make_masks(model, **how)
    masks.save(path)
    again = Masks.load(path, model)
    assert again.equal(masks) and again.provenance == masks.provenance
    assert path.stat().st_size < sum(m.numel() for m in masks.values()) / 8 + 8192
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] += 1e-6
    with pytest.raises(StudyError, match="computed from other weights"):
        Masks.load(path, model)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StudyError, match="cannot be read"):
        Masks.load(path)


def test_the_certificate_tells_the_truth():
    "It must notice one weight that came back, and count what is there rather than what was asked."
    model = models()["bert"]
    masks = make_masks(model, sparsity=0.5)
    masks.apply_(model)
    name = next(iter(masks))
    model.get_parameter(name).data[~masks[name]] = torch.where(torch.arange(int((~masks[name]).sum())) == 0, 1e-30, 0.0)
    c = certify(model, masks)
    assert c["violations"] == 1 and c["layers"][name]["violations"] == 1 and c["zeros"] == c["masked"] - 1 and c["sparsity"] < c["mask_sparsity"]
    model.get_parameter(name).data[~masks[name]] = float("nan")
    assert certify(model, masks)["violations"] == int((~masks[name]).sum())


def test_a_layer_that_is_emptied_is_named():
    "minilm's pooler under one global threshold, in small"
    model = models()["bert"]
    model.bert.pooler.dense.weight.data *= 0.01
    assert make_masks(model, sparsity=0.6)["bert.encoder.layer.0.output.dense.weight"].any()
    masks = make_masks(model, sparsity=0.6, head=True)
    assert certify(masks.apply_(model), masks)["emptied"] == ["bert.pooler.dense.weight"]


def test_hash_sees_names_shapes_and_bits():
    a, b = models()["bert"], models()["bert"]
    assert hash_weights(prunable(a)) == hash_weights(prunable(b))
    b.bert.encoder.layer[0].output.dense.weight.data[0, 0] *= -1
    assert hash_weights(prunable(a)) != hash_weights(prunable(b))


def test_nothing_to_prune():
    with pytest.raises(StudyError, match="no prunable weight"):
        prunable(torch.nn.Embedding(4, 4))
