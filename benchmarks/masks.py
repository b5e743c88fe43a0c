"""Global magnitude masks over 302 M weights, against the authors' way and torch's own pruning.

With --levels 9: nine sparsities at once. The anchors are re-implementations of the described
method: concatenate all magnitudes, sort them fully, compare.
"""

import torch
from common import arguments, closing, encoder_weights, interleaved
from torch import nn

from junkdna_nb.compression.compress import PeakMemory
from junkdna_nb.compression.selection import nested_smallest, prune_count, smallest

args = arguments(levels=1, layers=24, anchors=1)
weights = encoder_weights(args.layers)
n = sum(w.numel() for w in weights)


def ours(sparsity=0.5):
    return smallest(weights, sparsity, absolute=True)[0]


def magnitudes():
    return torch.cat([w.abs().reshape(-1) for w in weights])


def authors():
    threshold = torch.topk(magnitudes(), n - prune_count(n, 0.5), sorted=True).values[-1]
    return [w.abs() > threshold for w in weights]


def torch_prune():
    from torch.nn.utils import prune

    modules = []
    for w in weights:
        module = nn.Module()
        module.weight = nn.Parameter(w, requires_grad=False)
        modules.append((module, "weight"))
    prune.global_unstructured(modules, prune.L1Unstructured, amount=0.5)
    return [module.weight_mask for module, _ in modules]


def one_read():
    return sum(float(w.sum()) for w in weights)


def levels(sparsities):
    return nested_smallest(weights, [prune_count(n, s) for s in sparsities], absolute=True).kept


def by_definition():
    "The flat mask at 0.5: of weights at the threshold the earlier ones are pruned"
    flat, k = magnitudes(), prune_count(n, 0.5)
    threshold = flat.kthvalue(k).values
    expected = flat > threshold
    at = (flat == threshold).nonzero().squeeze(1)
    expected[at[k - int((flat < threshold).sum()) :]] = True
    return expected


def is_exact(together, sparsities):
    "Is every level of the nested masks what its sparsity alone gives?"
    for i, sparsity in enumerate(sparsities):
        alone = ours(sparsity)
        if not all(torch.equal(a > i, b) for a, b in zip(together, alone, strict=True)):
            return False
    return True


def many():
    "All levels at once, against one level and against one after the other"
    sparsities = [round((i + 1) / (args.levels + 1), 6) for i in range(args.levels)]
    same = is_exact(levels(sparsities), sparsities)

    def together():
        return levels(sparsities)

    def separately():
        for _ in sparsities:
            ours()

    contenders = dict(together=together, one=ours, separately=separately)
    t = interleaved(contenders, args.repeats, once=("separately",))
    print(
        f"{args.levels} sparsities of {n / 1e6:.0f} M weights: {t['together']:.2f} s together, "
        f"{t['one']:.2f} s one, {t['separately']:.2f} s one after the other"
    )
    closing(
        weights=n,
        levels=args.levels,
        ratio_to_one=t["together"] / t["one"],
        speedup_separately=t["separately"] / t["together"],
        exact=int(same),
    )


def one():
    "One level, against the anchors and against reading the weights once"
    with PeakMemory() as peak:  # first of all, while no freed memory can be used again unseen
        masks = ours()
    extra = (peak.most - n) / (4 * n)  # beyond the weights and the masks, one byte each
    exact = int(torch.equal(torch.cat([m.reshape(-1) for m in masks]), by_definition()))
    del masks
    contenders = dict(ours=ours, one_read=one_read)
    if args.anchors:
        contenders |= dict(authors=authors, torch_prune=torch_prune)
    t = interleaved(contenders, args.repeats, once=("authors", "torch_prune"))
    for name, seconds in t.items():
        print(f"{name:12} {seconds:8.2f} s")
    speed = {f"speedup_{a}": t[a] / t["ours"] for a in ("authors", "torch_prune") if a in t}
    closing(
        weights=n,
        seconds=t["ours"],
        **speed,
        extra_memory=extra,
        reads=t["ours"] / t["one_read"],
        exact=exact,
    )


if args.levels == 1:
    one()
else:
    many()
