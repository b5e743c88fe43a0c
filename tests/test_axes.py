"The experiments with decoders, on a real model: padding, precision and memory change nothing."

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, command, committed_files
from hub import tiny_llama
from test_scoring import decoder, naive

from junkdna_nb.base.config import StudyError
from junkdna_nb.base.experiments import (
    SCORE_NAMES,
    TEMPLATES,
    ContextConfig,
    FormatConfig,
    OptionsConfig,
    ShotsConfig,
    closing_lines,
    get_experiment,
)
from junkdna_nb.base.models import cast_, load_decoder, load_tokenizer, resolve_model
from junkdna_nb.base.questions import (
    QUESTIONS,
    STYLES,
    chat_template,
    demonstrations,
    load_questions,
    prompt,
    with_options,
    with_passages,
)
from junkdna_nb.base.records import find_record, load_items, load_levels
from junkdna_nb.decoding import axes, curves, scoring
from junkdna_nb.decoding.scoring import (
    SCORES,
    Request,
    Scorer,
    generate_answers,
    make_request,
    score_options,
)


@pytest.fixture(scope="module")
def smollm2():
    source = resolve_model("smollm2")
    return load_decoder(source), load_tokenizer(source)


def spaced(options):
    "Options as continuations of a prompt"
    return [f" {o}" for o in options]


@pytest.fixture(scope="module")
def asked():
    "(prompt, option) pairs: options of one token and of many, prompts of many lengths, one twice"
    data = load_questions("facts", max_eval=10)
    pairs = []
    for i, q in enumerate(data.asked):
        text = prompt(q, demonstrations(data, i % 3, question=q))
        pairs += [(text, f" {o}") for o in q.options[:3]]
    return pairs + [
        (pairs[0][0], pairs[0][1].strip()),
        (pairs[0][0], " Yes"),
        (pairs[0][0], " No"),
    ]  # without its leading space an option is other tokens


@torch.no_grad()
def padded(model, tokenizer, requests, side):
    "Log-likelihoods from one padded batch, positions counted from the first real token"
    width = max(len(r.context + r.continuation) for r in requests)
    out = []
    rows = [list(r.context + r.continuation) for r in requests]
    blank = [[tokenizer.pad_token_id] * (width - len(r)) for r in rows]
    ids = torch.tensor(
        [b + r if side == "left" else r + b for r, b in zip(rows, blank, strict=True)]
    )
    mask = torch.tensor(
        [
            [0] * len(b) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(b)
            for r, b in zip(rows, blank, strict=True)
        ]
    )
    logp = (
        model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
        .logits.float()
        .log_softmax(-1)
    )
    for i, r in enumerate(requests):
        first = (width - len(rows[i]) if side == "left" else 0) + len(r.context)
        at = torch.arange(first, first + len(r.continuation))
        out.append(float(logp[i, at - 1, ids[i, at]].sum()))
    return np.array(out)


@pytest.mark.parametrize("side", ["left", "right"])
def test_equals_padded_batches(smollm2, asked, side):
    "Tolerance: 1e-3 of a log-likelihood, in float32"
    model, tokenizer = smollm2
    requests = [make_request(tokenizer, c, o) for c, o in asked]
    assert {len(r.continuation) for r in requests} >= {1, 2} and len(
        {len(r.context) for r in requests}
    ) > 3
    expected = padded(model, tokenizer, requests, side)
    for scorer in (Scorer(model), Scorer(model, share=False)):
        assert np.allclose([s.total for s in scorer.score(requests)], expected, atol=1e-3)


def test_a_small_memory_gives_small_rows_and_the_same_numbers(smollm2, asked):
    model, tokenizer = smollm2
    requests = [make_request(tokenizer, c, o) for c, o in asked]
    small, large = Scorer(model, memory=40 << 20), Scorer(model)
    assert small.row_tokens < large.row_tokens and large.row_bytes(large.row_tokens) <= 1 << 30
    assert np.allclose(
        [s.total for s in small.score(requests)],
        [s.total for s in large.score(requests)],
        atol=1e-3,
    )


def test_rows_are_halved_when_memory_runs_out(smollm2, asked, monkeypatch):
    model, tokenizer = smollm2
    requests = [make_request(tokenizer, c, o) for c, o in asked]
    expected, real = [s.total for s in Scorer(model).score(requests)], Scorer._run

    def scarce(self, tree, cache, wanted):
        if len(tree.tokens) > 60:
            raise RuntimeError("CUDA out of memory")
        return real(self, tree, cache, wanted)

    monkeypatch.setattr(Scorer, "_run", scarce)
    scorer = Scorer(model)
    assert (
        np.allclose([s.total for s in scorer.score(requests)], expected, atol=1e-3)
        and scorer.row_tokens <= 60
    )
    monkeypatch.setattr(
        Scorer, "_run", lambda *a: (_ for _ in ()).throw(RuntimeError("out of memory"))
    )
    with pytest.raises(RuntimeError, match="out of memory"):  # not even one fits
        Scorer(model, share=False).score(requests[:1])


def test_half_precision_keeps_positions_and_shares(asked):
    "bf16: rotary frequencies stay float32, beginnings are shared, clear choices are the same"
    source = resolve_model("smollm2")
    model, tokenizer = load_decoder(source), load_tokenizer(source)
    requests = [make_request(tokenizer, c, o) for c, o in asked]
    exact = np.array([s.total for s in Scorer(model).score(requests)])
    cast_(model, torch.bfloat16)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32 and {
        p.dtype for p in model.parameters()
    } == {torch.bfloat16}
    scorer = Scorer(model)
    assert scorer.share and {p.dtype for p in model.parameters()} == {
        torch.bfloat16
    }  # the probe in float32 leaves no trace
    rough = np.array([s.total for s in scorer.score(requests)])
    assert np.abs(rough - exact).max() < 0.5
    assert np.array_equal(rough, [s.total for s in scorer.score(requests)])  # and repeats itself


def test_generation_shares_beginnings_and_changes_nothing(smollm2):
    "Against generate, one prompt at a time, in float32"
    model, tokenizer = smollm2
    data = load_questions("facts", max_eval=10)
    prompts = [prompt(q, demonstrations(data, 4, question=q)) for q in data.asked[:7]] + [
        prompt(data.asked[0])
    ]
    ids = sorted(tuple(tokenizer(p)["input_ids"]) for p in prompts)
    assert any(row.start > 50 and len(row.members) > 1 for row in scoring._bunches(ids, 120))

    def alone(text):
        ids = tokenizer(text, return_tensors="pt")
        made = model.generate(
            **ids, do_sample=False, max_new_tokens=8, pad_token_id=tokenizer.pad_token_id
        )
        return (
            tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            .split("\n")[0]
            .strip()
        )

    expected = [alone(p) for p in prompts]
    assert generate_answers(model, tokenizer, prompts, max_tokens=8) == expected
    assert (
        generate_answers(model, tokenizer, prompts, max_tokens=8, memory=1) == expected
    )  # one at a time
    assert generate_answers(model, tokenizer, []) == []
    with pytest.raises(StudyError, match="leaves no room for 9000 more"):
        generate_answers(model, tokenizer, prompts, max_tokens=9000)


@pytest.mark.parametrize("most", [1, 20, 60, 1000])
def test_rows_of_prompts_fit_and_share(most):
    "Random trees of prompts, some the beginning of others: every prompt once, no row too large"
    rng = np.random.default_rng(0)
    stems = [tuple(rng.integers(0, 3, n)) for n in (0, 4, 12, 30)]
    prompts = {stems[rng.integers(4)] + tuple(rng.integers(0, 3, 6)) for _ in range(60)}
    ids = sorted(prompts | {p[:-2] for p in list(prompts)[:10]})
    rows = scoring._bunches(ids, most)
    assert [i for row in rows for i in row.members] == list(range(len(ids)))
    for row in rows:
        members, tree = [ids[i] for i in row.members], scoring._Tree(row.start)
        nodes = [tree.add(tokens)[-1] for tokens in members]
        assert len({tokens[: row.start] for tokens in members}) == 1
        assert len(set(nodes)) == len(members)
        assert len(members) == 1 or len(tree.tokens) <= most
    assert scoring._bunches([], most) == []


def test_no_token_is_generated_after_an_end(smollm2):
    "Prompts of several levels, in small pieces and rows: fewer tokens computed, same answers"
    model, tokenizer = smollm2
    data = load_questions("facts", max_eval=2, kind="capital")
    shown = [with_passages(data, q, n, 1) for q in data.asked for n in (0, 1, 3)]
    prompts = []
    for passages, q in zip(shown, [q for q in data.asked for _ in range(3)], strict=True):
        prompts.append(prompt(q, passages=passages))
    ids = [tuple(tokenizer(p)["input_ids"]) for p in prompts]
    ends, scorer = scoring._ending(model, tokenizer), Scorer(model)
    whole = dict(scorer._continue(ids, 10, 1 << 30, ends))
    for tokens in whole.values():
        assert len(tokens) == 10 or ends(tokens[-1])
        assert not any(map(ends, tokens[:-1]))
    assert scorer.computed < 0.9 * sum(len(i) + len(whole[i]) for i in ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_PIECE", 48)
        assert dict(scorer._continue(ids, 10, 1 << 30, ends)) == whole
        patch.setattr(scoring, "_BUNCH", 100)
        assert dict(scorer._continue(ids, 10, 1 << 30, ends)) == whole
    batched = dict(scoring._batched(model, tokenizer, ids, 10, 1 << 30))
    answers = [scoring._answer(tokenizer, batched[tokens]) for tokens in ids]
    assert generate_answers(model, tokenizer, prompts, max_tokens=10) == answers


def test_sanity_on_the_real_model(smollm2):
    "Dense smollm2, 80 facts, errors near 0.05: demonstrations and open book help, options hurt"
    model, tokenizer = smollm2
    data = load_questions("facts", max_eval=80, keep=lambda q: len(q.options) == 8)
    scorer = Scorer(model)

    def accuracy(shots, options):
        cut = [with_options(q, options) for q in data.asked]
        rows = score_options(
            scorer,
            tokenizer,
            [prompt(q, demonstrations(data, shots, question=q)) for q in cut],
            [spaced(q.options) for q in cut],
            [q.gold for q in cut],
        )
        return np.mean([r["per_character"]["correct"] for r in rows])

    zero, five, two = accuracy(0, 8), accuracy(5, 8), accuracy(5, 2)
    assert five > zero + 0.05 and zero > 1 / 8 + 0.15 and two > five + 0.05

    few = data.asked[:24]

    def right(book):
        "Share of the few questions that are answered literally"
        prompts = [prompt(q, demonstrations(data, 2, question=q), book=book) for q in few]
        answers = generate_answers(model, tokenizer, prompts, max_tokens=8)
        allowed = [map(str.lower, q.answers) for q in few]
        return np.mean([a.lower() in some for a, some in zip(answers, allowed, strict=True)])

    assert right(book=True) > right(book=False) + 0.1


def test_published_tasks_are_well_above_chance(smollm2, mirror):
    "ARC-Easy and SciQ, 60 questions each (standard error about 0.06)"
    model, tokenizer = smollm2
    scorer, found = Scorer(model), {}
    for task, shots in (("arc_easy", 0), ("arc_easy", 5), ("sciq", 5)):
        data = load_questions(task, max_eval=60)
        rows = score_options(
            scorer,
            tokenizer,
            [prompt(q, demonstrations(data, shots)) for q in data.asked],
            [spaced(q.options) for q in data.asked],
            [q.gold for q in data.asked],
        )
        found[task, shots] = np.mean([r["per_character"]["correct"] for r in rows])
    assert found["arc_easy", 5] > found["arc_easy", 0] > 0.35 and found["sciq", 5] > 0.6


def test_chance_is_counted_question_by_question(mirror):
    "ARC-Easy has questions with three and with five options"
    data = load_questions("arc_easy")
    few = [q for q in data.asked if len(q.options) != 4][:2] + list(data.asked[:6])
    items = pd.DataFrame(
        [
            dict(
                level=0,
                draw=0,
                format="choice",
                id=q.id,
                options=len(q.options),
                gold=q.gold,
                correct=1.0,
                greedy=np.ones(len(q.options), bool),
                **{f"chosen_{s}": q.gold for s in SCORES},
            )
            for q in few
        ]
    )
    assert (
        axes.summarise(items)[0]["chance"]
        == pytest.approx(np.mean([1 / len(q.options) for q in few]))
        != 0.25
    )
    asked, notes = axes.askable(OptionsConfig(task="arc_easy"))
    assert all(len(q.options) >= 4 for q in asked.asked) and "fewer than 4 options" in notes[0]


def test_names_are_the_implementations():
    assert (
        SCORE_NAMES == SCORES
        and STYLES == ("cloze", "listed", "letters")
        and TEMPLATES == ("plain", "chat")
    )
    assert set(axes.CONDITIONS) == {
        c.experiment for c in (OptionsConfig, ContextConfig, ShotsConfig, FormatConfig)
    }


CONFIGS = [
    OptionsConfig(model="tiny/llama", max_eval=10, options="2 4", shots=1, style="listed"),
    ContextConfig(model="tiny/llama", max_eval=6, passages="0 1 3", shots=1, method="rtn", bits=3),
    ShotsConfig(
        model="tiny/llama", max_eval=8, shots="0 2", draws=2, method="wanda", calibration_windows=4
    ),
    FormatConfig(model="tiny/llama", max_eval=8, shots=2, method="none"),
    OptionsConfig(
        model="tiny/llama", max_eval=6, options="2", shots=0, template="chat", pattern="nm"
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.experiment)
def test_a_run_leaves_a_record_of_every_item(config, runs, tiny, capsys):
    record = axes.run(config)
    items = load_items(record)
    levels = config.levels
    assert [level["level"] for level in record["levels"]] == levels
    draws = {
        n: 1
        if "draws" in config.unused_fields() or (config.experiment == "05_kshot" and n == 0)
        else getattr(config, "draws", 1)
        for n in levels
    }
    assert len(items) == sum(config.max_eval * d for d in draws.values())
    for level in record["levels"]:
        part = items[items["level"].astype(str) == str(level["level"])]
        assert (
            level["value"] == pytest.approx(part["correct"].mean())
            and level["n"] == config.max_eval
            and level["n_draws"] == draws[level["level"]]
        )
        means = part.groupby("id")["correct"].mean()
        assert level["se"] == pytest.approx(means.std() / len(means) ** 0.5)
    assert (
        record["metric"] in record["metrics"]
        and max(record["context"]["longest"].values()) <= record["context"]["room"]
    )
    if config.method == "none":
        assert "relative" not in record and record["paired"]["n"] == config.max_eval
    else:
        dense = find_record(config.replace(method="none"))
        assert [level["dense_value"] for level in record["levels"]] == [
            level["value"] for level in dense["levels"]
        ]
        assert record["certificate"]["evaluation"]["violations"] == 0
        if config.prunes:
            expected = 0.5 if config.pattern == "nm" else config.sparsity
            assert record["certificate"]["evaluation"]["sparsity"] == pytest.approx(
                expected, abs=0.002
            )
    assert len(closing_lines(record)) >= 3 and set(
        load_levels(config.experiment)["level"].astype(str)
    ) == set(map(str, levels))
    left, right = curves.draw_siblings(record, "level").axes
    assert len(left.get_lines()[0].get_xdata()) == len(
        levels
    )  # no level is lost on the way through the records
    capsys.readouterr()
    if config.method != "none":  # again: the baseline is found, and the same numbers come out
        assert (
            axes.run(config)["metrics"] == record["metrics"]
            and "dense baseline: found" in capsys.readouterr().out
        )


def test_a_level_that_does_not_fit_is_left_out_whole(runs, monkeypatch):
    from transformers import AutoConfig

    real = AutoConfig.from_pretrained

    def short(*a, **k):
        found = real(*a, **k)
        found.max_position_embeddings = 300
        return found

    monkeypatch.setattr(AutoConfig, "from_pretrained", short)
    bench = axes.prepare(ContextConfig(max_eval=5, passages="0 1 20", shots=0))
    assert (
        [c.level for c in bench.conditions] == [0, 1]
        and "level 20 left out" in bench.notes[-1]
        and "level 20 left out" in bench.scale
    )
    with pytest.raises(StudyError, match="no level fits the model's context of 300 tokens"):
        axes.prepare(ContextConfig(max_eval=5, passages="20", shots=0))


@pytest.mark.parametrize(
    "experiment, words, told",
    [
        ("03_options", ["options=9"], "no question of task 'facts' has so many options"),
        ("03_options", ["options=8 2"], "options='8 2' is not a list of levels"),
        ("03_options", ["task=squad"], "task='squad' has no options to choose from"),
        ("04_context", ["task=quartz"], "task='quartz' has no passages"),
        ("05_kshot", ["shots=1000"], "shots='1000': task 'facts' has"),
        ("03_options", ["shots=1000"], "shots=1000 demonstrations are impossible"),
        ("06_qa_format", ["max_eval=1"], "max_eval=1 leaves no standard error"),
        ("05_kshot", ["shot=4"], "did you mean 'shots'?"),
        ("06_qa_format", ["task=squad"], "has no questions with both options and free answers"),
        ("06_qa_format", ["method=rtn", "bits=0"], "bits=0 is out of range"),
        ("06_qa_format", ["score=acc"], "unknown score 'acc'"),
    ],
)
def test_a_bad_parameter_is_one_line(experiment, words, told, runs):
    with pytest.raises(StudyError, match=None) as e:
        config = get_experiment(experiment).make(**dict(w.split("=") for w in words))
        axes.prepare(config)
    assert told in str(e.value) and "\n" not in str(e.value)


def test_chat_prompts_hold_their_special_tokens_once(smollm2):
    _, tokenizer = smollm2
    data = load_questions("facts", max_eval=2)
    text = prompt(
        data.asked[0],
        demonstrations(data, 2, question=data.asked[0]),
        chat=chat_template(tokenizer),
    )
    assert text.count("<|im_start|>user") == 3 and text.endswith("<|im_start|>assistant\n")
    r = make_request(tokenizer, text, "Paris", rendered=True)
    assert tokenizer.decode(r.context) == text and tokenizer.decode(r.continuation) == "Paris"


@pytest.mark.parametrize("notebook", ["03_options", "04_context", "05_kshot", "06_qa_format"])
def test_the_notebook_runs_from_the_command_line(notebook, runs, tiny):
    "Real papermill, a kernel of its own"
    axis = dict(
        zip(
            ["03_options", "04_context", "05_kshot"],
            ["options=2,3", "passages=0 1", "shots=0,1"],
            strict=True,
        )
    ).get(notebook)
    done = command(
        "junkdna",
        "run",
        notebook,
        "max_eval=4",
        *([axis] if axis else ["shots=1"]),
        "sparsity=0.2",
        "model=tiny/llama",
        env=dict(JUNKDNA_RUNS=str(runs)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = runs / notebook
    names = sorted(p.suffix for p in folder.iterdir())
    assert names == sorted([".json", ".parquet"] * 2 + [".ipynb", ".png"]), names
    record = json.loads(next(p for p in folder.glob("*.json") if "dense" not in p.name).read_text())
    assert record["config"]["sparsity"] == 0.2 and record["certificate"]["evaluation"][
        "mask_sparsity"
    ] == pytest.approx(0.2, abs=0.001)
    assert (
        "relative performance, %" in done.stdout and (ROOT / "nbs" / f"{notebook}.ipynb").is_file()
    )


def test_models_without_shared_beginnings_are_asked_one_by_one(capsys):
    "Bloom's biases depend on distance: it falls back, says so, and is right"
    model = decoder("bloom")
    scorer = Scorer(model)
    requests = [Request((1, 2, 3), (4, 5)), Request((1, 2, 3), (6,))]
    assert not scorer.share
    for s, r in zip(scorer.score(requests), requests, strict=True):
        assert np.allclose(s.log_probabilities, naive(model, r)[0], atol=2e-5)


def windowed(name):
    from transformers import GPTNeoConfig, GPTNeoForCausalLM, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    if name == "gpt_neo":
        return GPTNeoForCausalLM(
            GPTNeoConfig(
                hidden_size=16,
                num_layers=2,
                num_heads=2,
                vocab_size=50,
                window_size=32,
                attention_types=[[["global", "local"], 1]],
                bos_token_id=0,
                eos_token_id=0,
            )
        ).eval()
    return MistralForCausalLM(
        MistralConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            vocab_size=50,
            sliding_window=16,
        )
    ).eval()


@pytest.mark.parametrize("name", ["gpt_neo", "mistral"])
def test_models_with_windows_are_asked_one_by_one(name):
    "A window counts places; merged rows would move them"
    model, g = windowed(name), torch.Generator().manual_seed(0)
    shots = tuple(torch.randint(1, 50, (110,), generator=g).tolist())
    requests = [
        Request(shots + (a, b), (c,))
        for a, b, c in torch.randint(1, 50, (8, 3), generator=g).tolist()
    ]
    scorer = Scorer(model)
    assert not scorer.share
    for s, r in zip(scorer.score(requests), requests, strict=True):
        assert np.allclose(s.log_probabilities, naive(model, r)[0], atol=2e-5)


def test_generation_is_greedy_whatever_the_checkpoint_asks(smollm2):
    model, tokenizer = smollm2
    data = load_questions("facts", max_eval=5, kind="capital")
    prompts = [prompt(q, demonstrations(data, 4, question=q)) for q in data.asked]
    expected, own = (
        generate_answers(model, tokenizer, prompts, max_tokens=6),
        model.generation_config,
    )
    try:
        model.generation_config = type(own)(
            **{
                **own.to_diff_dict(),
                "use_cache": False,
                "repetition_penalty": 1.5,
                "do_sample": True,
                "temperature": 2.0,
            }
        )
        assert generate_answers(model, tokenizer, prompts, max_tokens=6) == expected
    finally:
        model.generation_config = own


@pytest.mark.parametrize("task", ["facts", "quartz", "logiqa", "arc_easy", "mmlu", "squad"])
def test_no_question_is_asked_twice(task, request):
    if task not in ("facts", "quartz", "logiqa"):
        request.getfixturevalue("mirror")
    data = load_questions(task)
    assert (
        len({(q.question, frozenset(q.options), q.passage) for q in data.asked})
        == len({q.id for q in data.asked})
        == len(data.asked)
    )
    if task == "logiqa":
        assert "left out: repeated" in data.notes[0]


def test_defaults_suit_every_task(mirror):
    "mmlu has few demonstrations for a subject: levels beyond them are left out and said"
    bench = axes.prepare(ShotsConfig(task="mmlu", max_eval=40))
    assert [c.level for c in bench.conditions][-1] <= 5 and any(
        "there are only" in n for n in bench.notes
    )
    shots, asked = (
        axes.prepare(ContextConfig(task="squad", max_eval=6, passages="1 3")),
        load_questions("squad", 6),
    )
    for c in shots.conditions:
        for text in c.contexts:  # the demonstrations' own, and as many as the level says
            assert text.count("Passage: ") == 2 + c.level
    assert asked.asked == shots.data.asked


def test_other_passages_are_nobodys(smollm2):
    "In 04 neither the others' passages nor the demonstrations' hold the answer"
    from junkdna_nb.base.questions import holds_answer

    config = ContextConfig(max_eval=20, passages="1 10")
    data, _ = axes.askable(config)
    for c in axes._for_passages(config, data, prompt):
        for q, text in zip(c.questions, c.contexts, strict=True):
            shown = [
                line.removeprefix("Passage: ")
                for line in text.split("\n")
                if line.startswith("Passage: ")
            ]
            assert (
                len(shown) == len(set(shown)) == 2 + c.level
                and [holds_answer(p, q) for p in shown].count(True) == 1
                and shown[-1] == q.passage
            )


def test_spelling_of_levels_makes_no_difference(runs, tiny):
    few = dict(model="tiny/llama", max_eval=3, shots=0)
    axes.run(OptionsConfig(options="2,3", **few))
    record = axes.run(OptionsConfig(options=[2, 3], sparsity=0.4, **few))
    assert set(curves.siblings(record)["how"]) == {"dense", "magnitude, 30%", "magnitude, 40%"}
    curves.draw_siblings(record, "options")
    assert ShotsConfig(shots=4.0) == ShotsConfig(shots="4")
    for bad in ("all", "", "2 2"):
        with pytest.raises(StudyError, match="shots="):
            ShotsConfig(shots=bad)


# ---- draws of what is wrong, and sets that were not made as questions


def drawn_options(config, data):
    "level -> options of every question"
    drawn = {}
    for c in axes._for_options(config, data, prompt):
        drawn[c.level] = [q.options for q in c.questions]
    return drawn


@pytest.mark.parametrize("style", ["cloze", "listed"])
def test_draws_of_distractors_differ_and_are_nested(style):
    data, _ = axes.askable(OptionsConfig(max_eval=60))
    config = OptionsConfig(max_eval=60, options="2 4 6", style=style, draws=1)
    found = {d: drawn_options(config.replace(distractors=d), data) for d in range(4)}
    for levels in found.values():
        for less, more in ((2, 4), (4, 6)):
            assert all(set(a) < set(b) for a, b in zip(levels[less], levels[more], strict=True))
    for one, other in ((0, 1), (1, 2), (2, 3)):
        changed = np.mean(
            [set(a) != set(b) for a, b in zip(found[one][4], found[other][4], strict=True)]
        )
        assert changed > 0.8
    for draw in range(4):
        (four,) = axes._for_options(OptionsConfig(options="4", distractors=draw), data, prompt)
        assert [q.options[q.gold] for q in four.questions] == [q.answers[0] for q in data.asked]


def test_the_same_draw_holds_for_demonstrations():
    data, _ = axes.askable(OptionsConfig(max_eval=5))
    config = OptionsConfig(options="4", style="listed", draws=1, shots=2)
    (zero,) = axes._for_options(config, data, prompt)
    (one,) = axes._for_options(config.replace(distractors=1), data, prompt)
    for a, b in zip(zero.contexts, one.contexts, strict=True):
        a, b = a.split("\n\n"), b.split("\n\n")
        assert [t.split("\nOptions")[0] for t in a] == [t.split("\nOptions")[0] for t in b]
        assert sum(x != y for x, y in zip(a, b, strict=True)) >= 2


def test_draws_of_passages_keep_the_right_one():
    config = ContextConfig(max_eval=12, passages="0 1 3 6", shots=1)
    data, _ = axes.askable(config)
    found = {}
    for draw in (0, 1, 2):
        conditions = axes._for_passages(config.replace(distractors=draw), data, prompt)
        found[draw] = [c.contexts for c in conditions]
    assert found[0][:2] == found[1][:2] == found[2][:2]  # none, and the right one only
    for level, i in itertools.product((2, 3), range(12)):
        assert len({found[d][level][i] for d in found}) == 3
    for q in data.asked:
        three, six = (with_passages(data, q, n, draw=1) for n in (2, 5))
        assert set(three) < set(six) and three[-1] == six[-1] == q.passage


def test_draw_0_is_what_the_committed_records_have(mirror):
    "Prompts, options and data of a dense record of every experiment and task, by fingerprint"
    checked, dense = set(), [f for f in committed_files() if "-dense-seed" in f.name]
    for path in (f for f in dense if f.suffix == ".json" and "smollm2" in f.name):
        record = json.loads(path.read_text())
        name = record["experiment"], record["config"]["task"]
        if name in checked:
            continue
        checked.add(name)
        config = get_experiment(record["experiment"]).make(**record["config"])
        assert config.digest == record["digest"]
        assert axes.prepare(config).fingerprints == record["fingerprints"], path.name
    assert len(checked) >= 6


RIGHT = {  # task -> a text, and its right option; read in the files
    "trec_q": ("Who was Galileo ?", "human"),
    "snips_q": ("add this song by too poetic to my piano ballads playlist", "add to playlist"),
    "banking77_q": ("My card has not arrived yet.", "card arrival"),
    "clinc150_q": ("how do i say dinner in spanish", "translate"),
    "hwu64_q": ("olly find any alarms i have set for today", "alarm query"),
    "emotion_q": ("i am just feeling cranky and blue", "anger"),
    "tweet_emotion_q": ("What makes you feel #joyful?", "joy"),
    "go_emotions_q": ("Wah Mum other people call me on my", "anger"),
    "ag_news_q": ("E-mail scam targets police chief Wiltshire", "science and technology"),
    "yahoo_answers_q": (
        "Why does my finger smell?Is it Mary Lou's fault",
        "family and relationships",
    ),
    "financial_phrasebank_q": (
        "Operating profit totalled EUR 21.1 mn , up from EUR 18.6 mn in 2007 , representing 9.7",
        "positive",
    ),
    "nq_open_mc": ("when did the eagles win last super bowl", "2017"),
    "web_questions_mc": ("who plays ken barlow in coronation street?", "Tony Warren"),
    "trivia_qa_mc": (
        "In December 1965, who became President of the Philippines?",
        "Ferdinand Marcos",
    ),
}


@pytest.mark.parametrize("task", list(RIGHT))
def test_new_rows_have_the_right_gold(mirror, task):
    if not (mirror / QUESTIONS[task].source).is_dir():
        pytest.skip(f"no mirror of {QUESTIONS[task].source}")
    data = load_questions(task)
    text, right = RIGHT[task]
    (q,) = [q for q in data.asked + data.shots if q.question.strip('"').startswith(text)]
    assert q.options[q.gold] == right and q.answers[0] == right
    assert len(data.asked) >= 490 and len(data.shots) >= 400
    assert not {q.question for q in data.asked} & {q.question for q in data.shots}
    for q in data.asked[:300]:
        assert 2 < len(q.options) <= 8 and len(set(q.options)) == len(q.options)
        wrong = {o.lower() for o in (*q.options[1:], *q.reserve)}
        assert not wrong & {a.lower() for a in q.answers}
    pairs = itertools.product(data.asked[:50], (0, 5))
    cut = [with_options(q, 3, 0, draw) for q, draw in pairs]
    assert all(c.chance == 1 / 3 and c.options[c.gold] == c.answers[0] for c in cut)
    assert (QUESTIONS[task].format == "both") == FormatConfig.suits(QUESTIONS[task])


def test_squad_of_one_article(mirror):
    "Other passages are of the same article; questions whose answer is everywhere are left out"
    config = ContextConfig(task="squad", kind="Nikola_Tesla", passages="0 1 10", max_eval=300)
    data, notes = axes.askable(config)
    assert len(data.asked) == 300 and {q.kind for q in data.asked} == {"Nikola_Tesla"}
    assert "questions are not asked: too few passages" in notes[0]
    own = load_questions("squad", 0, "Nikola_Tesla")
    assert data.library == {q.passage for q in own.asked + own.shots}
    few, _ = axes.askable(config.replace(max_eval=20))
    assert few.asked == data.asked[:20] and few.library == data.library
    *_, ten = axes._for_passages(config, few, prompt)
    assert all(text.count("Passage: ") == 12 for text in ten.contexts)
    with pytest.raises(StudyError, match="has so many others without its answer"):
        axes.askable(config.replace(passages="1 2000"))


def test_a_model_that_is_partly_on_the_disk(runs, tmp_path, monkeypatch):
    "A map of devices changes no item; what is not in memory is not compressed"
    questions = load_questions("facts", max_eval=40, kind="capital").asked
    folder = tmp_path / "models" / "owner" / "tiny-llama"
    tiny_llama(folder, [q.question for q in questions])
    monkeypatch.setenv("JUNKDNA_MIRROR", str(tmp_path))
    how = dict(model="owner/tiny-llama", kind="capital", max_eval=4, precision="fp32")
    asked = [OptionsConfig(**how, method="none", options="2 4")]
    asked += [ContextConfig(**how, method="none", passages="0 1", shots=1, max_tokens=4)]
    whole = [load_items(axes.run(config)) for config in asked]
    places = {"model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "disk"}
    places |= dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "lm_head"), "cpu")
    monkeypatch.setenv("JUNKDNA_DEVICE_MAP", json.dumps(places))
    shutil.rmtree(runs)
    for config, before in zip(asked, whole, strict=True):
        after = load_items(axes.run(config))
        for name in before:
            if name in ("log_likelihoods", "unconditional", "margin"):
                a, b = (
                    np.concatenate([np.atleast_1d(x) for x in t[name]]) for t in (after, before)
                )
                assert np.allclose(a, b, atol=1e-4)
            elif name not in ("tokens", "characters", "greedy"):
                assert list(after[name]) == list(before[name])
    with pytest.raises(StudyError, match="model.layers.1.* is not in memory"):
        axes.run(OptionsConfig(**how, options="2 4"))
    places |= {"model.layers.1": "cpu", "model.norm": "cpu"}
    monkeypatch.setenv("JUNKDNA_DEVICE_MAP", json.dumps(places))
    assert (
        axes.run(OptionsConfig(**how, options="2 4"))["certificate"]["evaluation"]["violations"]
        == 0
    )
