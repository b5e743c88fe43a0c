"""Wanda and SparseGPT on smollm2, 50 % and 2:4, against a straightforward implementation of the papers' formulas.

The straightforward way keeps each linear layer's own statistic (an input shared by three layers is measured three times), visits column by column, and chooses masks by a full sort. Both walk block by block
through the same windows in the same precision. `equal` says whether the
pruned weights agree: exactly for Wanda; for SparseGPT at least 99 % of the zeros in the first block, where both see the same inputs (later blocks multiply rounding differences).
Peak memory is what the process gained while pruning, masks apart; the sizes of the text's hidden states, of the largest Hessian and of the model are printed for comparison.
"""
import torch
from common import arguments, closing, interleaved
from torch import nn

from junkdna_nb.base.text import load_text
from junkdna_nb.compression.compress import PeakMemory
from junkdna_nb.base.models import load_decoder, load_tokenizer, resolve_model, resolve_precision
from junkdna_nb.compression.pruning import make_masks
from junkdna_nb.compression.selection import prune_count

args = arguments(repeats=2, windows=16, length=256, precision="auto")
source = resolve_model("smollm2")
text = load_text(load_tokenizer(source), windows=args.windows, length=args.length)
precision, batches = resolve_precision(args.precision), text.input_ids.split(8)
PATTERNS = dict(half=dict(sparsity=0.5), two_of_four=dict(pattern="nm", n_kept=2, m_group=4))


def choose(score, groups, sparsity=0.5, pattern="unstructured", n_kept=2, m_group=4):
    "Pruned flags: the smallest of each group of columns"
    rows, cols = score.shape
    if pattern == "nm":
        rank = score.view(rows, -1, m_group).argsort(dim=-1, stable=True).argsort(dim=-1)
        return (rank < m_group - n_kept).view(rows, cols)
    flat = score.reshape(1, -1) if groups == "all" else score
    k = prune_count(flat.shape[1], sparsity)
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, flat.argsort(dim=1, stable=True)[:, :k], True).view(rows, cols)


def wanda(weight, inputs, how):
    norms = sum(x.double().square().sum(0) for x in inputs).sqrt()
    weight.masked_fill_(choose(weight.abs().double() * norms, "rows", **how), 0)


def sparsegpt(weight, inputs, how):
    H = sum(x.float().T @ x.float() for x in inputs) / sum(len(x) for x in inputs)
    H.diagonal().add_(0.01 * H.diagonal().mean())
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    W, n = weight.clone(), weight.shape[1]
    for a in range(0, n, 128):
        b = min(n, a + 128)
        B, E, inner = W[:, a:b].clone(), torch.zeros(len(W), b - a), U[a:b, a:b]
        pruned = choose(B.square() / inner.diagonal().square(), "all", **how) if "sparsity" in how else torch.zeros_like(B, dtype=torch.bool)
        for i in range(b - a):
            if "n_kept" in how and i % how["m_group"] == 0:
                j = i + how["m_group"]
                pruned[:, i:j] = choose(B[:, i:j].square() / inner.diagonal()[i:j].square(), "all", **how)
            q = B[:, i].masked_fill(pruned[:, i], 0)
            e = (B[:, i] - q) / inner[i, i]
            B[:, i:] -= e[:, None] * inner[i, i:][None]
            B[:, i], E[:, i] = q, e
        W[:, a:b] = B
        W[:, b:] -= E @ U[a:b, b:]
    weight.copy_(W)


@torch.no_grad()
def straightforward(method, how):
    model = load_decoder(source)
    model.config.use_cache = False
    layers, hidden, rest = model.model.layers, [], []

    class Stop(Exception):
        pass

    def catch(module, positional, named):
        hidden.append(positional[0])
        rest.append(named)
        raise Stop
    hook = layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
    for ids in batches:
        try:
            with autocast:
                model(input_ids=ids)
        except Stop:
            pass
    hook.remove()
    for layer in layers:
        linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        inputs = {m: [] for m in linears}
        hooks = [m.register_forward_pre_hook(lambda m, a: inputs[m].append(a[0].reshape(-1, a[0].shape[-1]))) for m in linears]
        with autocast:
            for h, named in zip(hidden, rest):
                layer(h, **named)
        for h in hooks:
            h.remove()
        for m in linears:
            method(m.weight, inputs[m], how)
        with autocast:
            hidden = [layer(h, **named) for h, named in zip(hidden, rest)]
    return model


def ours(method, how):
    return make_masks(load_decoder(source), method, **how, calibration=text, precision=precision, apply=True)


results, equal = {}, 1
largest = 4 * 1536**2
for name, theirs in dict(wanda=wanda, sparsegpt=sparsegpt).items():
    for pattern, how in PATTERNS.items():
        model = load_decoder(source)
        for p in model.parameters():   # a loaded file is only mapped; its pages would be counted when they are changed
            p.data = p.data.clone()
        with PeakMemory() as peak:
            masks = make_masks(model, name, **how, calibration=text, precision=precision, apply=True)
        gained = peak.most - sum(m.numel() for m in masks.values())
        expected = straightforward(theirs, how)
        def agree(names):
            pairs = [(model.get_parameter(n).detach(), expected.get_parameter(n).detach()) for n in names]
            return sum(int(((a == b) if name == "wanda" else ((a == 0) == (b == 0))).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
        same, overall = agree([n for n in masks if ".layers.0." in n]), agree(masks)
        equal &= int(same == 1 if name == "wanda" else same >= 0.99)
        del model, masks, expected
        t = interleaved(dict(ours=lambda: ours(name, how), straightforward=lambda: straightforward(theirs, how)), args.repeats)
        print(f"{name} {pattern}: ours {t['ours']:.1f} s, straightforward {t['straightforward']:.1f} s; same choices in block 0 {same:.4%}, in all {overall:.4%}; gained {gained / 1e6:.0f} MB beside the masks")
        results |= {f"speedup_{name}_{pattern}": t["straightforward"] / t["ours"], f"gained_mb_{name}_{pattern}": gained / 1e6}
hidden_mb = text.input_ids.numel() * 576 * 4 / 1e6
print(f"the hidden states of the text take {hidden_mb:.0f} MB, the largest Hessian {largest / 1e6:.0f} MB, the model's prunable weights 425 MB")
closing(speedup=min(v for k, v in results.items() if k.startswith("speedup")), peak_mb=max(v for k, v in results.items() if k.startswith("gained")), equal=equal, **results)
