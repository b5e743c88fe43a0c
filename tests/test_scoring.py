"Scoring against a naive reference, one sequence at a time in float32; questions and answers."

import functools
import itertools

import numpy as np
import pytest
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from junkdna_nb.base.config import StudyError
from junkdna_nb.base.models import load_decoder, load_tokenizer, resolve_model
from junkdna_nb.base.questions import (
    QUESTIONS,
    Question,
    answer_f1,
    demonstrations,
    exact_match,
    load_questions,
    normalize_answer,
    prompt,
    with_options,
    with_passages,
)
from junkdna_nb.decoding.scoring import SCORES, Request, Scorer, make_request, score_options

decoder = functools.cache(tiny_model)


@torch.no_grad()
def naive(model, request):
    ids = torch.tensor([request.context + request.continuation])
    logp = model(input_ids=ids).logits[0].float().log_softmax(-1)
    n = len(request.context)
    rows = logp[n - 1 : -1]
    return rows[range(len(request.continuation)), list(request.continuation)].numpy(), bool(
        (rows.argmax(-1) == ids[0, n:]).all()
    )


def agree(scored, model, requests, atol=2e-5):
    for s, r in zip(scored, requests, strict=True):
        expected, greedy = naive(model, r)
        assert np.allclose(s.log_probabilities, expected, atol=atol) and s.greedy == greedy


def each_option(items):
    "(question, option) of every option of [(question, options)]"
    for question, options in items:
        for option in options:
            yield question, option


tokens = st.integers(1, 49)
trees = st.lists(tokens, max_size=30).flatmap(
    lambda shots: st.lists(
        st.tuples(
            st.lists(tokens, min_size=1, max_size=8),
            st.lists(st.lists(tokens, min_size=1, max_size=4), min_size=1, max_size=5),
        ),
        min_size=1,
        max_size=6,
    ).map(lambda items: [Request(tuple(shots + q), tuple(o)) for q, o in each_option(items)])
)


@settings(deadline=None, max_examples=60)
@given(trees, st.sampled_from([1, 7, 40, 1000]), st.sampled_from(["llama", "gpt2", "opt"]))
def test_merged_beginnings_change_nothing(requests, row_tokens, name):
    "Any requests: shared or not, one beginning inside another, repeated, in rows of any size"
    scorer = Scorer(decoder(name), row_tokens=row_tokens)
    assert scorer.share
    agree(scorer.score(requests), decoder(name), requests)


@pytest.mark.parametrize(
    "name", ["llama_untied", "qwen2", "gpt2", "opt", "neox", "bloom", "gemma3"]
)
def test_every_family_is_scored_right_or_one_by_one(name):
    rng = np.random.default_rng(0)

    def draw(n):
        return tuple(int(t) for t in rng.integers(1, 50, n))

    shots = draw(30)
    requests = [
        Request(shots + draw(rng.integers(2, 9)), draw(rng.integers(1, 4))) for _ in range(12)
    ]
    scorer = Scorer(decoder(name))
    agree(scorer.score(requests), decoder(name), requests)
    assert scorer.share == (name not in ("bloom", "gemma3"))
    assert (
        scorer.computed < sum(len(r.context) + len(r.continuation) for r in requests)
        or not scorer.share
    )


def test_results_do_not_depend_on_what_else_is_asked():
    rng = np.random.default_rng(1)

    def draw(n):
        return tuple(int(t) for t in rng.integers(1, 50, n))

    requests = [Request(draw(5), draw(3)) for _ in range(20)]
    together = Scorer(decoder("llama")).score(requests)
    for i in (3, 11):
        (alone,) = Scorer(decoder("llama")).score([requests[i]])
        assert np.allclose(alone.log_probabilities, together[i].log_probabilities, atol=2e-5)
    turned = Scorer(decoder("llama")).score(requests[::-1])
    assert all(
        np.array_equal(a.log_probabilities, b.log_probabilities)
        for a, b in zip(together, turned[::-1], strict=True)
    )


def test_prompts_longer_than_the_context_are_refused():
    with pytest.raises(
        StudyError,
        match=r"a prompt of 300 tokens is longer than the model's context \(allowed: at most 256\)",
    ):
        Scorer(decoder("gpt2")).score([Request((1,) * 299, (2,))])


@pytest.fixture(scope="module")
def smollm2():
    source = resolve_model("smollm2")
    return load_decoder(source), load_tokenizer(source)


def test_the_packaged_decoder_knows_capitals(smollm2):
    "Few-shot, and equal to the naive reference; options of one and of several tokens"
    model, tokenizer = smollm2
    data = load_questions("facts", max_eval=24, kind="capital")
    shots = "".join(f"Question: {q.question}\nAnswer: {q.answers[0]}\n\n" for q in data.shots[:3])
    contexts = [f"{shots}Question: {q.question}\nAnswer:" for q in data.asked]
    options = [list(map(" {}".format, q.options[:4])) for q in data.asked]
    scorer = Scorer(model)
    assert scorer.share
    rows = score_options(scorer, tokenizer, contexts, options, [0] * len(contexts))
    for i in (0, 9):
        expected = [
            float(naive(model, make_request(tokenizer, contexts[i], o))[0].sum())
            for o in options[i]
        ]
        assert np.allclose(rows[i]["log_likelihoods"], expected, atol=1e-3)
    assert np.mean([r["raw"]["correct"] for r in rows]) > 0.6  # chance is 0.25
    for r in rows:
        for s in SCORES:
            assert r[s]["correct"] == (r[s]["margin"] > 0) and r[s]["chosen"] == int(
                np.argmax(r[s]["scores"])
            )


def test_tokens_are_split_where_the_context_ends(smollm2):
    _, tokenizer = smollm2
    a, b = (
        make_request(tokenizer, "The sky is ", "blue"),
        make_request(tokenizer, "The sky is", " blue"),
    )
    assert a == b and tokenizer.decode(a.continuation) == " blue"
    glued = make_request(tokenizer, "The sky is", "blue")  # without the space other tokens
    assert (
        glued.continuation != a.continuation
        and tokenizer.decode(glued.context + glued.continuation) == "The sky isblue"
    )
    start = make_request(tokenizer, "", "Blue")
    assert len(start.context) == 1 and tokenizer.decode(start.continuation) == "Blue"
    for empty in ("", "  "):
        with pytest.raises(StudyError, match="is empty: there is nothing to score"):
            make_request(tokenizer, "The sky is", empty)


@pytest.mark.parametrize(
    "a, b, em, f1",
    [
        ("The Beatles", ["beatles"], 1, 1),
        ("a  an THE cat", ["cat"], 1, 1),
        ("U.S.", ["us"], 1, 1),
        ("well-known", ["wellknown"], 1, 1),
        ("naïve café", ["Naïve Café!"], 1, 1),
        ("New York City", ["New York"], 0, 0.8),
        ("Paris", ["London", "paris, France"], 0, 2 / 3),
        ("dog", ["cat"], 0, 0),
        ("to be or not to be", ["to be"], 0, 4 / 8),
        ("theatre", ["the theatre"], 1, 1),
    ],
)
def test_answers_are_compared_by_the_rules_of_squad(a, b, em, f1):
    assert exact_match(a, b) == em and answer_f1(a, b) == pytest.approx(f1)


@pytest.mark.parametrize("name", ["facts", "quartz", "logiqa"])
def test_packaged_questions_are_fair(name):
    data = load_questions(name)
    assert len(data.asked) > 500

    def text(q):
        return normalize_answer(q.passage + q.question)

    assert not {text(q) for q in data.asked} & {text(q) for q in data.shots}
    for q in data.asked + data.shots:
        normal = [normalize_answer(o) or o for o in q.options]
        assert len(set(normal)) == len(normal)
        assert not {normalize_answer(o) for i, o in enumerate(q.options) if i != q.gold} & {
            normalize_answer(a) for a in q.answers
        }
    assert load_questions(name, max_eval=40).asked == load_questions(name, max_eval=80).asked[:40]


@pytest.mark.parametrize("name", [n for n, t in QUESTIONS.items() if t.source != "package"])
def test_hub_questions_are_read_from_the_mirror(mirror, name):
    task = QUESTIONS[name]
    if not (mirror / task.source).is_dir():
        pytest.skip(f"no mirror of {task.source}")
    data = load_questions(name)
    assert len(data.asked) >= 300 and len(data.shots) >= 50
    assert all(q.options for q in data.asked) == (task.format != "open") and (
        task.format == "choice" or all(q.answers for q in data.asked)
    )
    if name == "arc_easy":
        assert {len(q.options) for q in data.asked} == {3, 4, 5} and {
            q.chance for q in data.asked
        } == {1 / 3, 1 / 4, 1 / 5}
    if name == "squad":
        for q in data.asked:
            assert any(a in q.passage for a in q.answers)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.text("abcdefgh", min_size=1, max_size=4), min_size=3, max_size=9, unique=True),
    st.data(),
)
def test_options_are_nested_and_keep_their_order(texts, draw):
    gold, seed = draw.draw(st.integers(0, len(texts) - 1)), draw.draw(st.integers(0, 5))
    q, smaller = Question("q", "?", tuple(texts), gold), ()
    for n in range(2, len(texts) + 1):
        varied = with_options(q, n, seed)
        assert (
            len(set(varied.options)) == n
            and varied.options[varied.gold] == texts[gold]
            and varied.chance == 1 / n
        )
        assert [o for o in varied.options if o in smaller] == list(
            smaller
        )  # what was there is there, in the same order
        assert set(with_options(q, n, seed + 1).options) == set(
            varied.options
        )  # the seed turns the order only
        smaller = varied.options


def test_demonstrations_are_nested_and_never_asked():
    data = load_questions("facts", max_eval=50)
    for seed in range(3):
        eight = demonstrations(data, 8, seed)
        assert demonstrations(data, 4, seed) == eight[:4] and not {q.id for q in eight} & {
            q.id for q in load_questions("facts").asked
        }
        assert prompt(data.asked[0], eight[:2]) in prompt(data.asked[0], (eight[7],) + eight[:2])
    assert demonstrations(data, 8, 0) != demonstrations(data, 8, 1)


def test_other_passages_never_hold_the_answer(mirror):
    data = load_questions("squad", max_eval=15)
    for q in data.asked:
        before = set()
        for n in (0, 1, 4, 9):
            for position, at in ((0, 0), (1, n), (0.5, (n + 1) // 2)):
                passages = with_passages(data, q, n, position)
                assert len(passages) == n + 1 and passages[at] == q.passage
            others = set(passages) - {q.passage}
            assert before <= others and len(others) == n
            for passage, answer in itertools.product(others, q.answers):
                assert f" {normalize_answer(answer)} " not in f" {normalize_answer(passage)} "
            before = others
    assert (
        "Passage" not in prompt(q)
        and prompt(q, book=True).count("Passage: ") == 1
        and prompt(q, passages=passages).count("Passage: ") == 10
    )


def test_a_question_must_be_answerable():
    with pytest.raises(StudyError, match="neither options nor answers"):
        Question("q", "?")
    with pytest.raises(
        StudyError, match=r"gold=-1 of question 'q' is out of range \(allowed: 0 to 1\)"
    ):
        Question("q", "?", ("a", "b"), -1)


def test_a_missing_data_set_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("JUNKDNA_MIRROR", str(tmp_path))
    # Set in the libraries: the variable is read when they are imported, and a retry takes long.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    from junkdna_nb.base import questions

    questions._all_questions.cache_clear()
    with pytest.raises(
        StudyError, match="data of task 'piqa' could not be opened .* use a packaged task"
    ):
        load_questions("piqa")
