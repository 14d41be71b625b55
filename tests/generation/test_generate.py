"""Searches against what they are defined by: full recomputation, every possible text, and distributions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.generation import small
from unimo_ds.data.schema import SEP
from unimo_ds.generation.generate import GenerationSettings, generate, make_prompt
from unimo_ds.generation.mixin import gnmt_length
from unimo_ds.generation.words import repeating_tokens, split_words
from unimo_ds.utils.errors import UserError

END = SEP


def greedy_by_recomputation(model, prompt, vocabulary, *, max_tokens: int) -> tuple[int, ...]:
    forbidden = [token for token in np.flatnonzero(vocabulary.special) if token != END]
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        scores = small.log_probabilities(model, prompt, tokens)[0][-1]
        scores[forbidden] = -torch.inf
        token = int(scores.argmax())
        if token == END:
            break
        tokens.append(token)
    return tuple(tokens)


def test_greedy_equals_full_recomputation_token_for_token():
    model, vocabulary, prompts = small.make_model(), small.make_vocabulary(), small.make_prompts(12)
    found = generate(model, prompts, vocabulary, GenerationSettings(num_beams=1, max_tokens=20, batch_prompts=5))
    expected = [greedy_by_recomputation(model, prompt, vocabulary, max_tokens=20) for prompt in prompts]
    assert [texts[0].tokens for texts in found] == expected
    assert len({len(tokens) for tokens in expected}) > 1, "some texts end early"
    assert [texts[0].is_finished for texts in found] == [len(tokens) < 20 for tokens in expected]


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.2])
@pytest.mark.parametrize("min_tokens", [0, 3])
def test_beam_search_equals_brute_force(length_penalty: float, min_tokens: int):
    """Four ordinary tokens, texts of up to four: every one is scored; enough beams lose none of them."""
    size, max_tokens, wanted = 9, 4, 6
    model = small.make_model(vocabulary_size=size).double()
    vocabulary, prompts = small.make_vocabulary(size), small.make_prompts(3, vocabulary_size=size)
    settings = GenerationSettings(
        num_beams=90,
        num_texts=wanted,
        length_penalty=length_penalty,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        early_stopping="never",
    )
    found = generate(model, prompts, vocabulary, settings)
    for prompt, texts in zip(prompts, found, strict=True):
        texts_to_score = [
            tokens
            for length in range(min_tokens, max_tokens + 1)
            for tokens in itertools.product(vocabulary.ordinary.tolist(), repeat=length)
        ]
        whole = [[*tokens, END][:max_tokens] for tokens in texts_to_score]
        hypotheses = []
        for tokens, target, rows in zip(
            texts_to_score, whole, small.log_probabilities(model, prompt, *whole), strict=True
        ):
            score = float(rows[torch.arange(len(target)), target].sum())
            hypotheses.append((score / gnmt_length(len(target)) ** length_penalty, tokens))
        hypotheses.sort(reverse=True)
        assert [text.tokens for text in texts] == [tokens for _, tokens in hypotheses[:wanted]]
        assert [text.score for text in texts] == pytest.approx([score for score, _ in hypotheses[:wanted]], abs=1e-5)


def textbook_search(model, prompt, vocabulary, settings) -> list[tuple[tuple[int, ...], float]]:
    """Beam search as it is written in books, every text scored anew: (tokens with their end, penalised score), best first."""
    forbidden = [token for token in np.flatnonzero(vocabulary.special) if token != END]
    running, finished = [((), 0.0)], []
    for length in range(1, settings.max_tokens + 1):
        candidates = []
        rows = small.log_probabilities(model, prompt, *(list(tokens) for tokens, _ in running))
        for (tokens, score), row in zip(running, rows, strict=True):
            words = split_words(tokens, vocabulary.starts_word)
            for token in set(range(len(row[-1]))) - set(forbidden):
                longer = split_words([*tokens, token], vocabulary.starts_word)
                before = words if len(longer) > len(words) else words[:-1]  # the word in progress is none yet
                pairs = set(itertools.pairwise(before)) if settings.no_repeat_words else set()
                if token == END and length <= settings.min_tokens:
                    continue
                if token == END or tuple(longer[-2:]) not in pairs:
                    candidates.append((score + float(row[-1][token]), (*tokens, token)))
        candidates.sort(reverse=True)
        ends = {tokens for _, tokens in candidates if tokens[-1] == END or length == settings.max_tokens}
        penalty = gnmt_length(length) ** settings.length_penalty
        finished += [(s / penalty, tokens) for s, tokens in candidates[: settings.num_beams] if tokens in ends]
        finished = sorted(finished, reverse=True)[: settings.num_beams]
        running = [(tokens, s) for s, tokens in candidates[: 2 * settings.num_beams] if tokens not in ends]
        running = running[: settings.num_beams]
        is_full = len(finished) == settings.num_beams
        if not running or (settings.early_stopping == "full" and is_full):
            break
        longest = settings.max_tokens if settings.early_stopping == "never" and settings.length_penalty > 0 else length
        if is_full and running[0][1] / gnmt_length(longest) ** settings.length_penalty <= finished[-1][0]:
            break
    return [(tokens, score) for score, tokens in finished]


@pytest.mark.parametrize("early_stopping", ["full", "likely", "never"])
@pytest.mark.parametrize(("size", "num_beams"), [(30, 3), (30, 5), (9, 8), (7, 8)])
def test_beam_search_equals_a_textbooks(early_stopping, size: int, num_beams: int):
    """Few beams, so that what is lost matters; and in the tiny vocabularies more beams than texts, which are not made up."""
    model, vocabulary = small.make_model(vocabulary_size=size).double(), small.make_vocabulary(size)
    prompts = small.make_prompts(3, vocabulary_size=size)
    lengths = set()
    for length_penalty, max_tokens, no_repeat_words in ((0.6, 9, 0), (-1.0, 1, 0), (2.0, 2, 2), (0.0, 6, 2)):
        settings = GenerationSettings(
            num_beams=num_beams,
            num_texts=num_beams,
            length_penalty=length_penalty,
            min_tokens=1 if max_tokens > 2 else 0,
            max_tokens=max_tokens,
            no_repeat_words=no_repeat_words,
            early_stopping=early_stopping,
        )
        for prompt, texts in zip(prompts, generate(model, prompts, vocabulary, settings), strict=True):
            expected = textbook_search(model, prompt, vocabulary, settings)
            assert [text.tokens for text in texts] == [
                tuple(token for token in tokens if token != END) for tokens, _ in expected
            ]
            assert [text.score for text in texts] == pytest.approx([score for _, score in expected], abs=1e-5)
            lengths.add(len(texts))
    assert (len(lengths) > 1) == (size < num_beams + 2), "fewer texts than beams only where there are no more"


def test_results_do_not_depend_on_the_batch():
    model, vocabulary, prompts = small.make_model(), small.make_vocabulary(), small.make_prompts(9)
    settings = GenerationSettings(num_beams=4, num_texts=2, max_tokens=12)
    together = generate(model, prompts, vocabulary, settings)
    alone = [generate(model, [prompt], vocabulary, settings)[0] for prompt in prompts]
    assert [[text.tokens for text in texts] for texts in together] == [
        [text.tokens for text in texts] for texts in alone
    ]
    assert generate(model, [], vocabulary, settings) == []


def test_lengths_stay_within_their_limits():
    model, vocabulary, prompts = small.make_model(), small.make_vocabulary(), small.make_prompts()
    for num_beams in (1, 3):
        settings = GenerationSettings(num_beams=num_beams, min_tokens=6, max_tokens=9)
        for (text,) in generate(model, prompts, vocabulary, settings):
            assert 6 <= len(text.tokens) <= 9 - text.is_finished
            assert not vocabulary.special[list(text.tokens)].any()


def test_no_word_trigram_comes_twice():
    model, vocabulary, prompts = small.make_model(), small.make_vocabulary(), small.make_prompts()

    def trigrams(tokens: tuple[int, ...]) -> list[tuple]:
        words = split_words(tokens, vocabulary.starts_word)
        return [tuple(words[i : i + 3]) for i in range(len(words) - 2)]

    repeated = 0
    for num_beams in (1, 3):
        free = GenerationSettings(num_beams=num_beams, min_tokens=40, max_tokens=40)
        for (text,) in generate(model, prompts, vocabulary, free):
            repeated += len(trigrams(text.tokens)) - len(set(trigrams(text.tokens)))
        blocked = GenerationSettings(num_beams=num_beams, min_tokens=40, max_tokens=40, no_repeat_words=3)
        for (text,) in generate(model, prompts, vocabulary, blocked):
            # The last word may still be growing, so its trigram is not over.
            finished = trigrams(text.tokens)[:-1]
            assert len(finished) == len(set(finished))
    assert repeated > 10, "without blocking they do come twice"


def test_what_would_repeat_a_word_sequence():
    starts_word = np.zeros(60, bool)
    starts_word[:30] = True  # 1..29 begin words, 30.. continue them
    words = [1, 2, 40, 3, 5, 1, 2, 40]
    assert repeating_tokens(words, starts_word, size=3) == {3}
    assert repeating_tokens(words, starts_word, size=2) == {3}
    # In the middle of a word of two pieces: only the piece that would finish it is forbidden.
    assert repeating_tokens([1, 2, 40, 3, 1, 2], starts_word, size=2) == {40}
    assert repeating_tokens([1, 2, 40, 41, 3, 1, 2], starts_word, size=2) == set()
    assert repeating_tokens([1, 2, 40, 41, 3, 1, 2, 40], starts_word, size=2) == {41}
    assert repeating_tokens([1, 2], starts_word, size=1) == {1, 2}
    # A text may begin with a piece that elsewhere continues a word: behind a word it does not repeat the first.
    assert repeating_tokens([40, 2], starts_word, size=1) == {2}
    assert repeating_tokens([], starts_word, size=3) == set()


def test_sampling_draws_from_the_model():
    model, vocabulary = small.make_model(), small.make_vocabulary()
    prompt = small.make_prompts(1)[0]
    temperature, number = 0.7, 4000
    settings = GenerationSettings(num_beams=1, sample=True, temperature=temperature, max_tokens=1, num_texts=number)
    (texts,) = generate(model, [prompt], vocabulary, settings)
    scores = small.log_probabilities(model, prompt, [])[0][0] / temperature
    scores[[token for token in np.flatnonzero(vocabulary.special) if token != END]] = -torch.inf
    expected = scores.softmax(-1).numpy()
    drawn = np.bincount([text.tokens[0] if text.tokens else END for text in texts], minlength=len(expected)) / number
    assert np.abs(drawn - expected).max() < 4 * np.sqrt(0.25 / number)
    # Against a flat distribution the same bound fails.
    assert np.abs(drawn - 1 / len(expected)).max() > 4 * np.sqrt(0.25 / number)


def test_sampling_is_repeatable_and_narrows_to_greedy():
    model, vocabulary, prompts = small.make_model(), small.make_vocabulary(), small.make_prompts(4)

    def texts(**changes) -> list[list[tuple[int, ...]]]:
        settings = GenerationSettings(num_beams=1, max_tokens=10, **changes)
        return [[text.tokens for text in found] for found in generate(model, prompts, vocabulary, settings)]

    before = torch.random.get_rng_state()
    assert texts(sample=True, seed=3, num_texts=2) == texts(sample=True, seed=3, num_texts=2)
    assert texts(sample=True, seed=3) != texts(sample=True, seed=4)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's randomness is left alone"
    assert texts(sample=True, top_k=1) == texts(sample=True, top_p=1e-6) == texts()


def test_the_models_mode_is_put_back():
    model = small.make_model(hidden_dropout=0.5).train()
    settings = GenerationSettings(num_beams=1, max_tokens=5)
    once, again = (generate(model, small.make_prompts(2), small.make_vocabulary(), settings) for _ in range(2))
    assert once == again
    assert model.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 0}, "num_beams=0 must be from 1 to 10000"),
        ({"num_beams": 2**63 - 1}, "must be from 1 to 10000"),
        ({"seed": 2**63}, "seed=9223372036854775808 must be a number of 64 bits"),
        ({"max_tokens": 65}, "max_tokens=65 must be from 1 to 64"),
        ({"min_tokens": 51}, r"min_tokens=51 must be from 0 to max_tokens \(50\)"),
        ({"temperature": 0.0}, "temperature=0.0 must be from 0.0001"),
        ({"temperature": float("inf")}, "temperature=inf must be from 0.0001"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"length_penalty": 5000.0}, "length_penalty=5000.0 must be from -2 to 10"),
        ({"length_penalty": float("nan")}, "length_penalty=nan must be from -2 to 10"),
        ({"num_texts": 6}, "needs as many beams"),
        ({"num_texts": 6, "sample": True}, "needs as many beams"),
    ],
)
def test_settings_that_make_no_sense(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        generate(small.make_model(), small.make_prompts(1), small.make_vocabulary(), GenerationSettings(**changes))


def test_prompts_of_nothing_are_refused():
    with pytest.raises(UserError, match="nothing to generate from"):
        make_prompt()
    with pytest.raises(UserError, match="source text is empty"):
        make_prompt(source=np.zeros(0, np.int32))
