"The four modes kept exact through real training on real sentences, of a tiny model and of minilm."

import itertools

import numpy as np
import pytest
import torch
from hub import tiny_roberta
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from junkdna_nb.base.config import StudyError, resolve_precision
from junkdna_nb.base.experiments import GlueConfig
from junkdna_nb.base.models import (
    load_classifier,
    load_tokenizer,
    resolve_model,
)
from junkdna_nb.base.records import load_items, load_runs
from junkdna_nb.base.tasks import TASKS, load_task
from junkdna_nb.compression.masks import Masks, certify, prunable
from junkdna_nb.compression.pruning import make_masks
from junkdna_nb.compression.quantization import Grid
from junkdna_nb.transfer.finetuning import encode, fine_tune, keep_words, last_checkpoint, run
from junkdna_nb.transfer.modes import MaskCallback, Mode, QuantizeCallback

REAL = dict(max_train=48, max_eval=40, epochs=2, max_length=24, batch_size=8)  # 6 steps an epoch
SMALL = dict(REAL, model="tiny/bert")


@pytest.fixture(scope="module")
def bench(tiny_mirror):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUNKDNA_MIRROR", str(tiny_mirror))
        source = resolve_model("tiny/bert")
    tokenizer = load_tokenizer(source)
    data = load_task("movie", max_train=48, max_eval=40)
    return source, tokenizer, encode(data.train, TASKS["movie"].text, tokenizer, 24)


def stock_trainer(bench, folder, mode, masks_of=None, exact=True, **kw):
    "The Trainer as it comes, with the callback added in the two lines that are documented"
    source, tokenizer, train = bench
    model, fresh = load_classifier(source, 2, 41)
    args = TrainingArguments(
        str(folder),
        **{
            **dict(
                per_device_train_batch_size=8,
                max_steps=5,
                learning_rate=1e-3,
                use_cpu=True,
                disable_tqdm=True,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                seed=41,
            ),
            **kw,
        },
    )
    trainer = Trainer(
        model,
        args,
        train_dataset=train.remove_columns("length"),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    masks = make_masks(model, newly_initialized=fresh, **(masks_of or dict(sparsity=0.7)))
    callback = MaskCallback(masks, mode, exact)
    trainer.add_callback(callback)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    return trainer, masks, callback, before


HARD = [
    {},
    dict(weight_decay=0.1),
    dict(weight_decay=0.1, gradient_accumulation_steps=2),
    dict(weight_decay=0.1, bf16=True),
    dict(weight_decay=0.1, optim="sgd"),
    dict(weight_decay=0.1, optim="adamw_torch_fused", max_grad_norm=0.0),
]


@pytest.mark.parametrize(
    "masks_of,kw",
    [
        *[(dict(sparsity=0.7), kw) for kw in HARD],
        (dict(pattern="nm", n_kept=2, m_group=4), HARD[2]),
    ],
    ids=str,
)
def test_sparse_stays_exactly_zero(bench, tmp_path, kw, masks_of):
    trainer, masks, callback, before = stock_trainer(bench, tmp_path, "sparse", masks_of, **kw)
    seen = []

    class Watch(
        TrainerCallback
    ):  # added after ours, so it sees what an evaluation in the middle would see
        def on_step_end(self, args, state, control, model=None, **_):
            seen.append(certify(model, masks)["violations"])

    trainer.add_callback(Watch())
    trainer.train()
    assert seen == [0] * 5
    for name, mask in masks.items():
        p = dict(trainer.model.named_parameters())[name]
        assert (
            torch.equal(p[~mask], torch.zeros(int((~mask).sum())))
            and not torch.signbit(p[~mask]).any()
        )
    moved = sum(
        int((dict(trainer.model.named_parameters())[n][m] != before[n][m]).sum())
        for n, m in masks.items()
    )
    assert moved > 0.9 * sum(int(m.sum()) for m in masks.values()), "the survivors are trained"
    trainer.save_model(tmp_path / "saved")
    again = type(trainer.model).from_pretrained(tmp_path / "saved")
    assert certify(again, masks)["violations"] == 0 and callback.at_start["violations"] == 0


@pytest.mark.parametrize("kw", HARD[1:5], ids=str)
def test_frozen_weights_are_bit_equal_to_the_checkpoint(bench, tmp_path, kw):
    trainer, masks, callback, before = stock_trainer(bench, tmp_path, "dense_frozen", **kw)
    trainer.train()
    after = dict(trainer.model.named_parameters())
    for name, mask in masks.items():
        assert torch.equal(
            after[name][~mask].view(torch.int32), before[name][~mask].view(torch.int32)
        )
    assert certify(trainer.model, masks, callback.pretrained)["changed"] == 0
    assert any(not torch.equal(after[n][m], before[n][m]) for n, m in masks.items())


def test_sparse_to_dense_starts_sparse_and_ends_dense(bench, tmp_path):
    trainer, masks, callback, _ = stock_trainer(bench, tmp_path, "sparse_to_dense")
    trainer.train()
    assert callback.at_start["violations"] == 0 and abs(callback.at_start["sparsity"] - 0.7) < 1e-6
    assert certify(trainer.model, masks)["sparsity"] < 0.05


def test_dense_is_untouched_by_the_callback(bench, tmp_path):
    trainer, masks, *_ = stock_trainer(bench, tmp_path / "a", "dense")
    trainer.train()
    plain, *_ = stock_trainer(bench, tmp_path / "b", "dense")
    plain.remove_callback(MaskCallback)
    plain.train()
    assert all(
        torch.equal(a, b)
        for a, b in zip(trainer.model.parameters(), plain.model.parameters(), strict=True)
    )


def test_without_the_callback_pruned_weights_would_move(bench, tmp_path):
    "What the callback is for; if this failed, the tests above would prove nothing"
    trainer, masks, *_ = stock_trainer(bench, tmp_path, "sparse", weight_decay=0.1)
    masks.apply_(trainer.model)
    trainer.remove_callback(MaskCallback)
    trainer.train()
    assert certify(trainer.model, masks)["violations"] > 1000


def test_clipping_measures_the_trained_weights_only(bench, tmp_path):
    trainer, masks, *_ = stock_trainer(bench, tmp_path, "sparse", max_steps=1)

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            self.leak = sum(
                float(p.grad[~masks[n]].abs().sum())
                for n, p in model.named_parameters()
                if n in masks
            )
            self.kept = sum(
                float(p.grad[masks[n]].abs().sum())
                for n, p in model.named_parameters()
                if n in masks
            )

    look = Look()
    trainer.add_callback(look)
    trainer.train()
    assert look.leak == 0 and look.kept > 0
    assert not any(
        p._post_accumulate_grad_hooks
        for p in trainer.model.parameters()
        if p._post_accumulate_grad_hooks is not None
    ), "hooks are removed at the end"


def test_reference_order_is_not_exact_after_the_last_step(bench, tmp_path):
    trainer, masks, callback, _ = stock_trainer(bench, tmp_path, "sparse", exact=False)
    trainer.train()
    c = certify(trainer.model, masks)
    assert callback.at_start["violations"] == 0 and c["violations"] > 0


class Stop(TrainerCallback):
    "Interrupts training as a kill would, after a checkpoint"

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step + 1:
            raise KeyboardInterrupt


# at the end of the first epoch, inside the second
STOPS = [("sparse", 6), ("sparse", 8), ("dense_frozen", 8), ("sparse_to_dense", 8), ("dense", 8)]


@pytest.mark.parametrize(
    "mode,stop,steps", [*[(*stop, 0) for stop in STOPS], ("sparse", 9, 15), ("dense", 12, 14)]
)
def test_resumed_equals_uninterrupted(bench, tmp_path, mode, stop, steps):
    "With steps=15 the third pass is cut in the middle"
    source, tokenizer, train = bench
    config = GlueConfig(**SMALL, mode=mode, save_steps=stop, weight_decay=0.01, steps=steps)

    def training(folder, config, *more):
        model, fresh = load_classifier(source, 2, config.seed)
        masks = make_masks(model, sparsity=0.6, newly_initialized=fresh)
        callback = MaskCallback(masks, mode)
        original = fine_tune.__globals__["Progress"]
        try:
            if more:
                fine_tune.__globals__["Progress"] = lambda label: more[0]
            return (
                fine_tune(model, train, tokenizer, config, folder, callback, "fp32"),
                masks,
                callback,
            )
        finally:
            fine_tune.__globals__["Progress"] = original

    whole, *_ = training(tmp_path / "whole", config.replace(save_steps=0))
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path / "cut", config, Stop(stop))
    if mode != "dense":
        assert Masks.load(
            tmp_path / "cut" / f"checkpoint-{stop}" / "masks.safetensors"
        ).sparsity == pytest.approx(0.6, abs=1e-6)
    resumed, masks, callback = training(tmp_path / "cut", config)
    assert resumed.state.global_step == whole.state.global_step == (steps or 12)
    for (n, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), n
    c = certify(resumed.model, masks, callback.pretrained)
    assert c["violations"] == 0 if mode == "sparse" else c.get("changed", 0) == 0


class Rates(TrainerCallback):
    "Keeps the learning rate of every step"

    def __init__(self):
        self.rates = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **_):
        self.rates.append(optimizer.param_groups[0]["lr"])


def test_equal_steps_whatever_the_share(bench, tmp_path, monkeypatch):
    "48 and 12 examples, 9 updates each, under the same schedule"
    source, tokenizer, train = bench
    seen = {}
    for share in (1.0, 0.25):
        config = GlueConfig(**SMALL, mode="dense", steps=9, data_share=share)
        model, _ = load_classifier(source, 2, config.seed)
        look = Rates()
        monkeypatch.setattr(
            "junkdna_nb.transfer.finetuning.Progress", lambda label, look=look: look
        )
        part = train.select(range(round(48 * share)))
        trainer = fine_tune(model, part, tokenizer, config, tmp_path / str(share), precision="fp32")
        assert trainer.state.global_step == 9
        assert trainer.state.epoch == pytest.approx(9 / (6 * share) if share == 1 else 9 / 2)
        seen[share] = look.rates
    assert len(seen[1.0]) == 9 and seen[1.0] == seen[0.25]
    assert seen[1.0][-1] < seen[1.0][1] and seen[1.0][-1] == pytest.approx(1e-4 / 8, rel=0.2)


def test_every_pass_has_an_order_of_its_own(bench, tmp_path, monkeypatch):
    "Four passes over 12 examples: each example once a pass, no order twice"
    source, tokenizer, train = bench
    model, _ = load_classifier(source, 2, 41)
    part, drawn = train.select(range(12)), []
    sampler = fine_tune.__globals__["_ByLength"]
    real = sampler.__iter__

    def watched(self):
        order = list(real(self))
        drawn.append(order)
        return iter(order)

    monkeypatch.setattr(sampler, "__iter__", watched)
    config = GlueConfig(**{**SMALL, "batch_size": 4}, mode="dense", steps=12)
    fine_tune(model, part, tokenizer, config, tmp_path, precision="fp32")
    passes = drawn[-4:]
    assert all(sorted(p) == list(range(12)) for p in passes)
    assert len({tuple(p) for p in passes}) == 4


def test_resuming_with_other_masks_is_refused(bench, tmp_path):
    trainer, *_ = stock_trainer(bench, tmp_path, "sparse", save_strategy="steps", save_steps=3)
    trainer.train()
    other, *_ = stock_trainer(
        bench, tmp_path, "sparse", dict(sparsity=0.5), save_strategy="steps", save_steps=3
    )
    with pytest.raises(StudyError, match="are not the ones given"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_resuming_in_another_mode_or_on_another_grid_is_refused(bench, tmp_path):
    trainer, *_ = stock_trainer(
        bench, tmp_path, "sparse_to_dense", save_strategy="steps", save_steps=3
    )
    trainer.train()
    other, *_ = stock_trainer(bench, tmp_path, "sparse", save_strategy="steps", save_steps=3)
    with pytest.raises(StudyError, match="began in mode 'sparse_to_dense', not 'sparse'"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for grid in (Grid(3), Grid(2)):
        trainer, *_ = stock_trainer(
            bench, tmp_path / "q", "dense", save_strategy="steps", save_steps=3
        )
        trainer.add_callback(QuantizeCallback(grid))
        if grid.bits == 3:
            trainer.train()
        else:
            with pytest.raises(StudyError, match="bits=3.*cannot resume with another"):
                trainer.train(resume_from_checkpoint=str(tmp_path / "q" / "checkpoint-3"))


def test_an_optimizer_with_a_past_does_not_move_pruned_weights(bench, tmp_path):
    "Trained dense first, then pruned: the moments of the pruned weights are not zero"
    trainer, masks, callback, _ = stock_trainer(bench, tmp_path, "sparse", save_strategy="epoch")
    trainer.remove_callback(callback)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    masks = make_masks(trainer.model, sparsity=0.5)
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            seen.append(certify(model, masks)["violations"])

    again = type(trainer)(
        trainer.model,
        trainer.args,
        train_dataset=trainer.train_dataset,
        data_collator=trainer.data_collator,
        callbacks=[MaskCallback(masks, "sparse"), Look()],
        optimizers=(optimizer, None),
    )
    again.train()
    assert seen and not any(seen) and certify(again.model, masks)["violations"] == 0


def test_masks_of_another_model_are_refused(bench, tmp_path):
    trainer, masks, *_ = stock_trainer(bench, tmp_path, "sparse")
    trainer.remove_callback(MaskCallback)
    trainer.add_callback(
        MaskCallback(
            Masks({"no.such.weight": torch.ones(2, 2, dtype=torch.bool)}, masks.provenance),
            "sparse",
        )
    )
    with pytest.raises(StudyError, match="belong to another model"):
        trainer.train()


# ---- whole cells of the study


def test_same_configuration_twice_gives_the_same_outcomes(runs, tiny, tmp_path, monkeypatch):
    config = GlueConfig(**SMALL, sparsity=0.4)
    first = run(config)
    monkeypatch.setenv("JUNKDNA_RUNS", str(tmp_path / "elsewhere"))
    second = run(config)
    assert (
        first["metrics"] == second["metrics"]
        and first["relative"] == second["relative"]
        and first["items"]["sha256"] == second["items"]["sha256"]
    )


def test_dense_baseline_is_trained_once(runs, tiny, capsys):
    run(GlueConfig(**SMALL, sparsity=0.3))
    assert "not found" in capsys.readouterr().out
    dense = load_runs()[lambda d: d["mode"] == "dense"]
    stamp = [(runs / "02_glue" / f"{n}.json").stat().st_mtime_ns for n in dense.name]
    record = run(GlueConfig(**SMALL, sparsity=0.5))
    assert (
        "dense baseline: found" in capsys.readouterr().out
        and [(runs / "02_glue" / f"{n}.json").stat().st_mtime_ns for n in dense.name] == stamp
    )
    assert record["relative"]["dense_digest"] == dense.digest.item()
    assert record["relative"]["relative_performance"] == pytest.approx(
        100 * record["metrics"]["accuracy"]["value"] / dense.value.item()
    )


def test_baseline_in_other_arithmetic_is_not_used(runs, tiny, capsys, monkeypatch):
    if resolve_precision() == "fp32":
        pytest.skip("this processor has one arithmetic only")
    run(GlueConfig(**SMALL, mode="dense"))
    monkeypatch.setattr("junkdna_nb.transfer.finetuning.resolve_precision", lambda asked: "fp32")
    run(GlueConfig(**SMALL))
    assert "not found" in capsys.readouterr().out


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory):
    "Records that several tests share, so that they share the dense baseline"
    return tmp_path_factory.mktemp("shared")


@pytest.mark.parametrize("mode", ["sparse", "dense_frozen", "sparse_to_dense"])
@pytest.mark.parametrize(
    "how",
    [
        dict(sparsity=0.8),
        dict(pattern="nm", n_kept=3, m_group=8),
        dict(method="random", sparsity=0.25, granularity="row"),
    ],
    ids=["80%", "3of8", "random"],
)
def test_record_of_every_mode_and_pattern(shared_runs, tiny, monkeypatch, mode, how):
    "At 80 % on minilm, in the other patterns on the tiny model"
    monkeypatch.setenv("JUNKDNA_RUNS", str(shared_runs))
    config = GlueConfig(**(REAL if how == dict(sparsity=0.8) else SMALL), mode=mode, **how)
    record = run(config)
    c = record["certificate"]
    asked = how.get("sparsity", 1 - 3 / 8)
    for moment in ("pruning", "evaluation", "reloaded"):
        assert (
            c[moment]["mask_sparsity"] == pytest.approx(asked, abs=1e-3)
            and c[moment]["sparsity_requested"] == asked
        )
    if mode == "sparse":
        assert [c[m]["violations"] for m in ("pruning", "evaluation", "reloaded")] == [0, 0, 0]
        if how.get("pattern") == "nm":
            assert [c[m]["groups_violated"] for m in ("pruning", "evaluation", "reloaded")] == [
                0,
                0,
                0,
            ]
    elif mode == "dense_frozen":
        assert (
            c["evaluation"]["changed"] == c["reloaded"]["changed"] == 0
            and c["evaluation"]["zeros"] == 0
        )
    else:
        assert c["pruning"]["violations"] == 0 and c["evaluation"]["sparsity"] < 0.05
    items = load_items(record)
    assert items.correct.mean() == record["metrics"]["accuracy"]["value"] and len(items) == 40
    assert (items.margin[items.correct] >= 0).all() and (
        items.margin[~items.correct] <= 0
    ).all()  # bf16 logits can tie
    assert np.allclose(np.exp(np.stack(items.log_probabilities)).sum(1), 1, atol=1e-5)


def test_reference_recipe_reproduces_the_authors_surprises(runs):
    default, reference = (
        run(GlueConfig(**REAL, sparsity=0.6, recipe=r)) for r in ("default", "reference")
    )
    a, b = default["certificate"], reference["certificate"]
    assert b["pruning"]["size"] == a["pruning"]["size"] + 2 * 384 + 384 * 384, (
        "the head is pruned too, and the pooler with it"
    )
    assert (
        b["pruning"]["emptied"] == ["bert.pooler.dense.weight"] and a["pruning"]["emptied"] == []
    ), "which cuts minilm's way to the classifier"
    kept = int(b["pruning"]["size"] * (1 - 0.6)) - 1
    assert b["pruning"]["masked"] >= b["pruning"]["size"] - kept, "the threshold and its ties go"
    assert a["pruning"]["masked"] == round(0.6 * a["pruning"]["size"])
    c = run(GlueConfig(**REAL, pattern="nm", n_kept=4, m_group=8, recipe="reference"))[
        "certificate"
    ]
    assert (
        c["pruning"]["violations"] == 0
        and c["evaluation"]["violations"] > 0
        and c["reloaded"]["groups_violated"] > 0
    ), "not sparse after the last step"
    assert [r["id"] for r in load_task("movie", 41, 0.5, 48, rule="head").train] == [
        r["id"] for r in load_task("movie", 42, 0.5, 48, rule="head").train
    ]
    assert default["fingerprints"]["data"] != reference["fingerprints"]["data"]


def test_decoder_as_classifier(runs):
    "Any architecture: a Llama-like decoder with a classification head"
    record = run(
        GlueConfig(
            task="tweet",
            model="smollm2",
            sparsity=0.5,
            max_train=8,
            max_eval=8,
            epochs=1,
            max_length=16,
            batch_size=4,
        )
    )
    assert record["certificate"]["reloaded"]["violations"] == 0
    assert record["certificate"]["evaluation"]["size"] == 106_168_320


def test_too_long_for_the_model(runs):
    with pytest.raises(StudyError, match="max_length=1024 is more than minilm can read"):
        run(GlueConfig(max_length=1024))


GLUE_METRICS = dict(
    cola=["matthews", "accuracy"],
    sst2=["accuracy"],
    mrpc=["accuracy", "f1"],
    stsb=["pearson", "spearman"],
    qqp=["accuracy", "f1"],
    mnli=["accuracy"],
    qnli=["accuracy"],
    rte=["accuracy"],
    wnli=["accuracy"],
)


@pytest.mark.parametrize("task", list(GLUE_METRICS))
def test_all_nine_glue_tasks_run(runs, mirror, tiny, task):
    record = run(GlueConfig(**{**SMALL, "max_train": 32, "epochs": 1}, task=task, sparsity=0.5))
    assert [m for m in record["metrics"] if "mismatched" not in m] == GLUE_METRICS[task] and record[
        "metric"
    ] == GLUE_METRICS[task][0]
    main = record["metrics"][record["metric"]]
    assert (
        main["n"] == 40
        and main["se"] >= 0
        and main["human"] > 0.6
        and "Nangia" in main["human_source"]
    )
    assert all(-1 <= m["value"] <= 1 for m in record["metrics"].values())
    assert record["certificate"]["evaluation"]["violations"] == 0
    if task in ("qnli", "mnli", "qqp"):
        assert "subset" in record["scale"]
    assert str(mirror) not in (runs / "02_glue" / f"{record['name']}.json").read_text()


def test_a_run_of_equal_steps_and_fewer_words(runs, tiny):
    "The record says how much was trained and read"
    config = GlueConfig(**SMALL, steps=5, data_share=0.5, input_share=0.5, sparsity=0.5)
    record = run(config)
    assert record["training"]["steps"] == 5 and "epochs" in record["unused"]
    assert "5 steps (1.7 passes)" in record["scale"] and "0.5 OF THE WORDS" in record["scale"]
    assert "words0.5-steps5" in record["name"]
    dense = load_runs()[lambda d: d["mode"] == "dense"]
    assert dense["steps"].item() == 5 and dense["input_share"].item() == 0.5
    assert (
        record["fingerprints"]["data"] == run(config.replace(input_share=1))["fingerprints"]["data"]
    )
    uneven = run(config.replace(batch_size=16, mode="dense"))  # 24 examples: batches of 16 and 8
    assert "5 steps (2.5 passes)" in uneven["scale"]


def test_words_are_nested_and_in_their_order():
    "On real sentences, at five shares"
    for row in load_task("movie", max_train=200).train:
        words = row["text"].split()
        kept = {}
        for share in (0.01, 0.25, 0.5, 0.9, 1.0):
            kept[share] = keep_words(row["text"], share, row["id"], "text").split()
        for share, part in kept.items():
            assert len(part) == max(1, round(share * len(words))) or share == 1.0
            rest = iter(words)
            assert all(word in rest for word in part), "a subsequence of the text"
        shares = list(kept)
        for less, more in itertools.pairwise(shares):
            rest = iter(kept[more])
            assert all(word in rest for word in kept[less]), f"{less} is nested in {more}"


def test_words_belong_to_the_item_the_column_and_the_text():
    text = " ".join(f"w{i}" for i in range(40))
    draws = {keep_words(text, 0.5, *key) for key in [("1", "a"), ("2", "a"), ("1", "b")]}
    assert len(draws | {keep_words(text + " w40", 0.5, "1", "a")}) == 4
    assert keep_words(text, 0.5, "1", "a") == keep_words(text, 0.5, "1", "a")
    assert keep_words("  two  words ", 1.0, "1", "a") == "  two  words ", "whole texts stay"


def test_later_fields_leave_other_digests_alone():
    assert GlueConfig().digest == GlueConfig(steps=0, input_share=1.0).digest
    others = {GlueConfig(steps=9).digest, GlueConfig(input_share=0.5).digest}
    assert len(others | {GlueConfig().digest}) == 3
    assert GlueConfig(steps=9, epochs=3).digest == GlueConfig(steps=9).digest
    with pytest.raises(StudyError, match="input_share=0.5 has no words to keep"):
        GlueConfig(inputs="none", input_share=0.5)


def test_modes_have_the_documented_names():
    assert [m.value for m in Mode] == [
        "dense",
        "sparse",
        "dense_frozen",
        "sparse_to_dense",
        "quantized",
    ]
    assert len(prunable(load_classifier(resolve_model("minilm"), 2, 0)[0])) == 36


# ---- what a resumed or repeated training must not get wrong


@pytest.mark.parametrize("mode", ["sparse_to_dense", "dense_frozen", "quantized"])
def test_a_resumed_cell_certifies_the_start_of_training(runs, tiny, monkeypatch, mode):
    config = GlueConfig(**SMALL, mode=mode, sparsity=0.5, save_steps=3)
    from junkdna_nb.transfer import finetuning

    real = finetuning.Progress
    run(config.replace(mode="dense"))
    monkeypatch.setattr(finetuning, "Progress", lambda label: Stop(7))
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert load_runs(status="failed").error.tolist() == ["KeyboardInterrupt"]
    monkeypatch.setattr(finetuning, "Progress", real)
    resumed = run(config)
    whole = run(config.replace(save_steps=0))
    assert (
        resumed["certificate"] == whole["certificate"]
        and resumed["items"]["sha256"] == whole["items"]["sha256"]
    )


def test_a_checkpoint_cut_off_by_a_kill_is_passed_over(bench, tmp_path):
    source, tokenizer, train = bench
    config = GlueConfig(**SMALL, mode="dense", save_steps=5)
    whole = fine_tune(load_classifier(source, 2, 41)[0], train, tokenizer, config, tmp_path)
    assert last_checkpoint(tmp_path).endswith("checkpoint-12")
    (tmp_path / "checkpoint-12" / "whole").unlink()
    (tmp_path / "checkpoint-12" / "trainer_state.json").unlink()
    assert (
        last_checkpoint(tmp_path).endswith("checkpoint-10")
        and not (tmp_path / "checkpoint-12").exists()
    )
    again = fine_tune(load_classifier(source, 2, 41)[0], train, tokenizer, config, tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True)
    )


def test_frozen_values_in_a_checkpoint_are_checked(bench, tmp_path):
    from safetensors.torch import load_file, save_file

    trainer, masks, *_ = stock_trainer(
        bench, tmp_path, "dense_frozen", save_strategy="steps", save_steps=3
    )
    trainer.train()
    path = tmp_path / "checkpoint-3" / "model.safetensors"
    tensors = load_file(path)
    name = next(iter(masks))
    tensors[name][~masks[name]] += 0.01
    save_file(tensors, path, metadata={"format": "pt"})
    again, *_ = stock_trainer(bench, tmp_path, "dense_frozen", save_strategy="steps", save_steps=3)
    with pytest.raises(StudyError, match="are not the pre-trained ones"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_masks_of_other_weights_are_refused(bench, tmp_path):
    trainer, masks, callback, _ = stock_trainer(bench, tmp_path, "sparse")
    trainer.model.get_parameter(next(iter(masks))).data[0, 0] += 1
    with pytest.raises(StudyError, match="computed from other weights"):
        trainer.train()


def test_training_on_does_not_prune_again(bench, tmp_path):
    trainer, masks, callback, _ = stock_trainer(bench, tmp_path, "sparse_to_dense")
    trainer.train()
    dense = certify(trainer.model, masks)["sparsity"]
    trainer.train()
    assert certify(trainer.model, masks)["sparsity"] <= dense + 0.01 and callback.at_start[
        "sparsity"
    ] == pytest.approx(0.7, abs=1e-6)


def test_a_baseline_without_its_items_is_trained_again(runs, tiny, capsys):
    run(GlueConfig(**SMALL, mode="dense"))
    next((runs / "02_glue").glob("*dense*.parquet")).unlink()
    assert "relative_performance" in run(GlueConfig(**SMALL))["relative"]
    assert "not found" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["default", "reference"])
def test_the_papers_architecture_from_a_mirror_folder(runs, tmp_path, monkeypatch, recipe):
    "A small untrained RoBERTa in the hub's layout under its hub name: resolved, pruned, trained"
    folder = tmp_path / "models" / "FacebookAI" / "roberta-large"
    tiny_roberta(folder, [r["text"] for r in load_task("movie", max_train=200).train])
    monkeypatch.setenv("JUNKDNA_MIRROR", str(tmp_path))
    record = run(
        GlueConfig(
            **{**SMALL, "max_length": 64, "model": "FacebookAI/roberta-large"},
            sparsity=0.8,
            recipe=recipe,
        )
    )
    c, body, head = (
        record["certificate"]["pruning"],
        2 * (4 * 32 * 32 + 2 * 32 * 64),
        32 * 32 + 2 * 32,
    )
    assert record["origin"]["model"] == "mirror" and c["size"] == body + (
        head if recipe == "reference" else 0
    )
    kept = int(c["size"] * (1 - 0.8)) - 1 if recipe == "reference" else round(0.2 * c["size"])
    assert c["masked"] == c["size"] - kept
