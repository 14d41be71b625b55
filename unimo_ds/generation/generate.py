"""Generation for this project's commands and tasks: prompts in, texts out, in batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import LogitsProcessorList, PretrainedConfig, PreTrainedModel

from unimo_ds.data.inputs import ImageInput, clean_sequence
from unimo_ds.data.joined_texts import join_texts
from unimo_ds.data.masking import Tokens, Vocabulary
from unimo_ds.data.packing import pack_sequences
from unimo_ds.data.schema import FIRST_POSITION, PAD, SEP, SequenceInput, SequenceRole
from unimo_ds.generation.decoding import PrefixCache, encode_prefixes
from unimo_ds.generation.mixin import PrefixGenerationMixin, gnmt_length
from unimo_ds.generation.words import Forbidden, NoRepeatedWords
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils import heartbeat
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError

_MOST = 10_000
"""Limit on beams, and on texts per prompt."""


@dataclass(frozen=True)
class GenerationSettings:
    """How texts are generated. The defaults are the released UNIMO's for captions, except that it sets `min_tokens` to 5."""

    num_beams: int = 5
    """1: greedy, or plain sampling."""
    length_penalty: float = 0.6
    """a in `log P / ((5 + t) / 6) ** a`, where t is the number of tokens, end token included; 0: no penalty."""
    min_tokens: int = 0
    """Fewest tokens before the end token."""
    max_tokens: int = 50
    """Limit on tokens of a text, end token included; longer texts are cut."""
    no_repeat_words: int = 0
    """No sequence of this many words occurs twice in a text (3: trigram blocking); 0: anything may repeat."""
    sample: bool = False
    """Sample tokens instead of taking the best."""
    temperature: float = 1.0
    top_k: int = 0
    """Sample among the k likeliest; 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest whose probabilities add up to this."""
    seed: int = 0
    num_texts: int = 1
    """Texts per prompt, best first; fewer if the other settings allow no more."""
    early_stopping: Literal["full", "likely", "never"] = "likely"
    """When beam search ends: as soon as it has `num_beams` finished texts; if a better one is unlikely; if none is possible."""
    end_id: int = SEP
    """Token that ends a text. A fine-tuned model may use another one ([MASK] in the released text tasks)."""
    batch_prompts: int = 16

    def check(self, *, max_positions: int) -> None:
        """
        Raises:
            UserError: a number that is out of range, or exceeds the model's position table; the message names it.
        """
        claims = (
            ("num_beams", 1 <= self.num_beams <= _MOST, f"from 1 to {_MOST}"),
            # Larger powers of a length leave the range of floats in which beam search marks missing texts.
            ("length_penalty", -2 <= self.length_penalty <= 10, "from -2 to 10"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, f"from 0 to max_tokens ({self.max_tokens})"),
            ("max_tokens", 1 <= self.max_tokens <= max_positions - FIRST_POSITION, f"from 1 to {max_positions - 2}"),
            ("no_repeat_words", self.no_repeat_words >= 0, "0 or more"),
            ("temperature", 1e-4 <= self.temperature <= 1e4, "from 0.0001 to 10000"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("seed", abs(self.seed) < 2**63, "a number of 64 bits"),
            ("num_texts", 1 <= self.num_texts <= _MOST, f"from 1 to {_MOST}"),
            ("batch_prompts", self.batch_prompts >= 1, "at least 1"),
        )
        for name, is_right, wanted in claims:
            if not is_right:
                raise UserError(f"{name}={getattr(self, name)} must be {wanted}")
        if self.num_texts > self.num_beams and (self.num_beams > 1 or not self.sample):
            raise UserError(
                f"num_texts={self.num_texts} needs as many beams; set num_beams={self.num_texts}, or sample with num_beams=1"
            )


@dataclass(frozen=True)
class Generated:
    """One text."""

    tokens: tuple[int, ...]
    """Without [CLS] and end token."""
    is_finished: bool
    """Whether it ended with the end token, not at `max_tokens`."""
    score: float | None
    """Penalised log probability; only from beam search."""


def make_prompt(
    *,
    image: ImageInput | None = None,
    source: Tokens | None = None,
    more_sources: Sequence[Tokens] = (),
    max_source_tokens: int = 512,
) -> SequenceInput:
    """What to generate from: an image (`image_input`), the tokens of a source text without specials, or both.

    more_sources: further texts, each after a [SEP]. Texts longer than `max_source_tokens`, specials included, are cut at the
    end of the longest.

    Raises:
        UserError: neither, or a source without tokens.
    """
    if source is not None and not len(source):
        raise UserError("the source text is empty; give at least one word, or an image alone")
    if image is None and source is None:
        raise UserError("there is nothing to generate from; give an image, a text, or both")
    text = None if source is None else join_texts((source, *more_sources), max_text_tokens=max_source_tokens)
    role = SequenceRole.JOINT_PAIR
    if image is None or source is None:
        role = SequenceRole.SINGLE_TEXT if image is None else SequenceRole.SINGLE_IMAGE
    return clean_sequence(role=role, image=image, text=text)


class Generator(PreTrainedModel, PrefixGenerationMixin):  # type: ignore[misc]
    """The least that transformers' generation needs, around a model that is referenced, not copied."""

    config_class = PretrainedConfig
    base_model_prefix = "unimo"
    penalised_length = staticmethod(gnmt_length)

    def __init__(self, model: Unimo) -> None:
        super().__init__(PretrainedConfig())
        self.unimo = model

    def forward(
        self, decoder_input_ids: torch.Tensor, past_key_values: PrefixCache, logits_to_keep: int, **unused: Any
    ) -> Any:
        return self.next_token_logits(decoder_input_ids, past_key_values, logits_to_keep)


def generate(
    model: Unimo, prompts: Sequence[SequenceInput], vocabulary: Vocabulary, settings: GenerationSettings | None = None
) -> list[list[Generated]]:
    """`settings.num_texts` texts for each prompt, in the prompts' order; the model's mode is restored afterwards.

    prompts: from `make_prompt`, or any bidirectional sequences. vocabulary: of the model's tokenizer; of its specials only the
    end token is generated. Greedy and beam results do not depend on the other prompts of a batch, up to rounding; sampled ones
    depend on the seed and the batch.

    Raises:
        UserError: settings that are invalid for this model.
    """
    settings = settings or GenerationSettings()
    settings.check(max_positions=model.config.max_positions)
    arguments = _arguments(vocabulary, settings)
    device = model.text_embedding.word.weight.device
    results: list[list[Generated]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    generator = Generator(model)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.inference_mode():
            torch.manual_seed(settings.seed)
            longest_first = sorted(range(len(prompts)), key=lambda number: -prompts[number].length)
            for numbers in batched(longest_first, settings.batch_prompts):
                batch = pack_sequences(
                    [prompts[number] for number in numbers], feature_size=model.config.region_feature_size
                )
                found = generator.generate_from(encode_prefixes(model, batch.to(device)), **arguments)
                heartbeat.beat()
                scores = [None] * len(found.sequences) if settings.num_beams == 1 else found.sequences_scores.tolist()
                for row, (tokens, score) in enumerate(zip(found.sequences[:, 1:].tolist(), scores, strict=True)):
                    texts, text = results[numbers[row // settings.num_texts]], _generated(tokens, score, settings)
                    if _is_found(text, settings) or not texts:
                        texts.append(text)
    finally:
        model.train(was_training)
    return results


def _arguments(vocabulary: Vocabulary, settings: GenerationSettings) -> dict[str, Any]:
    """`settings` as arguments of transformers."""
    forbidden = [int(token) for token in np.flatnonzero(vocabulary.special) if token != settings.end_id]
    processors = LogitsProcessorList([Forbidden(forbidden, end_id=settings.end_id, min_tokens=settings.min_tokens)])
    if settings.no_repeat_words:
        processors.append(NoRepeatedWords(settings.no_repeat_words, vocabulary.starts_word))
    sampling = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    beams = {
        "length_penalty": settings.length_penalty,
        "early_stopping": {"full": True, "likely": False, "never": "never"}[settings.early_stopping],
    }
    return {
        "num_beams": settings.num_beams,
        "num_return_sequences": settings.num_texts,
        "do_sample": settings.sample,
        **(sampling if settings.sample else {}),
        **(beams if settings.num_beams > 1 else {}),
        "max_new_tokens": settings.max_tokens,
        "eos_token_id": settings.end_id,
        "pad_token_id": PAD,
        "logits_processor": processors,
        "return_dict_in_generate": True,
        "output_scores": settings.num_beams > 1,
    }


def _generated(tokens: list[int], score: float | None, settings: GenerationSettings) -> Generated:
    is_finished = settings.end_id in tokens
    kept = tokens[: tokens.index(settings.end_id)] if is_finished else [token for token in tokens if token != PAD]
    return Generated(tuple(kept), is_finished, score)


def _is_found(text: Generated, settings: GenerationSettings) -> bool:
    """False for a placeholder: if fewer texts than beams exist, beam search fills up with log probabilities near -1e9."""
    if text.score is None:
        return True
    length: float = gnmt_length(len(text.tokens) + text.is_finished) ** settings.length_penalty
    return text.score * length > -1e8
