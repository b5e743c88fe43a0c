"""Log-likelihoods of options on smollm2: ours, and lm-evaluation-harness's HFLM, the same items and prompts, in turns.

ARC-Easy and SciQ with five demonstrations where $JUNKDNA_MIRROR has them, else the packaged facts and QuaRTz. In float32; with --precision bf16 both models hold bf16 weights.
With --context: many questions about one long passage (ten profiles of countries), four options each.
"""
import contextlib
import io
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import arguments, closing, interleaved

from junkdna_nb.base.models import cast_, load_decoder, load_tokenizer, resolve_model
from junkdna_nb.base.questions import (
    demonstrations,
    load_questions,
    prompt,
    with_options,
    with_passages,
)
from junkdna_nb.decoding.scoring import Scorer, make_request

args = arguments(n=40, shots=5, precision="fp32", context=0, batch_size=16, repeats=2)
with contextlib.redirect_stderr(io.StringIO()):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
source = resolve_model("smollm2")
tokenizer, model = load_tokenizer(source), load_decoder(source)
if args.precision == "bf16":
    cast_(model, torch.bfloat16)
theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=args.batch_size, device="cpu", add_bos_token=False)


def asked(task):
    "(prompt, options) of every question"
    data = load_questions(task, args.n)
    return [(prompt(q, demonstrations(data, args.shots, question=q)), q.options) for q in data.asked], [q.gold for q in data.asked]


def about_one_passage():
    data = load_questions("facts", keep=lambda q: len(q.options) >= 4)
    first = data.asked[0]
    passages = with_passages(data, first, 9, 0.5)
    inside = [q for q in data.asked if q.passage in passages][:args.n]
    return [(prompt(q, passages=passages), with_options(q, 4).options) for q in inside], [with_options(q, 4).gold for q in inside]


mirror = (Path(os.environ.get("JUNKDNA_MIRROR", "/nowhere")) / "allenai").is_dir()
work = dict(passage=about_one_passage) if args.context else {t: partial(asked, t) for t in (("arc_easy", "sciq") if mirror else ("facts", "quartz"))}
results, differences, same = {}, [], []
for name, make in work.items():
    items, golds = make()
    pairs = [(c, " " + o) for c, options in items for o in options]

    def run_ours():
        return [r.total for r in Scorer(model).score([make_request(tokenizer, c, o) for c, o in pairs])]

    def run_theirs():
        with contextlib.redirect_stderr(io.StringIO()):
            return [r[0] for r in theirs.loglikelihood([Instance("loglikelihood", {}, p, i) for i, p in enumerate(pairs)], disable_tqdm=True)]

    a, b = np.array(run_ours()), np.array(run_theirs())
    differences.append(np.abs(a - b).max())
    cuts = np.cumsum([len(options) for _, options in items])[:-1]
    chosen = [[int(s.argmax()) for s in np.split(x, cuts)] for x in (a, b)]
    same.append(np.mean(np.equal(*chosen)))
    t = interleaved(dict(ours=run_ours, harness=run_theirs), args.repeats)
    tokens = sum(len(tokenizer(c + o)["input_ids"]) for c, o in pairs)
    print(f"{name}: {len(items)} questions, {len(pairs)} options, {tokens:,} tokens; ours {t['ours']:.1f} s, harness {t['harness']:.1f} s; accuracy {np.mean(np.equal(chosen[0], golds)):.3f}, harness {np.mean(np.equal(chosen[1], golds)):.3f}", flush=True)
    results[f"speedup_{name}"] = t["harness"] / t["ours"]
closing(precision=args.precision, speedup=min(results.values()), **results, max_abs_diff=float(max(differences)), same_choices=float(np.mean(same)))
