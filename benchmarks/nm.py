"4:8 masks over 302 M weights, against a loop over groups of columns and a grouped top-k."

import torch
from common import arguments, closing, encoder_weights, interleaved

from junkdna_nb.compression.selection import n_of_m

args = arguments(layers=24, n_kept=4, m_group=8)
weights = encoder_weights(args.layers)
n, m = args.n_kept, args.m_group


def ours():
    return n_of_m(weights, n, m, absolute=True)[0]


def authors():
    "As the authors do: one group of columns after another"
    masks = []
    for w in weights:
        score, mask = w.abs(), torch.ones_like(w, dtype=torch.bool)
        for c in range(0, w.shape[1], m):
            group = score[:, c : c + m]
            pruned = torch.topk(group, group.shape[1] - n, dim=1, largest=False).indices
            mask.scatter_(1, c + pruned, False)
        masks.append(mask)
    return masks


def without(groups, pruned, shape):
    "The mask that keeps all of each group but its pruned positions"
    return torch.ones_like(groups, dtype=torch.bool).scatter_(1, pruned, False).view(shape)


def grouped_topk():
    masks = []
    for w in weights:
        groups = w.abs().view(-1, m)
        pruned = torch.topk(groups, m - n, dim=1, largest=False).indices
        masks.append(without(groups, pruned, w.shape))
    return masks


def by_definition(w):
    "A stable sort of every group: the earlier of equal scores is pruned first"
    groups = w.abs().view(-1, m)
    return without(groups, groups.sort(dim=1, stable=True).indices[:, : m - n], w.shape)


same = all(torch.equal(a, by_definition(w)) for a, w in zip(ours(), weights, strict=True))
contenders = dict(ours=ours, authors=authors, grouped_topk=grouped_topk)
t = interleaved(contenders, args.repeats, once=("authors",))
for name, seconds in t.items():
    print(f"{name:12} {seconds:8.2f} s")
closing(
    weights=sum(w.numel() for w in weights),
    seconds=t["ours"],
    speedup=t["authors"] / t["ours"],
    speedup_grouped_topk=t["grouped_topk"] / t["ours"],
    exact=int(same),
)
