"""Keeping masks for one optimizer step: ours, and the authors' multiply-and-reassign per tensor.

Each is timed where it happens inside real training steps, in turns. A step is forward, backward
and fused AdamW (no weight decay, as in the recipe) on a batch of 16 sequences of 64 tokens, in bf16
where the processor has it. The models have minilm's shape and that of roberta-large's encoder.

Both ways are bound by memory. In sparse mode ours reads gradient and mask and writes the gradient,
12 bytes a weight. The anchor reads weight and mask and writes a new weight, 12 bytes and the cost
of fresh memory: little is to be gained there. With freezing the anchor moves 44.
Sparse-to-dense keeps no mask after the start.

`speedup` is that of the work as a whole, all modes of one size together, for the size where it is
less; the modes stand beside it.
"""

import statistics
import time
from functools import partial

import torch
from common import arguments, closing
from transformers import BertConfig, BertForSequenceClassification
from transformers.trainer_callback import TrainerControl, TrainerState

from junkdna_nb.base.config import machine_precision
from junkdna_nb.compression.pruning import make_masks
from junkdna_nb.transfer import modes

SIZES = dict(
    minilm=dict(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    large=dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
)


class Clock:
    "Seconds spent on masks since the last reset; gradient hooks act while `ours` is True"

    def __init__(self):
        self.spent, self.ours = 0.0, True

    def timed(self, run, *args):
        start = time.perf_counter()
        run(*args)
        self.spent += time.perf_counter() - start


clock, unmasked = Clock(), modes._mask_gradient


def mask_gradient(keep):
    "The package's gradient hook, timed, and without effect when it is the authors' turn"
    masked = unmasked(keep)
    return lambda p: clock.timed(masked, p) if clock.ours else None


modes._mask_gradient = mask_gradient


class Arguments:
    output_dir = "."


def authors(params, float_masks, state):
    "Multiply and reassign, tensor by tensor; with a state the masked weights return to it"
    for name, p in params.items():
        kept = p.data * float_masks[name]
        p.data = kept + state[name] * (1 - float_masks[name]) if state else kept


def step(model, batch, optimizer, after):
    "(seconds of the step, seconds spent on masks)"
    clock.spent, start = 0.0, time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=machine_precision() == "bf16"):
        loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    clock.timed(after)
    optimizer.zero_grad()
    return time.perf_counter() - start, clock.spent


def measure(size, mode, repeats):
    "Medians in seconds: of a whole step of ours, of ours on masks, of the authors' on masks"
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES[size], vocab_size=1000))
    masks = make_masks(model, sparsity=0.5)
    params = masks.parameters(model)
    batch = dict(input_ids=torch.randint(0, 1000, (16, 64)), labels=torch.randint(0, 2, (16,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True, weight_decay=0.0)
    state = {n: p.detach().clone() for n, p in params.items()} if mode == "dense_frozen" else {}
    float_masks = {n: masks[n].float() for n in masks}
    callback = modes.MaskCallback(masks, mode)
    control = TrainerControl()
    callback.on_train_begin(Arguments, TrainerState(), control, model=model, optimizer=optimizer)
    turns = {
        True: partial(callback.on_step_end, None, None, TrainerControl()),
        False: partial(authors, params, float_masks, state),
    }
    times = {True: [], False: []}
    for repeat in range(repeats + 1):
        for is_ours, after in turns.items():
            clock.ours = is_ours
            seconds = step(model, batch, optimizer, after)
            if repeat:  # the first is warm-up
                times[is_ours].append(seconds)
    for hook in callback._hooks:
        hook.remove()
    whole, kept = map(statistics.median, zip(*times[True], strict=True))
    return whole, kept, statistics.median(spent for _, spent in times[False])


args = arguments(size="minilm,large", repeats=24)  # a sixth of them for the large model
results, speedups = {}, []
for size in args.size.split(","):
    ours, theirs = 0.0, 0.0
    for mode in ("sparse", "dense_frozen"):
        repeats = args.repeats // (6 if size == "large" else 1)
        whole, kept, anchor = measure(size, mode, repeats)
        ours, theirs, name = ours + kept, theirs + anchor, f"{size}_{mode}"
        results |= {f"speedup_{name}": anchor / kept, f"share_{name}": kept / whole}
        print(
            f"{name:22} ours {1e3 * kept:.1f} ms, authors {1e3 * anchor:.1f} ms, "
            f"whole step {1e3 * whole:.0f} ms",
            flush=True,
        )
    speedups.append(theirs / ours)
closing(
    speedup=min(speedups),
    share_of_step=max(v for k, v in results.items() if k.startswith("share")),
    **results,
)
