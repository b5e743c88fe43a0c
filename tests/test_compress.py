"Calibrated pruning and quantization against naive float64 oracles, on every kind of model."

import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import SMALL, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from junkdna_nb.base.config import StudyError, resolve_precision
from junkdna_nb.base.models import load_decoder, load_tokenizer, resolve_model
from junkdna_nb.base.text import Calibration, documents, load_text
from junkdna_nb.compression.calibration import iter_blocks, perplexity, window_losses
from junkdna_nb.compression.compress import compress, effective_bits
from junkdna_nb.compression.masks import Masks, prunable
from junkdna_nb.compression.pruning import (
    all_finite,
    inverse_factor,
    make_masks,
    sparsegpt,
    wanda,
)
from junkdna_nb.compression.quantization import Grid, gptq, quantize, quantize_
from junkdna_nb.compression.selection import Target, erk_counts, prune_count

FAMILIES = "gpt2", "opt", "llama", "gemma3", "bert", "roberta", "mpnet", "albert", "t5"


def tiny(family, dtype=torch.float32, ties=False):
    model = tiny_model(family).to(dtype)
    if ties:  # every magnitude is one of three
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim == 2:
                    p.copy_((p * 50).round().clamp(-2, 2) / 50)
    return model


def words(n=6, length=12, seed=0):
    return Calibration(
        torch.randint(3, 50, (n, length), generator=torch.Generator().manual_seed(seed)), {}
    )


def inputs_of(model, text):
    "Name of each prunable weight -> (tokens, inputs) float64 of its layers in a plain pass"
    weights, found, hooks = {id(w.param): w.name for w in prunable(model)}, {}, []
    for m in model.modules():
        if isinstance(m, (torch.nn.Linear, Conv1D)) and id(m.weight) in weights:
            hooks.append(
                m.register_forward_pre_hook(
                    lambda m, a: found.setdefault(weights[id(m.weight)], []).append(
                        a[0].reshape(-1, a[0].shape[-1]).double()
                    )
                )
            )
    with torch.no_grad():
        model(
            input_ids=text.input_ids,
            **(dict(decoder_input_ids=text.input_ids) if model.config.is_encoder_decoder else {}),
        )
    for h in hooks:
        h.remove()
    return {n: torch.cat(x) for n, x in found.items()}


def naive_wanda(W, X, sparsity):
    "Row by row, in plain Python"
    scores, keep = (
        W.double().abs() * X.square().sum(0).sqrt(),
        torch.ones(W.shape, dtype=torch.bool),
    )
    for i, row in enumerate(scores.tolist()):
        for _, j in sorted((s, j) for j, s in enumerate(row))[: prune_count(len(row), sparsity)]:
            keep[i, j] = False
    return keep


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_wanda_equals_the_formula_in_every_family(family, dtype):
    "Each layer's mask follows from what it receives when the layers before it are already pruned."
    model, text, masks = tiny(family, dtype), words(), {}
    before = {w.name: w.oriented(w.param).clone() for w in prunable(model)}
    shared = (
        family == "albert"
    )  # its layers share weights: all are judged by what the dense model gives
    found = make_masks(model, "wanda", sparsity=0.5, calibration=text)
    assert all(
        torch.equal(w.oriented(w.param), before[w.name]) for w in prunable(model)
    )  # put back
    inputs = inputs_of(model, text)
    oriented = {w.name: w for w in prunable(model)}
    blocks = {}
    # decoder.layers.1.fc1.weight belongs to decoder.layers.1, decoder.project_in.weight to no block
    for name in found:
        block = re.match(r"(.*?\.\d+)\.", name)
        blocks.setdefault(block[1] if block else None, []).append(name)
    for block in sorted(blocks, key=lambda b: b is None):  # what is in no block comes last
        names = blocks[block]
        if not shared:
            inputs = inputs_of(model, text)  # with the blocks so far pruned
        for n in names:
            masks[n] = naive_wanda(before[n], inputs[n], 0.5)
        for n in names:
            with torch.no_grad():
                oriented[n].param.mul_(oriented[n].oriented(masks[n]))
    different = sum(int((oriented[n].oriented(found[n]) != masks[n]).sum()) for n in found)
    assert list(found) == [w.name for w in prunable(model)]
    assert different <= (
        0 if dtype == torch.float32 else 0.02 * sum(m.numel() for m in masks.values())
    ), different


def norms_of(model, text, **how):
    "Name of each prunable weight -> the norms of its inputs as `iter_blocks` finds them"
    found = {}
    for block in iter_blocks(model, text, prunable(model), "norms", **how):
        for weights, value in block.groups:
            found |= {w.name: value for w in weights}
    return found


def naive_obs(W, H, keep_of, damping=0.01):
    "Optimal brain surgeon in float64, column by column, inverting the Hessian of the rest anew"
    W, H = W.double().clone(), H.double().clone()
    H.diagonal().add_(damping * H.diagonal().mean())
    n = W.shape[1]
    diagonal = torch.tensor([1 / torch.linalg.inv(H[j:, j:])[0, 0] for j in range(n)])
    keep = torch.ones(W.shape, dtype=torch.bool)
    for j in range(n):
        keep_of(j, W, diagonal, keep)
        inverse = torch.linalg.inv(H[j:, j:])
        error = torch.where(keep[:, j], 0, W[:, j]) / inverse[0, 0]
        W[:, j:] -= error[:, None] * inverse[0][None]
        W[:, j] = torch.where(keep[:, j], W[:, j], 0)
    return W, keep


@pytest.mark.parametrize("pattern", ["half", "two_of_four", "three_of_eight"])
def test_sparsegpt_equals_naive_optimal_brain_surgeon(pattern):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(500, 24, generator=g) @ torch.randn(24, 24, generator=g)
    W, H = torch.randn(10, 24, generator=g), x.T @ x / 500
    n, m = dict(half=(None, None), two_of_four=(2, 4), three_of_eight=(3, 8))[pattern]

    def keep_of(j, W, diagonal, keep):
        if n is None and j == 0:
            cost = (W.square() * diagonal).reshape(-1)
            keep.view(-1)[cost.argsort(stable=True)[:120]] = False
        elif n is not None and j % m == 0:
            cost = W[:, j : j + m].square() * diagonal[j : j + m]
            keep[:, j : j + m].scatter_(1, cost.argsort(dim=1, stable=True)[:, : m - n], False)

    expected, keep = naive_obs(W, H, keep_of)
    target = (
        Target(sparsity=0.5, granularity="layer")
        if n is None
        else Target("nm", n_kept=n, m_group=m)
    )
    pruned = sparsegpt(
        [W[:4], W[4:]] if n else [W], H, target
    )  # matrices that share an input are swept together
    assert torch.equal(torch.cat(pruned.kept), keep)
    assert torch.allclose(torch.cat(pruned.weights).double(), expected, atol=2e-4)
    assert pruned.notes == dict(damping=0.01, dead_inputs=0)


def test_gptq_equals_naive_rounding_with_compensation():
    g = torch.Generator().manual_seed(2)
    x = torch.randn(500, 20, generator=g) @ torch.randn(20, 20, generator=g)
    W, H, grid = torch.randn(6, 20, generator=g), x.T @ x / 500, Grid(3, 8)
    (codes,), _ = gptq([W], H, grid)
    D, w = H.double().clone(), W.double().clone()
    D.diagonal().add_(0.01 * D.diagonal().mean())
    for j in range(20):
        if j % 8 == 0:  # the last group has 4
            low, high = w[:, j : j + 8].amin(1).clamp(max=0), w[:, j : j + 8].amax(1).clamp(min=0)
            unit = 2.0 ** math.floor(math.log2(float(W.abs().max())))
            scale = ((high - low).float() / 7 / unit).half().double() * unit
            zero = (-low / scale).round()
        q = ((w[:, j] / scale).round() + zero).clamp(0, 7)
        inverse = torch.linalg.inv(D[j:, j:])
        error = (w[:, j] - (q - zero) * scale) / inverse[0, 0]
        w[:, j:] -= error[:, None] * inverse[0][None]
        w[:, j] = (q - zero) * scale
    assert torch.allclose(codes.values().double(), w, atol=1e-5)
    assert codes.scale.shape == (6, 3)


def test_dead_inputs_go_first_and_the_count_stays_exact():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(300, 16, generator=g)
    x[:, [2, 5, 9]] = 0
    W = torch.randn(8, 16, generator=g)
    pruned = sparsegpt([W], x.T @ x / 300, Target(sparsity=0.25, granularity="layer"))
    (kept,), (new,), notes = pruned.kept, pruned.weights, pruned.notes
    assert notes["dead_inputs"] == 3 and not kept[:, [2, 5, 9]].any() and int((~kept).sum()) == 32
    assert torch.isfinite(new).all()


def test_damping_climbs_its_ladder_and_then_gives_up():
    degenerate = torch.full((6, 6), 1.0)
    degenerate[0, 0] = 1 - 0.05  # not positive definite until enough is added
    assert inverse_factor(degenerate).damping == 0.1
    with pytest.raises(StudyError, match="too degenerate"):
        inverse_factor(-torch.eye(4))


@pytest.mark.parametrize(
    "dtype,ties", [(torch.float32, False), (torch.bfloat16, True)], ids=["fp32", "bf16-ties"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_on_every_family(family, dtype, ties):
    for how in (
        dict(method="magnitude", sparsity=0.5, granularity="erk"),
        dict(method="random", n_kept=1, m_group=4),
        dict(method="wanda", n_kept=2, m_group=4),
        dict(method="sparsegpt", sparsity=0.3),
        dict(method="sparsegpt", n_kept=2, m_group=4),
        dict(method="rtn", bits=3, group_size=5),
        dict(method="gptq", bits=4, symmetric=True),
    ):
        model = tiny(family, dtype, ties)
        names = {w.name for w in prunable(model)}
        others = {n: p.clone() for n, p in model.named_parameters() if n not in names}
        report = compress(model, **how, calibration=words(), precision="fp32", progress=False)
        assert report.certificate["violations"] == 0
        assert report.certificate["size"] == sum(w.param.numel() for w in prunable(model))
        if how.get("n_kept"):
            assert report.certificate["groups_violated"] == 0
        if how.get("sparsity") and report.masks:
            layers = 1 if how["method"] == "magnitude" else len(report.masks)
            assert (
                abs(report.certificate["mask_sparsity"] - how["sparsity"])
                <= layers / report.certificate["size"]
            )
        assert all(
            torch.equal(p, others[n]) for n, p in model.named_parameters() if n in others
        )  # embeddings, norms and biases are untouched
        assert 0 < report.effective_bits["stored"] <= 16


def test_erk_masks_have_erk_counts():
    model = tiny("gpt2")
    weights = prunable(model)
    masks = make_masks(model, "random", sparsity=0.7, granularity="erk", seed=3)
    counts = erk_counts(
        [w.oriented(w.param).shape for w in weights],
        prune_count(sum(w.param.numel() for w in weights), 0.7),
    )
    assert [int((~masks[w.name]).sum()) for w in weights] == counts
    by_size = sorted(
        (w.param.numel(), c / w.param.numel()) for c, w in zip(counts, weights, strict=True)
    )
    assert by_size[0][1] < by_size[-1][1]  # larger matrices lose a larger share


matrices = st.integers(0, 2**31).flatmap(
    lambda seed: st.tuples(
        st.integers(1, 6), st.integers(1, 40), st.sampled_from([1e-12, 1e-3, 1.0, 1e6])
    ).map(lambda s: torch.randn(s[:2], generator=torch.Generator().manual_seed(seed)) * s[2])
)


@settings(deadline=None, max_examples=100)
@given(matrices, st.integers(1, 8), st.sampled_from([0, 1, 3, 8, 64]), st.booleans())
def test_rounding_is_to_the_nearest_number_of_the_group(W, bits, group, symmetric):
    if symmetric and bits == 1:
        return
    grid = Grid(bits, group, symmetric)
    found = quantize(W, grid)
    unit = 2.0 ** math.floor(
        math.log2(float(W.abs().max()))
    )  # scales are half-precision numbers times this: the small ones have few digits
    width = min(group or W.shape[1], W.shape[1])
    assert found.scale.shape == (len(W), -(-W.shape[1] // width))
    for i in range(len(W)):
        for a in range(0, W.shape[1], width):
            scale, zero = float(found.scale[i, a // width]), float(found.zero[i, a // width])
            numbers = (np.arange(grid.top + 1) - zero) * scale
            for w, value in zip(
                W[i, a : a + width].tolist(), found.values()[i, a : a + width].tolist(), strict=True
            ):
                assert min(abs(numbers - w)) == pytest.approx(
                    abs(value - w), rel=1e-4, abs=1e-6 * scale
                )  # no number of the grid is nearer
                assert 0 in numbers
            assert (
                max(abs(W[i, a : a + width]))
                <= max(abs(numbers)) * 1.001 + scale + grid.top * 2.0**-25 * unit
            )  # the range is covered


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(2, 8), st.booleans())
def test_numbers_on_a_grid_come_back_exactly(seed, bits, symmetric):
    rng = np.random.default_rng(seed)
    top = 2**bits - (2 if symmetric else 1)
    zero = top // 2 if symmetric else int(rng.integers(0, top + 1))
    codes = rng.integers(0, top + 1, (4, 16))
    codes[:, [0, 1]] = 0, top  # both ends are used
    W = torch.tensor(
        (codes - zero) * 2.0 ** float(rng.integers(-20, 5)) * float(np.float16(1 + rng.random())),
        dtype=torch.float32,
    )
    assert torch.equal(quantize(W, Grid(bits, 16, symmetric)).values(), W)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_equals_torchao(bits, monkeypatch):
    monkeypatch.setenv("TORCHAO_SKIP_LOADING_SO_FILES", "1")
    q = pytest.importorskip(
        "torchao.quantization.quant_primitives",
        reason="torchao is not among the requirements, since transformers loads it wherever it is "
        "installed; install torchao==0.18.0 to compare",
    )
    W = torch.randn(32, 128, generator=torch.Generator().manual_seed(bits))
    ours, block = quantize(W, Grid(bits, 32)), (1, 32)
    scale, zero = q.choose_qparams_affine(
        W, q.MappingType.ASYMMETRIC, block, torch.uint8, 0, 2**bits - 1
    )
    assert torch.allclose(
        ours.scale, scale.reshape(ours.scale.shape), rtol=2**-11
    )  # ours is stored in half precision
    codes = q.quantize_affine(W, block, ours.scale, ours.zero.int(), torch.uint8, 0, 2**bits - 1)
    assert torch.equal(codes, ours.codes)
    assert torch.equal(
        q.dequantize_affine(codes, block, ours.scale, ours.zero.int(), torch.uint8, 0, 2**bits - 1),
        ours.values(),
    )


def test_tied_weights_are_quantized_once():
    model = tiny("llama")
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    embeddings = model.get_input_embeddings().weight.clone()
    quantized = quantize_(model, "rtn", Grid(2, 8))
    assert not any("layers.1.mlp.up_proj" in n for n in quantized)
    assert (
        torch.equal(model.get_input_embeddings().weight, embeddings)
        and model.lm_head.weight is model.get_input_embeddings().weight
    )
    assert quantized.certify(model)["size"] == sum(w.param.numel() for w in prunable(model))


def test_effective_bits_are_those_of_a_count_by_hand():
    model = tiny("llama")
    size = sum(w.param.numel() for w in prunable(model))
    masks = make_masks(model, sparsity=0.75)
    kept = sum(int(m.sum()) for m in masks.values())
    assert effective_bits(masks)["stored"] == pytest.approx((size + 16 * kept) / size)
    assert effective_bits(make_masks(model, pattern="nm", n_kept=2, m_group=4))[
        "stored"
    ] == pytest.approx((16 * 2 + 3) / 4)
    codes = quantize_(tiny("llama"), "rtn", Grid(4, 8))
    assert effective_bits(codes)["stored"] == pytest.approx(
        4 + (16 + 4) / 8 + 8 * len(codes) / size
    )


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(method="rtn", bits=0), "bits=0 is impossible (allowed: a whole number from 1 to 8)"),
        (dict(method="rtn", bits=9), "bits=9 is impossible"),
        (dict(method="rtn", bits=2.5), "bits=2.5 is impossible"),
        (dict(method="rtn"), "bits=None is impossible"),
        (dict(method="rtn", bits=1, symmetric=True), "leaves only zero"),
        (dict(method="rtn", bits=4, group_size=-1), "group_size=-1 is impossible"),
        (dict(method="rtn", bits=4, sparsity=0.5), "sparsity=0.5 means nothing to method 'rtn'"),
        (dict(method="wanda", sparsity=0.5, bits=4), "bits=4 means nothing to method 'wanda'"),
        (dict(method="wanda", sparsity=0.5), "method 'wanda' needs calibration text"),
        (dict(method="gptq", bits=4), "method 'gptq' needs calibration text"),
        (dict(method="wandaa", sparsity=0.5), "did you mean 'wanda'?"),
        (
            dict(method="sparsegpt", sparsity=0.5, granularity="row"),
            "granularity 'row' is not defined for method 'sparsegpt' (allowed: layer)",
        ),
        (dict(method="magnitude", sparsity=1.0), "sparsity=1.0 is not a number in [0, 1)"),
        (dict(method="magnitude", n_kept=5, m_group=4), "n_kept=5 of m_group=4 is impossible"),
        (
            dict(method="magnitude", sparsity=0.9, n_kept=2, m_group=4),
            "sparsity=0.9 means nothing to pattern 'nm'",
        ),
        (
            dict(method="magnitude", sparsity=0.9, m_group=4),
            "m_group=4 means nothing to pattern 'unstructured'",
        ),
        (
            dict(method="magnitude", granularity="row", n_kept=2, m_group=4),
            "granularity='row' means nothing to pattern 'nm'",
        ),
    ],
)
def test_bad_requests_are_answered_in_one_line(how, message):
    with pytest.raises(StudyError) as e:
        compress(tiny("bert"), **how, progress=False)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "how",
    [
        dict(method="rtn", bits=4),
        dict(method="gptq", bits=4),
        dict(method="wanda", sparsity=0.5),
        dict(method="sparsegpt", sparsity=0.5),
    ],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_and_inputs_that_are_not_finite(how, bad):
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = bad
    with pytest.raises(StudyError, match="NaN or infinite"):
        compress(model, **how, calibration=words(), progress=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_weights_are_finite(dtype):
    weights = prunable(tiny("llama").to(dtype))
    some, large = weights[1].param.data, torch.finfo(dtype).max
    some[0, :4] = large  # the sum overflows
    assert all_finite(weights)
    for bad in ([math.nan], [math.inf], [math.inf, -math.inf], [large, -math.inf]):
        some[0, : len(bad)] = torch.tensor(bad, dtype=dtype)
        assert not all_finite(weights)
        some[0, :4] = large


def test_what_happens_between_blocks_is_noticed():
    "A model that is no chain of its blocks, or calls a layer twice, is measured as it is."
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    for extra in (
        dict(conv_kernel_size=3),
        dict(
            share_att_key=True,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
        ),
    ):
        torch.manual_seed(0)
        model = DebertaV2ForSequenceClassification(
            DebertaV2Config(**SMALL, type_vocab_size=0, **extra)
        ).eval()
        text, seen = words(), {}
        weights = prunable(model)
        for block in iter_blocks(model, text, weights, "norms"):
            seen |= {w.name: value for ws, value in block.groups for w in ws}
        expected = inputs_of(model, text)
        for w in weights:
            assert torch.allclose(seen[w.name], expected[w.name].norm(dim=0), rtol=1e-5), (
                extra,
                w.name,
            )


def test_weights_shared_by_two_blocks_are_judged_by_both():
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    found = {
        w.name: value
        for block in iter_blocks(model, words(), prunable(model), "norms")
        for ws, value in block.groups
        for w in ws
    }
    inputs = []
    hooks = [
        layer.mlp.up_proj.register_forward_pre_hook(
            lambda m, a: inputs.append(a[0].reshape(-1, 16).double())
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(input_ids=words().input_ids)
    for h in hooks:
        h.remove()
    assert torch.allclose(
        found["model.layers.0.mlp.up_proj.weight"], torch.cat(inputs).norm(dim=0), rtol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_of_several_batches(family):
    model, text = tiny(family), words()
    expected = inputs_of(model, text)
    for block in iter_blocks(model, text, prunable(model), "norms", batch_size=2):
        for ws, value in block.groups:
            for w in ws:
                assert torch.allclose(value, expected[w.name].norm(dim=0), rtol=1e-5), w.name


def test_a_block_is_left_when_all_its_inputs_are_known():
    "But not in a pass that leaves one of its modules out, as a gate may"
    model, text, ran = tiny("llama"), words(), Counter()
    mlps = [layer.mlp for layer in model.model.layers]
    for i, mlp in enumerate(mlps):
        mlp.down_proj.register_forward_hook(lambda *_, i=i: ran.update([i]))
    for _ in iter_blocks(model, text, prunable(model), "norms", batch_size=2):
        pass
    assert (ran[0], ran[1]) == (
        1 + 1 + 3,
        1,
    )  # a look at the model; the first batch, measured; three batches on to the next block

    mlp, seen, limit = mlps[1], [], -math.inf

    def gated(x):
        seen.append(float(x[0, 0, 0].detach()))
        return (
            mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
            if seen[-1] > limit
            else mlp.down_proj(mlp.up_proj(x))
        )

    mlp.forward = gated
    for ids in text.input_ids.split(2):
        model(input_ids=ids)
    limit = sorted(seen)[1]  # open for one of the three batches
    found = {
        w.name: value
        for block in iter_blocks(model, text, prunable(model), "norms", batch_size=2)
        for ws, value in block.groups
        for w in ws
    }
    parts = [inputs_of(model, Calibration(b, {})) for b in text.input_ids.split(2)]
    for name, value in found.items():
        assert torch.allclose(
            value, torch.cat([part[name] for part in parts if name in part]).norm(dim=0), rtol=1e-5
        ), name
    assert sum("model.layers.1.mlp.gate_proj.weight" in part for part in parts) == 1


def test_float64_inputs_are_left_alone():
    single, double = (
        {
            w.name: v
            for block in iter_blocks(m, words(), prunable(m), "norms")
            for ws, v in block.groups
            for w in ws
        }
        for m in (tiny("llama"), tiny("llama", torch.float64))
    )
    assert all(torch.allclose(single[n], double[n], rtol=1e-4) for n in single)


def test_stacked_experts_are_refused():
    from transformers import MixtralConfig, MixtralForCausalLM

    with pytest.raises(StudyError, match="keeps several matrices in one tensor"):
        prunable(
            MixtralForCausalLM(MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=2))
        )


def test_masks_know_the_weights_they_left_behind(tmp_path):
    model = tiny("llama")
    dense = {n: p.clone() for n, p in model.named_parameters()}
    report = compress(model, "sparsegpt", sparsity=0.5, calibration=words(), progress=False)
    report.masks.save(tmp_path / "m.safetensors")
    Masks.load(tmp_path / "m.safetensors", model)  # the repaired model
    Masks.load(tmp_path / "m.safetensors", tiny("llama"))  # the one it came from
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(StudyError, match="computed from other weights"):
        Masks.load(tmp_path / "m.safetensors", model)
    assert any(not torch.equal(p, dense[n]) for n, p in model.named_parameters())


def test_nothing_to_compress():
    model = tiny("bert")
    model.bert.encoder.layer = torch.nn.ModuleList()
    with pytest.raises(StudyError, match="no prunable weight"):
        compress(model, "wanda", sparsity=0.5, calibration=words(), progress=False)


def test_calibration_text_comes_from_files_and_is_seeded(tmp_path):
    tokenizer = load_tokenizer(resolve_model("minilm"))
    file = tmp_path / "mine.txt"
    file.write_text("\n\n".join(f"Document number {i} speaks of nothing else." for i in range(200)))
    text = load_text(tokenizer, str(file), windows=8, length=32)
    assert text.input_ids.shape == (8, 32) and text.provenance["source"] == "mine.txt"
    assert (text.input_ids[:, 0] == tokenizer.cls_token_id).all() and (
        text.input_ids[:, -1] == tokenizer.sep_token_id
    ).all()
    assert not torch.equal(
        text.input_ids, load_text(tokenizer, str(file), windows=8, length=32, seed=1).input_ids
    )
    assert not set(documents(str(file))[0]) & set(documents(str(file), "held_out")[0])
    for content in ("", "\n\n \n\n", "short"):
        file.write_text(content)
        with pytest.raises(StudyError, match="not one whole window of usable text"):
            load_text(tokenizer, str(file), length=64)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyError, match="cannot be read as UTF-8"):
        load_text(tokenizer, str(file))
    with pytest.raises(StudyError, match="length=100000"):
        load_text(tokenizer, length=100000)


def test_a_data_set_of_the_mirror_calibrates(mirror):
    tokenizer = load_tokenizer(resolve_model("minilm"))
    text = load_text(tokenizer, "nyu-mll/glue:sst2:sentence", windows=4, length=32)
    assert text.provenance["origin"] == "nyu-mll/glue in the mirror" and text.input_ids.shape == (
        4,
        32,
    )
    with pytest.raises(StudyError, match="has no column 'text'"):
        load_text(tokenizer, "nyu-mll/glue:sst2")


def test_weights_come_back_when_a_walk_fails():
    model = tiny("llama")
    before = {n: p.clone() for n, p in model.named_parameters()}

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_masks(model, "sparsegpt", sparsity=0.5, calibration=words(), progress=stop)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert model.config.use_cache and not any(m._forward_pre_hooks for m in model.modules())


@pytest.fixture(scope="module")
def decoder():
    source = resolve_model("smollm2")
    tokenizer = load_tokenizer(source)
    return (
        source,
        load_text(tokenizer, windows=16, length=256),
        load_text(tokenizer, part="held_out", windows=6, length=256),
    )


def test_perplexity_is_ordered_on_the_packaged_decoder(decoder):
    "Held-out editorials, 50 %: SparseGPT <= Wanda < magnitude; differences are of the same windows"
    source, text, held_out = decoder
    losses, precision = {}, resolve_precision()
    for method in ("magnitude", "wanda", "sparsegpt"):
        model = load_decoder(source)
        report = compress(model, method, sparsity=0.5, calibration=text, progress=False)
        assert (
            abs(report.certificate["mask_sparsity"] - 0.5) < 1e-4
            and report.certificate["violations"] == 0
        )
        losses[method] = window_losses(model, held_out, precision)
        print(method, perplexity(losses[method]))
    for better, worse in (("sparsegpt", "wanda"), ("wanda", "magnitude")):
        d = losses[worse] - losses[better]
        assert d.mean() > 2 * d.std(ddof=1) / len(d) ** 0.5, (better, worse, d.mean())


def _output_error(W, H, new):
    "Squared error of the output, per token"
    return float(((W - new) @ H * (W - new)).sum())


def test_sparsegpt_disturbs_a_real_layer_less_than_magnitude(decoder):
    source, text, _ = decoder
    model = load_decoder(source)
    *_, block = (
        s
        for s, _ in zip(
            iter_blocks(model, text, prunable(model), "hessian"), range(2), strict=False
        )
    )
    for weights, H in block.groups:
        for w in weights:
            W = w.oriented(w.param.detach()).float()
            target = Target(sparsity=0.5, granularity="layer")
            assert (
                _output_error(W, H, sparsegpt([W], H, target).weights[0])
                < _output_error(W, H, W * wanda([W], H.diagonal().sqrt(), target).kept[0]) * 1.001
                < _output_error(W, H, W * target.select([W.abs()])[0][0]) * 1.001
            ), w.name
