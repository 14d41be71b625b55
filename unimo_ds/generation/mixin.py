"""transformers' generation (greedy, sampling, beam search and their processors) on top of cached prefix decoding.

A class with this mixin and a `unimo` can generate. transformers sees a decoder whose input is the target so far, starting with
[CLS]; the prefix is in the cache that it passes along. Reordering, scores, stopping and sampling are transformers' own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from unimo_ds.data.schema import CLS
from unimo_ds.generation.decoding import PrefixCache, decode
from unimo_ds.models.unimo import Unimo

_CACHE = "cache"
"""Name of the argument in which transformers passes the cache; before 5.24 it was another."""
if _CACHE not in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters:
    _CACHE = "past_key_values"


def gnmt_length(num_tokens: float) -> float:
    """(5 + t) / 6: the released UNIMO divides a hypothesis' log probability by a power of this length."""
    return (5 + num_tokens) / 6


class PrefixGenerationMixin(GenerationMixin):  # type: ignore[misc]
    """`generate_from` an encoded prefix."""

    unimo: Unimo
    penalised_length: Callable[[float], float] | None = None
    """From tokens of a hypothesis to the length that beam search raises to `length_penalty`; None: the number of tokens."""

    def generate_from(self, cache: PrefixCache, **arguments: Any) -> Any:
        """`GenerationMixin.generate` for the prompts of `cache`; rows are [CLS] and the generated tokens.

        With `use_cache=False` every step recomputes all target positions (the prefix stays cached).

        Raises:
            ValueError: assisted generation is requested; the assistant would mistake the target so far for its source.
        """
        for name in ("assistant_model", "assistant_early_exit"):
            if arguments.get(name) is not None:
                raise ValueError(f"{name} cannot see what is written from; give prompt_lookup_num_tokens instead")
        begin = torch.full((cache.num_prompts, 1), CLS, device=self.unimo.text_embedding.word.weight.device)
        given: dict[str, Any] = {_CACHE: cache, **arguments}
        return super().generate(begin, **given)  # type: ignore[misc]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        past_key_values: PrefixCache | None = None,
        cache: PrefixCache | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Arguments of `forward`: the target tokens not cached yet, and the cache under its older name."""
        prefixes = past_key_values if cache is None else cache
        assert prefixes is not None
        if not arguments.get("use_cache", True):
            prefixes.forget_targets()
        return {
            "decoder_input_ids": input_ids[:, prefixes.get_seq_length() :],
            "past_key_values": prefixes,
            "logits_to_keep": 1,  # transformers asks for more to verify candidates
        }

    def next_token_logits(
        self, decoder_input_ids: torch.Tensor, cache: PrefixCache, logits_to_keep: int
    ) -> CausalLMOutputWithPast:
        """One step: logits [R, n, V] for what follows each of the last `logits_to_keep` tokens. The cache grows in place."""
        hidden_RnE = decode(self.unimo, decoder_input_ids, cache)
        logits, _ = self.unimo.language_head(hidden_RnE[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    # Both methods below use lengths only in `log probability / length ** length_penalty`, so another length is another penalty.
    # They are internals of transformers: its version is pinned, and a test compares with brute force.

    def _update_finished_beams(  # type: ignore[override]
        self, *, cur_len: int, decoder_prompt_len: int, **arguments: Any
    ) -> Any:
        length = cur_len + 1 - decoder_prompt_len
        arguments["cur_len"] = self._penalised(length) - 1 + decoder_prompt_len
        return super()._update_finished_beams(decoder_prompt_len=decoder_prompt_len, **arguments)

    def _check_early_stop_heuristic(  # type: ignore[override]
        self, *, cur_len: int, max_length: int, decoder_prompt_len: int, **arguments: Any
    ) -> Any:
        arguments["cur_len"] = self._penalised(cur_len - decoder_prompt_len) + decoder_prompt_len
        arguments["max_length"] = self._penalised(max_length - decoder_prompt_len) + decoder_prompt_len
        return super()._check_early_stop_heuristic(decoder_prompt_len=decoder_prompt_len, **arguments)

    def _penalised(self, length: float) -> float:
        return length if self.penalised_length is None else self.penalised_length(length)
