"4:8 masks over 302 M weights, against a loop over column groups, as the authors do, and a grouped top-k."
import torch
from common import arguments, closing, encoder_weights, interleaved

from junkdna_nb.compression.selection import n_of_m

args = arguments(layers=24, n_kept=4, m_group=8)
weights = encoder_weights(args.layers)
n, m = args.n_kept, args.m_group


def ours(): return n_of_m(weights, n, m, absolute=True)[0]


def authors():
    masks = []
    for w in weights:
        score, mask = w.abs(), torch.ones_like(w, dtype=torch.bool)
        for c in range(0, w.shape[1], m):
            group = score[:, c:c + m]
            mask.scatter_(1, c + torch.topk(group, group.shape[1] - n, dim=1, largest=False).indices, False)
        masks.append(mask)
    return masks


def grouped_topk():
    return [torch.ones(w.numel() // m, m, dtype=torch.bool).scatter_(1, torch.topk(w.abs().view(-1, m), m - n, dim=1, largest=False).indices, False).view(w.shape) for w in weights]


def by_definition(w):
    "A stable sort of every group: the earlier of equal scores is pruned first"
    g = w.abs().view(-1, m)
    return torch.ones_like(g, dtype=torch.bool).scatter_(1, g.sort(dim=1, stable=True).indices[:, :m - n], False).view(w.shape)


same = all(torch.equal(a, by_definition(w)) for a, w in zip(ours(), weights))
t = interleaved(dict(ours=ours, authors=authors, grouped_topk=grouped_topk), args.repeats, once=("authors",))
for name, seconds in t.items():
    print(f"{name:12} {seconds:8.2f} s")
closing(weights=sum(w.numel() for w in weights), seconds=t["ours"], speedup=t["authors"] / t["ours"], speedup_grouped_topk=t["grouped_topk"] / t["ours"], exact=int(same))
