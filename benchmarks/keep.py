"""Keeping masks for one optimizer step, in minilm's and roberta-large's size: ours, the authors' multiply-and-reassign per tensor, and the whole step.

A step is forward, backward and fused AdamW on a batch of 16 sequences of 64 tokens; for roberta-large's size the encoder's shapes are built from a configuration.
"""
import torch
from common import arguments, closing, interleaved
from transformers import BertConfig, BertForSequenceClassification
from transformers.trainer_callback import TrainerControl, TrainerState

from junkdna_nb.pruning import make_masks
from junkdna_nb.transfer import MaskCallback

args = arguments(size="minilm")
sizes = dict(minilm=dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
             large=dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096))
results = {}
for size in args.size.split(","):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**sizes[size], vocab_size=1000))
    masks = make_masks(model, sparsity=0.5)
    params = masks.parameters(model)
    batch = dict(input_ids=torch.randint(0, 1000, (16, 64)), labels=torch.randint(0, 2, (16,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def whole_step():
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    whole_step()
    authors_state = {n: p.detach().clone() for n, p in params.items()}
    float_masks = {n: masks[n].float() for n in masks}

    def authors_sparse():
        for n, p in params.items():
            p.data = p.data * float_masks[n]

    def authors_frozen():
        for n, p in params.items():
            p.data = p.data * float_masks[n] + authors_state[n] * (1 - float_masks[n])

    class Arguments:
        output_dir = "."
    for mode in ("sparse", "dense_frozen"):
        masks = make_masks(model, sparsity=0.5)
        callback = MaskCallback(masks, mode)
        callback.on_train_begin(Arguments, TrainerState(), TrainerControl(), model=model)
        for p in params.values():
            p.grad = torch.randn_like(p)

        def ours():
            for p in params.values():   # the gradient hooks, once per backward pass
                for hook in p._post_accumulate_grad_hooks.values():
                    hook(p)
            callback.on_step_end(None, None, None)
        t = interleaved(dict(ours=ours, authors=authors_sparse if mode == "sparse" else authors_frozen), args.repeats * 3)
        callback.on_train_end(None, None, None)
        optimizer.zero_grad()
        step = interleaved(dict(step=whole_step), args.repeats)["step"]
        name = f"{size}_{mode}"
        results |= {f"speedup_{name}": t["authors"] / t["ours"], f"share_{name}": t["ours"] / (step + t["ours"])}
        print(f"{name:22} ours {1e3 * t['ours']:.1f} ms, authors {1e3 * t['authors']:.1f} ms, whole step {1e3 * step:.0f} ms")
closing(speedup=min(v for k, v in results.items() if k.startswith("speedup")), share_of_step=max(v for k, v in results.items() if k.startswith("share")), **results)
