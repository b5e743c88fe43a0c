"""Global magnitude masks over 302 M weights, against the authors' way and torch's own pruning; or, with --levels 9, nine sparsities at once.

The anchors are re-implementations of the described method: concatenate all magnitudes, sort them fully, compare.
"""
import torch
from common import arguments, closing, encoder_weights, interleaved
from torch import nn

from junkdna_nb.compression.compress import PeakMemory
from junkdna_nb.compression.selection import nested_smallest, prune_count, smallest

args = arguments(levels=1, layers=24, anchors=1)
weights = encoder_weights(args.layers)
n = sum(w.numel() for w in weights)


def ours(): return smallest(weights, 0.5, absolute=True)[0]


def authors():
    flat = torch.cat([w.abs().reshape(-1) for w in weights])
    threshold = torch.topk(flat, n - prune_count(n, 0.5), sorted=True).values[-1]
    return [w.abs() > threshold for w in weights]


def torch_prune():
    from torch.nn.utils import prune
    modules = []
    for w in weights:
        m = nn.Module()
        m.weight = nn.Parameter(w, requires_grad=False)
        modules.append((m, "weight"))
    prune.global_unstructured(modules, prune.L1Unstructured, amount=0.5)
    return [m.weight_mask for m, _ in modules]


def one_read(): return sum(float(w.sum()) for w in weights)


def levels(sparsities): return nested_smallest(weights, [prune_count(n, s) for s in sparsities], absolute=True)[0]


if args.levels == 1:
    with PeakMemory() as peak:   # first of all, while no freed memory can be used again unseen
        masks = ours()
    extra = (peak.most - n) / (4 * n)   # beyond the weights and the masks, one byte each

if args.levels > 1:
    sparsities = [round((i + 1) / (args.levels + 1), 6) for i in range(args.levels)]
    together = levels(sparsities)
    same = all(torch.equal(a > i, b) for i, s in enumerate(sparsities) for a, b in zip(together, smallest(weights, s, absolute=True)[0]))
    del together
    t = interleaved(dict(together=lambda: levels(sparsities), one=ours, separately=lambda: [ours() and None for _ in sparsities]), args.repeats, once=("separately",))
    print(f"{args.levels} sparsities of {n / 1e6:.0f} M weights: {t['together']:.2f} s together, {t['one']:.2f} s one, {t['separately']:.2f} s one after the other")
    closing(weights=n, levels=args.levels, ratio_to_one=t["together"] / t["one"], speedup_separately=t["separately"] / t["together"], exact=int(same))
else:
    flat = torch.cat([w.abs().reshape(-1) for w in weights])
    k = prune_count(n, 0.5)
    t = flat.kthvalue(k).values
    expected = flat > t
    at = (flat == t).nonzero().squeeze(1)
    expected[at[k - int((flat < t).sum()):]] = True
    exact = int(torch.equal(torch.cat([m.reshape(-1) for m in masks]), expected))
    del flat, expected, masks
    contenders = dict(ours=ours, one_read=one_read)
    if args.anchors:
        contenders |= dict(authors=authors, torch_prune=torch_prune)
    t = interleaved(contenders, args.repeats, once=("authors", "torch_prune"))
    for name, seconds in t.items():
        print(f"{name:12} {seconds:8.2f} s")
    speed = {f"speedup_{a}": t[a] / t["ours"] for a in ("authors", "torch_prune") if a in t}
    closing(weights=n, seconds=t["ours"], **speed, extra_memory=extra, reads=t["ours"] / t["one_read"], exact=exact)
