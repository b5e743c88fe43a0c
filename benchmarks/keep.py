"""Keeping masks for one optimizer step, in minilm's and roberta-large's size: ours, and the authors' multiply-and-reassign per tensor, each timed where it happens inside real training steps, in turns.

A step is forward, backward and fused AdamW (no weight decay, as in the recipe) on a batch of 16 sequences of 64 tokens; the models are built from a configuration in minilm's shape and in the shape of roberta-large's encoder.

Both ways are bound by memory. In sparse mode ours reads gradient and mask and writes the gradient, 12 bytes a weight; the anchor reads weight and mask and writes a new weight, 12 bytes and the cost of fresh memory: little is to be gained there. With freezing the anchor moves 44. Sparse-to-dense keeps no mask after the start.

`speedup` is that of the work as a whole, all modes of one size together, for the size where it is less; the modes stand beside it.
"""
import statistics
import time

import torch
from common import arguments, closing
from transformers import BertConfig, BertForSequenceClassification
from transformers.trainer_callback import TrainerControl, TrainerState

from junkdna_nb.transfer import modes
from junkdna_nb.compression.pruning import make_masks

args = arguments(size="minilm,large", repeats=24)   # a third of them for the large model
sizes = dict(minilm=dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
             large=dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096))
spent, ours_in_turn, unmasked = 0.0, True, modes._mask_gradient


def timed(run):
    def wrapper(*a):
        global spent
        start = time.perf_counter()
        run(*a)
        spent += time.perf_counter() - start
    return wrapper


def mask_gradient(keep):
    masked = timed(unmasked(keep))
    return lambda p: masked(p) if ours_in_turn else None


modes._mask_gradient = mask_gradient


class Arguments:
    output_dir = "."


results, speedups = {}, []
for size in args.size.split(","):
    both = []   # seconds of ours and of theirs, by mode
    for mode in ("sparse", "dense_frozen"):
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(**sizes[size], vocab_size=1000))
        masks = make_masks(model, sparsity=0.5)
        params = masks.parameters(model)
        batch = dict(input_ids=torch.randint(0, 1000, (16, 64)), labels=torch.randint(0, 2, (16,)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True, weight_decay=0.0)
        state = {n: p.detach().clone() for n, p in params.items()} if mode == "dense_frozen" else {}
        float_masks = {n: masks[n].float() for n in masks}

        def authors():
            for n, p in params.items():
                p.data = p.data * float_masks[n] + state[n] * (1 - float_masks[n]) if state else p.data * float_masks[n]

        def step(after):
            "(seconds of the step, seconds spent on masks)"
            global spent
            spent, start = 0.0, time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            timed(after)()
            optimizer.zero_grad()
            return time.perf_counter() - start, spent

        callback = modes.MaskCallback(masks, mode)
        callback.on_train_begin(Arguments, TrainerState(), TrainerControl(), model=model, optimizer=optimizer)
        times = dict(ours=[], authors=[])
        for repeat in range(args.repeats // (3 if size == "large" else 1) + 1):
            ours_in_turn = True
            ours = step(lambda: callback.on_step_end(None, None, TrainerControl()))
            ours_in_turn = False
            theirs = step(authors)
            if repeat:   # the first is warm-up
                times["ours"].append(ours)
                times["authors"].append(theirs)
        whole, kept = (statistics.median(t[i] for t in times["ours"]) for i in (0, 1))
        theirs, name = statistics.median(t[1] for t in times["authors"]), f"{size}_{mode}"
        both.append((kept, theirs))
        results |= {f"speedup_{name}": theirs / kept, f"share_{name}": kept / whole}
        print(f"{name:22} ours {1e3 * kept:.1f} ms, authors {1e3 * theirs:.1f} ms, whole step {1e3 * whole:.0f} ms", flush=True)
        for hook in callback._hooks:
            hook.remove()
        del model, optimizer, params, callback, masks, float_masks, state
    speedups.append(sum(t for _, t in both) / sum(t for t, _ in both))
closing(speedup=min(speedups), share_of_step=max(v for k, v in results.items() if k.startswith("share")), **results)
