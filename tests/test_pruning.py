"Masks against a brute-force oracle written from the definitions, in plain Python."

import itertools
import math
import re
from fractions import Fraction

import pytest
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from junkdna_nb.base.config import StudyError
from junkdna_nb.compression import selection
from junkdna_nb.compression.masks import Masks, certify, hash_weights, prunable
from junkdna_nb.compression.pruning import make_masks
from junkdna_nb.compression.selection import Target, n_of_m, prune_count, smallest

# Few distinct values, so that ties and zeros are the rule and not the exception.
tied = st.sampled_from([0.0, 0.25, 0.5, 0.5, 1.0, 2.0])
free = st.floats(0, 100, width=32)


@st.composite
def tensors(draw, max_tensors=4):
    value = draw(st.sampled_from([tied, free]))
    shapes = draw(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=max_tensors)
    )
    return [
        torch.tensor(draw(st.lists(value, min_size=r * c, max_size=r * c))).reshape(r, c)
        for r, c in shapes
    ]


def oracle_count(n, sparsity):
    return math.floor(Fraction(str(sparsity)) * n + Fraction(1, 2))


def oracle_prune(entries, k):
    "The positions of the k smallest of [(score, position)], the earlier first among equals"
    return {position for _, position in sorted(entries)[:k]}


def cells(matrix):
    "(row, column) of every entry, row by row"
    return itertools.product(*map(range, matrix.shape))


def oracle_groups(scores, per):
    "Groups of [(score, (tensor, row, column))] that are pruned together"
    groups = {}
    for t, s in enumerate(scores):
        for i, j in cells(s):
            key = {"global": (), "layer": (t,)}.get(per, (t, i))
            groups.setdefault(key, []).append((float(s[i, j]), (t, i, j)))
    return list(groups.values())


def positions(masks):
    "(tensor, row, column) of every pruned weight"
    pruned = set()
    for t, m in enumerate(masks):
        pruned |= {(t, i, j) for i, j in cells(m) if not m[i, j]}
    return pruned


@settings(deadline=None, max_examples=150)
@given(
    tensors(),
    st.decimals(0, "0.99", places=2).map(float),
    st.sampled_from(["global", "layer", "row"]),
)
def test_unstructured_equals_the_oracle(scores, sparsity, per):
    masks, _ = smallest(scores, sparsity, per)
    expected = set().union(
        *[oracle_prune(g, oracle_count(len(g), sparsity)) for g in oracle_groups(scores, per)]
        or [set()]
    )
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
                group = [
                    (float(s[i, j]), (t, i, j)) for j in range(start, min(start + m, s.shape[1]))
                ]
                keep = (
                    n
                    if len(group) == m
                    else max(1, math.floor(Fraction(len(group) * n, m) + Fraction(1, 2)))
                )
                expected |= oracle_prune(group, len(group) - keep)
    assert positions(masks) == expected


PATTERNS = [Target(sparsity=0.37, granularity=per) for per in selection.GRANULARITIES]
PATTERNS += [Target(sparsity=0.37, rule="strict"), Target("nm", n_kept=2, m_group=3)]


@settings(deadline=None, max_examples=100)
@given(tensors(), st.sampled_from(PATTERNS))
def test_packed_masks_are_the_same_bits(scores, target):
    (masks, ties), (packed, found) = target.select(scores), target.select(scores, packed=True)
    assert ties == found and len(packed) == len(masks)
    for mask, bits in zip(masks, packed, strict=True):
        assert bits.flags().equal(mask) and bits.shape == mask.shape
        assert bits.count() == int(mask.sum()) and len(bits.packed) == -(-mask.numel() // 8)
    with pytest.raises(StudyError, match=r"packed=True with 2 levels \(allowed: one\)"):
        selection.nested_smallest(scores, [0, 0], packed=True)


def authors_masks(scores, sparsity):
    "Their rule word by word: the last of the int(n (1 - s)) largest scores, and what is above it"
    everything = torch.cat([s.reshape(-1) for s in scores])
    number_to_keep = int(len(everything) * (1 - sparsity))
    threshold = torch.topk(everything, number_to_keep, sorted=True).values[-1]
    return [s > threshold for s in scores]


@settings(deadline=None, max_examples=80)
@given(tensors(), st.decimals("0", "0.95", places=2).map(float))
def test_strict_threshold_keeps_only_what_is_above(scores, sparsity):
    masks, _ = smallest(scores, sparsity, "global", "strict")
    if int(sum(s.numel() for s in scores) * (1 - sparsity)) == 0:  # theirs fails
        assert not any(m.any() for m in masks)
        return
    assert all(map(torch.equal, masks, authors_masks(scores, sparsity)))


def test_strict_count_is_the_authors_in_floating_point():
    "Thirty sizes and sparsities, without ties: layers of minilm and roberta-large among them"
    rounded = 0
    for n, s in itertools.product(
        (50, 997, 384 * 384, 1536 * 384, 1024 * 1024), (0.0, 0.3, 0.4, 0.6, 0.8, 0.9)
    ):
        scores = [torch.randperm(n, generator=torch.Generator().manual_seed(n)).float()[None]]
        (mask,), _ = smallest(scores, s, "global", "strict")
        assert torch.equal(mask, authors_masks(scores, s)[0]), (n, s)
        rounded += int(mask.sum()) != n - prune_count(n, s) - 1
    assert rounded >= 8, "cases that rounding to the nearest would miss"


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
    assert {i for _, i in flat[: prune_count(w.numel(), 0.37)]} == set(
        (~mask).reshape(-1).nonzero().squeeze(1).tolist()
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad):
    model = tiny_model("bert")
    model.bert.encoder.layer[0].output.dense.weight.data[0, 0] = bad
    for kw in (dict(sparsity=0.5), dict(pattern="nm", n_kept=2, m_group=4)):
        with pytest.raises(StudyError, match="NaN or infinite"):
            make_masks(model, **kw)


FAMILIES = "bert", "roberta", "mpnet", "gpt2", "opt", "llama", "llama_untied", "t5"


@pytest.mark.parametrize("name", FAMILIES)
def test_scope_of_model_families(name):
    model = tiny_model(name)
    weights = prunable(model)
    embedded = set()
    for m in model.modules():
        if isinstance(m, torch.nn.Embedding):
            embedded |= set(map(id, m.parameters()))
    assert all(w.param.ndim == 2 and id(w.param) not in embedded for w in weights)
    outside = "classifier|pooler|lm_head|embed|wte|wpe|shared|relative"
    assert not any(re.search(outside, w.name) for w in weights)
    linear = {
        id(m.weight)
        for n, m in model.base_model.named_modules()
        if type(m).__name__ in ("Linear", "Conv1D") and "pooler" not in n
    } - embedded
    assert {id(w.param) for w in weights} == linear, (
        "every linear map of the body, and nothing else"
    )
    assert all(w.transposed == (name == "gpt2") for w in weights)
    masks = make_masks(model, sparsity=0.6)
    c = certify(masks.apply_(model), masks)
    assert c["zeros"] == c["masked"] == prune_count(c["size"], 0.6) and c["violations"] == 0


def test_conv1d_groups_run_along_the_inputs():
    model = tiny_model("gpt2")
    masks = make_masks(model, pattern="nm", n_kept=1, m_group=4)
    stored = masks["transformer.h.0.mlp.c_fc.weight"]  # (inputs, outputs)
    assert (stored.T.reshape(-1, 4).sum(1) == 1).all()


def test_tied_weights_are_counted_once():
    model = tiny_model("bert")
    first, second = model.bert.encoder.layer
    second.output.dense.weight = first.output.dense.weight
    names = [w.name for w in prunable(model)]
    assert (
        "bert.encoder.layer.0.output.dense.weight" in names
        and "bert.encoder.layer.1.output.dense.weight" not in names
    )


def test_random_masks_follow_the_seed_and_not_the_weights():
    a, b = tiny_model("bert"), tiny_model("roberta")
    assert make_masks(a, "random", sparsity=0.5, seed=1).equal(
        make_masks(a, "random", sparsity=0.5, seed=1)
    )
    assert not make_masks(a, "random", sparsity=0.5, seed=1).equal(
        make_masks(a, "random", sparsity=0.5, seed=2)
    )
    masks = make_masks(b, "random", sparsity=0.5, seed=1)
    assert sum(int((~m).sum()) for m in masks.values()) == prune_count(
        sum(m.numel() for m in masks.values()), 0.5
    )


@pytest.mark.parametrize("how", [dict(sparsity=0.3), dict(pattern="nm", n_kept=3, m_group=7)])
def test_saved_masks_are_bound_to_their_weights(tmp_path, how):
    model, path = tiny_model("gpt2"), tmp_path / "masks.safetensors"
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


def test_bits_behind_the_last_flag_are_refused(tmp_path):
    "Three rows of three flags fill nine bits of two bytes"
    path, how = tmp_path / "masks.safetensors", dict(weights_sha256="0")
    masks = Masks(dict(w=torch.eye(3, dtype=torch.bool)), how)
    masks.save(path)
    assert Masks.load(path).equal(masks) and masks.bits["w"].packed.tolist() == [0x88, 0x80]
    path.write_bytes(path.read_bytes()[:-1] + b"\x81")
    with pytest.raises(StudyError, match="cannot be read: bits are set behind the last flag"):
        Masks.load(path)


def test_the_certificate_tells_the_truth():
    "It must notice one weight that came back, and count what is there rather than what was asked."
    model = tiny_model("bert")
    masks = make_masks(model, sparsity=0.5)
    masks.apply_(model)
    name = next(iter(masks))
    model.get_parameter(name).data[~masks[name]] = torch.where(
        torch.arange(int((~masks[name]).sum())) == 0, 1e-30, 0.0
    )
    c = certify(model, masks)
    assert (
        c["violations"] == 1
        and c["layers"][name]["violations"] == 1
        and c["zeros"] == c["masked"] - 1
        and c["sparsity"] < c["mask_sparsity"]
    )
    model.get_parameter(name).data[~masks[name]] = float("nan")
    assert certify(model, masks)["violations"] == int((~masks[name]).sum())


def test_a_layer_that_is_emptied_is_named():
    "minilm's pooler under one global threshold, in small"
    model = tiny_model("bert")
    model.bert.pooler.dense.weight.data *= 0.01
    assert make_masks(model, sparsity=0.6)["bert.encoder.layer.0.output.dense.weight"].any()
    masks = make_masks(model, sparsity=0.6, head=True)
    assert certify(masks.apply_(model), masks)["emptied"] == ["bert.pooler.dense.weight"]


def test_hash_sees_names_shapes_and_bits():
    a, b = tiny_model("bert"), tiny_model("bert")
    assert hash_weights(prunable(a)) == hash_weights(prunable(b))
    b.bert.encoder.layer[0].output.dense.weight.data[0, 0] *= -1
    assert hash_weights(prunable(a)) != hash_weights(prunable(b))


def test_nothing_to_prune():
    with pytest.raises(StudyError, match="no prunable weight"):
        prunable(torch.nn.Embedding(4, 4))


# ---- the fast selection, where it takes its shortcuts


def stable_sort_masks(scores, k):
    flat = torch.cat([s.double().reshape(-1) for s in scores])
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[flat.sort(stable=True).indices[:k]] = False
    parts = kept.split([s.numel() for s in scores])
    return [m.view(s.shape) for m, s in zip(parts, scores, strict=True)]


def values(kind, shape, g):
    x = torch.randn(shape, generator=g)
    return dict(
        normal=x,
        grid=(x * 4).round() / 4,
        zeros=x * (torch.rand(shape, generator=g) > 0.6),
        constant=torch.ones(shape),
        heavy=x**5,
        tiny=x * 1e-42,
        bf16=x.bfloat16(),
        fp16=x.half(),
        float64=x.double() * (1 + 1e-12),
    )[kind]


KINDS = ["normal", "grid", "zeros", "constant", "heavy", "tiny", "bf16", "fp16", "float64"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aside", [0.05, 1.0])
def test_sampled_brackets_give_the_same_masks(monkeypatch, kind, aside):
    "Small samples and blocks force every path: brackets, ties inside, single values, histograms"
    monkeypatch.setattr(selection, "_SAMPLE", 3000)
    monkeypatch.setattr(selection, "_BLOCK", 777)
    monkeypatch.setattr(selection, "_ASIDE", aside)
    g = torch.Generator().manual_seed(1)
    scores = [values(kind, s, g) for s in ((101, 97), (1, 5000), (3000, 5), (64, 64))]
    scores[1] = scores[1].T.contiguous().T  # a view that is not contiguous
    n = sum(s.numel() for s in scores)
    ks = [0, 1, n // 100, n // 2, n // 2 + 1, int(0.7 * n), n - 1, n]
    levels = selection.nested_smallest(scores, ks, absolute=True).kept
    for i, k in enumerate(ks):
        expected = stable_sort_masks([s.abs() for s in scores], k)
        assert all(torch.equal(m > i, e) for m, e in zip(levels, expected, strict=False)), (kind, k)
        one = selection.nested_smallest(scores, [k], absolute=True).kept
        assert all(torch.equal(m.view(torch.bool), e) for m, e in zip(one, expected, strict=False))
        one = selection.nested_smallest(scores, [k], absolute=True, packed=True).kept
        assert all(torch.equal(b.flags(), e) for b, e in zip(one, expected, strict=True))


def test_keys_of_odd_numbers():
    "Negative zeros among signed scores, doubles beyond float32, and what is not finite"
    x = torch.tensor([[0.0, -0.0, 3.0, 1.0], [-0.0, 2.0, 0.0, 5.0]])
    for k in range(9):
        assert torch.equal(
            selection.nested_smallest([x], [k]).kept[0].view(torch.bool),
            stable_sort_masks([x], k)[0],
        ), k
    x = torch.tensor(
        [[1e300, -1e-300, 2e300, 1.0], [-5e299, 1e-310, 0.0, 3.5e38]], dtype=torch.float64
    )
    for k in range(9):
        assert torch.equal(
            selection.nested_smallest([x], [k], absolute=True).kept[0].view(torch.bool),
            stable_sort_masks([x.abs()], k)[0],
        ), k
    for bad in (float("inf"), float("-inf"), float("nan")):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            with pytest.raises(StudyError, match="NaN or infinite"):
                selection.nested_smallest(
                    [torch.tensor([[1.0, bad, 2.0]], dtype=dtype)], [1], absolute=True
                )
    with pytest.raises(StudyError, match="a score is negative"):
        selection.nested_smallest([torch.tensor([[1.0, -0.5, 2.0]])], [1])
    signed = [torch.tensor([[1.0, -0.5, 2.0, 3.0]])]
    for per in ("global", "layer", "row", "erk"):
        with pytest.raises(StudyError, match="a score is negative"):
            smallest(signed, 0.5, per)
    with pytest.raises(StudyError, match="a score is negative"):
        n_of_m(signed, 2, 4)
    assert n_of_m(signed, 2, 4, absolute=True)[0][0].tolist() == [[False, False, True, True]]


def test_a_bracket_that_misses_is_noticed(monkeypatch):
    monkeypatch.setattr(
        selection,
        "_brackets",
        lambda scores, ks, n, absolute: [selection._Bracket(60000, 60001)] * len(ks),
    )
    x = [torch.randn(50, 40, generator=torch.Generator().manual_seed(2))]
    levels = selection.nested_smallest(x, [700], absolute=True).kept
    assert torch.equal(levels[0].view(torch.bool), stable_sort_masks([x[0].abs()], 700)[0])


def test_threads_change_nothing():
    g, before = torch.Generator().manual_seed(3), torch.get_num_threads()
    x = [torch.randn(400, 300, generator=g) for _ in range(6)]
    try:
        torch.set_num_threads(1)
        one = smallest(x, 0.5, absolute=True)[0]
        torch.set_num_threads(4)
        assert all(
            torch.equal(a, b) for a, b in zip(one, smallest(x, 0.5, absolute=True)[0], strict=True)
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 16, 17, 40])
def test_groups_of_every_size(monkeypatch, size):
    monkeypatch.setattr(selection, "_BLOCK", 500)
    x = (torch.randn(37, 83, generator=torch.Generator().manual_seed(4)) * 3).round() / 3
    for n in {1, max(1, size // 2), size}:
        (mask,), _ = n_of_m([x], n, size, absolute=True)
        for start in range(0, 83, size):
            block = x[:, start : start + size].abs()
            keep = (
                n
                if block.shape[1] == size
                else max(1, math.floor(Fraction(block.shape[1] * n, size) + Fraction(1, 2)))
            )
            rank = block.sort(dim=1, stable=True).indices
            expected = torch.ones_like(block, dtype=torch.bool).scatter_(
                1, rank[:, : block.shape[1] - keep], False
            )
            assert torch.equal(mask[:, start : start + size], expected)


@pytest.mark.parametrize(
    "harm", ["bits", "shape", "negative", "names", "provenance", "no hash", "dtype", "foreign"]
)
def test_damaged_mask_files_are_refused(tmp_path, harm):
    import json

    from safetensors.torch import save_file

    name, bits, shape, meta = (
        "a",
        torch.zeros(2, dtype=torch.uint8),
        [4, 4],
        dict(format="junkdna-masks-1", provenance=json.dumps(dict(weights_sha256="0"))),
    )
    if harm == "bits":
        bits = bits[:1]
    if harm == "shape":
        shape = [2, 2]
    if harm == "negative":
        shape = [-4, -4]
    if harm == "dtype":
        bits = bits.float()
    meta["shapes"] = json.dumps({} if harm == "names" else {name: shape})
    if harm == "provenance":
        meta["provenance"] = "3"
    if harm == "no hash":
        meta["provenance"] = "{}"
    if harm == "foreign":
        meta = {}
    save_file({name: bits}, tmp_path / "m.safetensors", metadata=meta)
    with pytest.raises(StudyError, match="cannot be read"):
        Masks.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "how,message",
    [
        ({}, "sparsity=None"),
        (dict(sparsity="0.5"), "sparsity='0.5'"),
        (dict(sparsity=1.0), "sparsity=1.0"),
        (dict(sparsity=0.5, rule="x"), "unknown rule"),
        (dict(pattern="nm"), "both must be whole"),
        (dict(pattern="nm", n_kept=2.5, m_group=4), "both must be whole"),
        (dict(pattern="n:m"), "unknown pattern"),
        (dict(sparsity=0.5, granularity="column"), "unknown granularity"),
        (dict(method="magnitud"), "did you mean"),
    ],
)
def test_bad_requests_for_masks(how, message):
    with pytest.raises(StudyError, match=message):
        make_masks(tiny_model("bert"), **how)
