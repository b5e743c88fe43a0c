"""Log-likelihoods of options on smollm2: ours, and lm-evaluation-harness's HFLM, in turns.

Both get the same items and prompts: ARC-Easy and SciQ with five demonstrations where
$JUNKDNA_MIRROR has them, else the packaged facts and QuaRTz. Where the processor has bf16, or with
--precision bf16, both models hold bf16 weights; answers are compared with --precision fp32. With
--context: many questions about one long passage (ten profiles of countries), four options each; and
the free answers of 04_context at its default levels, half as many questions, against the plain way,
which generates one prompt after the other.
"""

import contextlib
import io
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import arguments, closing, interleaved

from junkdna_nb.base.config import machine_precision
from junkdna_nb.base.experiments import ContextConfig
from junkdna_nb.base.models import cast_, load_decoder, load_tokenizer, resolve_model
from junkdna_nb.base.questions import (
    demonstrations,
    load_questions,
    prompt,
    with_options,
    with_passages,
)
from junkdna_nb.decoding.axes import prepare
from junkdna_nb.decoding.scoring import Scorer, generate_answers, make_request

args = arguments(n=40, shots=5, precision="auto", context=0, batch_size=16, repeats=2)
args.precision = machine_precision(args.precision)
with contextlib.redirect_stderr(io.StringIO()):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
source = resolve_model("smollm2")
tokenizer, model = load_tokenizer(source), load_decoder(source)
if args.precision == "bf16":
    cast_(model, torch.bfloat16)
theirs = HFLM(
    pretrained=model,
    tokenizer=tokenizer,
    batch_size=args.batch_size,
    device="cpu",
    add_bos_token=False,
)


def asked(task):
    "(prompt, options, index of the answer) of every question"
    data = load_questions(task, args.n)
    shots = partial(demonstrations, data, args.shots)
    return [(prompt(q, shots(question=q)), q.options, q.gold) for q in data.asked]


def about_one_passage():
    "The same of questions whose answers stand in ten profiles of countries"
    data = load_questions("facts", keep=lambda q: len(q.options) >= 4)
    passages = with_passages(data, data.asked[0], 9, 0.5)
    inside = [q for q in data.asked if q.passage in passages][: args.n]
    four = [with_options(q, 4) for q in inside]
    texts = [prompt(q, passages=passages) for q in inside]
    return [(text, q.options, q.gold) for text, q in zip(texts, four, strict=True)]


def run_ours(pairs):
    requests = [make_request(tokenizer, context, option) for context, option in pairs]
    return [result.total for result in Scorer(model).score(requests)]


def run_theirs(pairs):
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    with contextlib.redirect_stderr(io.StringIO()):
        return [result[0] for result in theirs.loglikelihood(requests, disable_tqdm=True)]


def write_ours(prompts):
    return generate_answers(model, tokenizer, prompts, config.max_tokens)


def write_plainly(prompts):
    "Each prompt by itself, to the end of a line"
    how = dict(do_sample=False, max_new_tokens=config.max_tokens, stop_strings=["\n"])
    answers = []
    for text in prompts:
        ids = tokenizer(text, return_tensors="pt")
        made = model.generate(**ids, **how, tokenizer=tokenizer)[0, ids["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(made, skip_special_tokens=True).split("\n")[0].strip())
    return answers


def compare_answers():
    "Seconds for the prompts of all levels, and how many answers are the same"
    prompts = []
    for condition in prepare(config).conditions:
        prompts += condition.contexts
    ours, theirs = write_ours(prompts), write_plainly(prompts)
    contenders = dict(ours=partial(write_ours, prompts), plain=partial(write_plainly, prompts))
    t = interleaved(contenders, args.repeats)
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in prompts)
    print(
        f"answers: {config.max_eval} questions, passages {config.passages}, {len(prompts)} "
        f"prompts, {tokens:,} tokens; ours {t['ours']:.1f} s, one by one {t['plain']:.1f} s",
        flush=True,
    )
    return t["plain"] / t["ours"], float(
        np.mean([a == b for a, b in zip(ours, theirs, strict=True)])
    )


def choices(totals, cuts):
    "Index of the best option of every question"
    return [int(part.argmax()) for part in np.split(totals, cuts)]


mirror = (Path(os.environ.get("JUNKDNA_MIRROR", "/nowhere")) / "allenai").is_dir()
tasks = ("arc_easy", "sciq") if mirror else ("facts", "quartz")
work = {task: partial(asked, task) for task in tasks}
if args.context:
    work = dict(passage=about_one_passage)
results, differences, same = {}, [], []
for name, make in work.items():
    items, pairs = make(), []
    for context, options, _ in items:
        pairs += [(context, " " + option) for option in options]
    a, b = np.array(run_ours(pairs)), np.array(run_theirs(pairs))
    differences.append(np.abs(a - b).max())
    cuts = np.cumsum([len(options) for _, options, _ in items])[:-1]
    gold = [gold for _, _, gold in items]
    chosen, anchor = choices(a, cuts), choices(b, cuts)
    same.append(np.mean(np.equal(chosen, anchor)))
    contenders = dict(ours=partial(run_ours, pairs), harness=partial(run_theirs, pairs))
    t = interleaved(contenders, args.repeats)
    tokens = sum(len(tokenizer(c + o)["input_ids"]) for c, o in pairs)
    print(
        f"{name}: {len(items)} questions, {len(pairs)} options, {tokens:,} tokens; "
        f"ours {t['ours']:.1f} s, harness {t['harness']:.1f} s; accuracy "
        f"{np.mean(np.equal(chosen, gold)):.3f}, harness {np.mean(np.equal(anchor, gold)):.3f}",
        flush=True,
    )
    results[f"speedup_{name}"] = t["harness"] / t["ours"]
speedup = min(results.values())
if args.context:
    config = ContextConfig(max_eval=max(1, args.n // 2), precision=args.precision)
    results["speedup_answers"], same_answers = compare_answers()
    results["same_answers"] = same_answers
closing(
    precision=args.precision,
    speedup=speedup,
    **results,
    max_abs_diff=float(max(differences)),
    same_choices=float(np.mean(same)),
)
