"""How `compress` grows with the model: seconds and memory on Llama-shaped decoders.

Random bf16 weights in the shapes of decoders with 135 M, 360 M and 1.1 B parameters; every run in a
process of its own. Calibrated methods do the same work in every block: `--blocks` of them are run,
and their seconds are scaled to all. Seconds are the processor's, of all threads, so that a machine
that does other things gives the same; wall seconds stand beside them.
Memory is what the process held at most above the model: `peak` with what is kept (masks, a bit a
weight, or codes, a byte), `beside` without it. `one block` is what a calibrated method may need: a
block in float32, its largest Hessian with three factors, and the hidden states of the text. An
exponent is the slope of log seconds over log prunable weights. --quick 1: the two smaller models,
two blocks.
"""

import json
import subprocess
import sys
import time

import numpy as np
import torch
from common import arguments, closing

SIZES = {  # million parameters -> hidden, inner, layers, heads, key-value heads, vocabulary, tied
    135: (576, 1536, 30, 9, 3, 49152, True),
    360: (960, 2560, 32, 15, 5, 49152, True),
    1100: (2048, 5632, 22, 32, 4, 32000, False),
}
METHODS = dict(
    magnitude=dict(sparsity=0.5),
    nm=dict(method="magnitude", pattern="nm", n_kept=2, m_group=4),
    wanda=dict(sparsity=0.5),
    sparsegpt=dict(sparsity=0.5),
    rtn=dict(bits=4),
    gptq=dict(bits=4),
)
CALIBRATED = "wanda", "sparsegpt", "gptq"


def decoder(size, blocks):
    "A decoder with random bf16 weights; `blocks`: at most so many layers, 0 for all"
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads, kv, vocabulary, tied = SIZES[size]
    layers = min(layers, blocks or layers)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model


def one_block(model, tokens):
    "Bytes of one block in float32, its largest Hessian four times, and the text's hidden states"
    config, block = model.config, model.model.layers[0]
    weights = sum(p.numel() for p in block.parameters() if p.ndim == 2)
    return 4 * weights + 16 * config.intermediate_size**2 + 8 * tokens * config.hidden_size


def measure(name, size, blocks):
    "Compress one model; print what it took as one line of JSON"
    from junkdna_nb.base.text import Calibration
    from junkdna_nb.compression.compress import compress
    from junkdna_nb.compression.masks import prunable

    calibrated, text = name in CALIBRATED, None
    model = decoder(size, blocks if calibrated else 0)
    if calibrated:
        ids = torch.randint(0, model.config.vocab_size, (args.windows, args.length))
        text = Calibration(ids, dict(source="random"))
    how = dict(METHODS[name])
    start = time.process_time()
    report = compress(model, how.pop("method", name), **how, calibration=text, progress=False)
    seconds, share = time.process_time() - start, len(model.model.layers) / SIZES[size][2]
    weights = sum(w.param.numel() for w in prunable(model))
    kept = weights // 8 if report.masks else weights
    print(
        json.dumps(
            dict(
                seconds=seconds / share,
                wall=report.seconds / share,
                peak=report.peak_memory_bytes,
                kept=kept,
                weights=2 * sum(p.numel() for p in model.parameters()),
                prunable=round(weights / share),
                one_block=one_block(model, args.windows * args.length),
            )
        )
    )


def measured(name, size):
    "The same in a process of its own"
    words = [sys.executable, __file__, "--run", f"{name}:{size}", "--blocks", str(args.blocks)]
    words += ["--windows", str(args.windows), "--length", str(args.length)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} {size} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def exponent(rows):
    "Slope of log seconds over log prunable weights"
    x, y = (np.log([row[k] for row in rows]) for k in ("prunable", "seconds"))
    return float(np.polyfit(x, y, 1)[0])


def report(name, size, row):
    "One line on a run"
    beside, ns = row["peak"] - row["kept"], 1e9 * row["seconds"] / row["prunable"]
    share = row["peak"] / row["weights"]
    limit = f", one block {row['one_block'] / 1e6:.0f} MB" if name in CALIBRATED else ""
    print(
        f"{name:9} {size:5} M: {row['seconds']:7.1f} s ({row['wall']:.1f} s wall), {ns:6.1f} ns a "
        f"weight; weights {row['weights'] / 1e6:.0f} MB, peak {row['peak'] / 1e6:.0f} MB "
        f"({share:.3f}), beside what is kept {beside / 1e6:.0f} MB{limit}",
        flush=True,
    )


def main():
    "All methods on all sizes, then what they have in common"
    found = {}
    for size in list(SIZES)[: 2 if args.quick else 3]:
        for name in METHODS:
            row = found[name, size] = measured(name, size)
            report(name, size, row)
    results, free = {}, ("magnitude", "nm")
    for name in METHODS:
        rows = [row for (n, _), row in found.items() if n == name]
        results[f"exponent_{name}"] = exponent(rows)
        largest = max(rows, key=lambda row: row["prunable"])
        results[f"ns_a_weight_{name}"] = 1e9 * largest["seconds"] / largest["prunable"]
    rows = [row for (name, _), row in found.items() if name in free]
    blocks = [row for (name, _), row in found.items() if name in CALIBRATED]
    closing(
        time_exponent=max(results[f"exponent_{name}"] for name in free),
        peak_over_weights=max(r["peak"] / r["weights"] for r in rows),
        peak_over_one_block=max((r["peak"] - r["kept"]) / r["one_block"] for r in blocks),
        **results,
    )


args = arguments(run="", quick=0, blocks=0, windows=4, length=128)
args.blocks = args.blocks or (2 if args.quick else 3)
if args.run:
    measure(args.run.split(":")[0], int(args.run.split(":")[1]), args.blocks)
else:
    main()
