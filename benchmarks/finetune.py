"""One epoch of minilm on 960 sentences (movie) and 960 pairs (pararule), sparse transfer at 50 %.

The authors' way, re-implemented: float32, batches in random order padded to their longest text,
AdamW tensor by tensor, the mask by multiplication and reassignment before each step.
Ours is `fine_tune` as an experiment calls it: bf16 where the processor has it, batches of similar
length, fused AdamW, the mask held on the bits.
GLUE's sentences and pairs are used where $JUNKDNA_MIRROR has them: sst2 and mrpc.
"""

import os
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import arguments, closing, interleaved

from junkdna_nb.base.config import machine_precision
from junkdna_nb.base.experiments import GlueConfig
from junkdna_nb.base.models import load_classifier, load_tokenizer, resolve_model
from junkdna_nb.base.records import seed_everything
from junkdna_nb.base.tasks import load_task
from junkdna_nb.compression.pruning import make_masks
from junkdna_nb.transfer.finetuning import encode, fine_tune
from junkdna_nb.transfer.modes import MaskCallback

args = arguments(n=960, repeats=3)
glue = (Path(os.environ.get("JUNKDNA_MIRROR", "/nowhere")) / "nyu-mll" / "glue").is_dir()
source = resolve_model("minilm")
tokenizer = load_tokenizer(source)


def ours(config, rows):
    model, fresh = load_classifier(source, 2, config.seed, tokenizer)
    callback = MaskCallback(make_masks(model, sparsity=0.5, newly_initialized=fresh), "sparse")
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(model, rows, tokenizer, config, folder, callback, machine_precision())


def padded(rows):
    "One batch: inputs padded to the longest text, and labels (n,)"
    rows = rows.remove_columns("length").to_list()
    labels = torch.tensor([r.pop("labels") for r in rows])
    return tokenizer.pad(rows, return_tensors="pt"), labels


def authors(config, rows):
    model, fresh = load_classifier(source, 2, config.seed, tokenizer)
    masks = make_masks(model, sparsity=0.5, newly_initialized=fresh)
    float_masks = {n: m.float() for n, m in masks.items()}
    seed_everything(config.seed)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=0.0, foreach=False
    )
    order = torch.randperm(len(rows)).tolist()
    for i in range(0, len(order), config.batch_size):
        batch, labels = padded(rows.select(order[i : i + config.batch_size]))
        model(**batch, labels=labels).loss.backward()
        for n, p in model.named_parameters():
            if n in float_masks:
                p.data = p.data * float_masks[n]
        optimizer.step()
        optimizer.zero_grad()


results = {}
tasks = dict(sentences="sst2", pairs="mrpc") if glue else dict(sentences="movie", pairs="pararule")
for kind, task in tasks.items():
    config = GlueConfig(task=task, max_train=args.n, epochs=1, sparsity=0.5)
    data = load_task(task, config.seed, max_train=args.n, max_eval=8)
    rows = encode(data.train, data.task.text, tokenizer, config.max_length)
    contenders = dict(ours=partial(ours, config, rows), authors=partial(authors, config, rows))
    t = interleaved(contenders, args.repeats)
    lengths = rows["length"]
    print(
        f"{kind} ({task}, n = {len(rows)}, {sum(lengths) / len(lengths):.0f} tokens on average, "
        f"{max(lengths)} at most): ours {t['ours']:.1f} s, authors {t['authors']:.1f} s"
    )
    results[f"speedup_{kind}"] = t["authors"] / t["ours"]
    results[f"per_second_{kind}"] = args.n / t["ours"]
closing(speedup=min(v for k, v in results.items() if k.startswith("speedup")), **results)
