"""Wanda and SparseGPT on smollm2, 50 % and 2:4, against a straightforward implementation.

The straightforward way follows the papers' formulas. It keeps each linear layer's own statistic (an
input shared by three layers is measured three times), visits column by column, and chooses masks by
a full sort. Both walk block by block through the same windows in the same precision.
`equal` says whether the pruned weights agree: exactly for Wanda. For SparseGPT at least 99 % of the
zeros in the first block must agree, where both see the same inputs; later blocks multiply rounding
differences.
Peak memory is what the process gained while pruning, masks apart. The sizes of the text's hidden
states, of the largest Hessian and of the model are printed for comparison.
"""

import contextlib
from functools import partial

import torch
from common import arguments, closing, interleaved
from torch import nn

from junkdna_nb.base.config import machine_precision
from junkdna_nb.base.models import load_decoder, load_tokenizer, resolve_model
from junkdna_nb.base.text import load_text
from junkdna_nb.compression.compress import PeakMemory
from junkdna_nb.compression.pruning import make_masks
from junkdna_nb.compression.selection import prune_count

args = arguments(repeats=2, windows=16, length=256, precision="auto", method="wanda,sparsegpt")
source = resolve_model("smollm2")
text = load_text(load_tokenizer(source), windows=args.windows, length=args.length)
precision, batches = machine_precision(args.precision), text.input_ids.split(8)
PATTERNS = dict(half=dict(sparsity=0.5), two_of_four=dict(pattern="nm", n_kept=2, m_group=4))
LARGEST = 4 * 1536**2  # bytes of the largest Hessian


def choose(score, groups, sparsity=0.5, pattern="unstructured", n_kept=2, m_group=4):
    "Pruned flags: the smallest of each group of columns"
    rows, cols = score.shape
    if pattern == "nm":
        rank = score.view(rows, -1, m_group).argsort(dim=-1, stable=True).argsort(dim=-1)
        return (rank < m_group - n_kept).view(rows, cols)
    flat = score.reshape(1, -1) if groups == "all" else score
    smallest = flat.argsort(dim=1, stable=True)[:, : prune_count(flat.shape[1], sparsity)]
    pruned = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, smallest, True)
    return pruned.view(rows, cols)


def wanda(weight, inputs, how):
    "|W| times the norm of each input"
    norms = sum(x.double().square().sum(0) for x in inputs).sqrt()
    weight.masked_fill_(choose(weight.abs().double() * norms, "rows", **how), 0)


def inverse_factor(inputs):
    "Upper Cholesky factor of the inverse of the damped Hessian X^T X / n"
    H = sum(x.float().T @ x.float() for x in inputs) / sum(len(x) for x in inputs)
    H.diagonal().add_(0.01 * H.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)


def prune_block(B, U, how):
    "(pruned and updated columns, their errors) of one block; the mask follows W^2 / U_ii^2"
    E, scale = torch.zeros_like(B), U.diagonal().square()
    pruned = torch.zeros_like(B, dtype=torch.bool)
    if "sparsity" in how:
        pruned = choose(B.square() / scale, "all", **how)
    for i in range(B.shape[1]):
        if "n_kept" in how and i % how["m_group"] == 0:
            group = slice(i, i + how["m_group"])
            pruned[:, group] = choose(B[:, group].square() / scale[group], "all", **how)
        kept = B[:, i].masked_fill(pruned[:, i], 0)
        error = (B[:, i] - kept) / U[i, i]
        B[:, i:] -= error[:, None] * U[i, i:][None]
        B[:, i], E[:, i] = kept, error
    return B, E


def sparsegpt(weight, inputs, how):
    "Blocks of 128 columns; what a block loses is made up for by the columns after it"
    U, W = inverse_factor(inputs), weight.clone()
    for a in range(0, W.shape[1], 128):
        b = min(W.shape[1], a + 128)
        W[:, a:b], E = prune_block(W[:, a:b].clone(), U[a:b, a:b], how)
        W[:, b:] -= E @ U[a:b, b:]
    weight.copy_(W)


class Stop(Exception):
    "Ends a forward pass before the first block"


def first_inputs(model, layer, autocast):
    "(hidden states, other arguments) of the first block, batch by batch"
    hidden, rest = [], []

    def catch(module, positional, named):
        hidden.append(positional[0])
        rest.append(named)
        raise Stop

    hook = layer.register_forward_pre_hook(catch, with_kwargs=True)
    for ids in batches:
        with contextlib.suppress(Stop), autocast:
            model(input_ids=ids)
    hook.remove()
    return hidden, rest


def run_block(layer, hidden, rest):
    return [layer(h, **named) for h, named in zip(hidden, rest, strict=True)]


def inputs_of(layer, hidden, rest):
    "Linear layer -> its inputs (tokens, n), batch by batch"
    inputs = {m: [] for m in layer.modules() if isinstance(m, nn.Linear)}

    def keep(module, positional):
        x = positional[0]
        inputs[module].append(x.reshape(-1, x.shape[-1]))

    hooks = [m.register_forward_pre_hook(keep) for m in inputs]
    run_block(layer, hidden, rest)
    for hook in hooks:
        hook.remove()
    return inputs


@torch.no_grad()
def straightforward(method, how):
    "smollm2 pruned block by block"
    model = load_decoder(source)
    model.config.use_cache = False
    half = precision == "bf16"
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False)
    layers = model.model.layers
    hidden, rest = first_inputs(model, layers[0], autocast)
    for layer in layers:
        with autocast:
            inputs = inputs_of(layer, hidden, rest)
        for linear, seen in inputs.items():
            method(linear.weight, seen, how)
        del inputs
        with autocast:
            hidden = run_block(layer, hidden, rest)
    return model


def ours(name, how, model=None):
    model = model or load_decoder(source)
    return make_masks(model, name, **how, calibration=text, precision=precision, apply=True)


def agreement(model, expected, names, exact):
    "Share of the weights named that are equal, or zero in both models or in neither"
    same, total = 0, 0
    for name in names:
        a, b = model.get_parameter(name).detach(), expected.get_parameter(name).detach()
        same += int(((a == b) if exact else ((a == 0) == (b == 0))).sum())
        total += a.numel()
    return same / total


def compare(name, theirs, how):
    "Same choices in the first block and overall, and bytes gained beside the masks"
    model = load_decoder(source)
    for p in model.parameters():  # a loaded file is mapped; its pages count when they are changed
        p.data = p.data.clone()
    with PeakMemory() as peak:
        masks = ours(name, how, model)
    gained = peak.most - sum(b.packed.nbytes for b in masks.bits.values())
    expected = straightforward(theirs, how)
    share = partial(agreement, model, expected, exact=name == "wanda")
    return dict(
        first=share([n for n in masks if ".layers.0." in n]), overall=share(masks), gained=gained
    )


results, equal = {}, 1
for name in args.method.split(","):
    theirs = dict(wanda=wanda, sparsegpt=sparsegpt)[name]
    for pattern, how in PATTERNS.items():
        found = compare(name, theirs, how)
        equal &= int(found["first"] >= (1 if name == "wanda" else 0.99))
        way = partial(straightforward, theirs, how)
        t = interleaved(dict(ours=partial(ours, name, how), straightforward=way), args.repeats)
        print(
            f"{name} {pattern}: ours {t['ours']:.1f} s, straightforward "
            f"{t['straightforward']:.1f} s; same choices in block 0 {found['first']:.4%}, "
            f"in all {found['overall']:.4%}; gained {found['gained'] / 1e6:.0f} MB beside the masks"
        )
        results[f"speedup_{name}_{pattern}"] = t["straightforward"] / t["ours"]
        results[f"gained_mb_{name}_{pattern}"] = found["gained"] / 1e6
hidden_mb = text.input_ids.numel() * 576 * 4 / 1e6
print(
    f"the hidden states of the text take {hidden_mb:.0f} MB, the largest Hessian "
    f"{LARGEST / 1e6:.0f} MB, the model's prunable weights 425 MB"
)
closing(
    speedup=min(v for k, v in results.items() if k.startswith("speedup")),
    peak_mb=max(v for k, v in results.items() if k.startswith("gained")),
    equal=equal,
    **results,
)
