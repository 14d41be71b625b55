"""Other ways to compute packed attention: torch's SDPA (dense mask; cuDNN and FlashAttention on equal lengths), FlexAttention,
and FlashAttention-2's packed call, which torch includes (sequences with a prefix need two calls of it).

Each gets its inputs in its preferred form; padding and unpadding are not counted. Those that split or gather sequences
count what they copy, since they could not do without.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels.timing import Contender
from unimo_ds.ops.attention import sequence_mask
from unimo_ds.ops.layout import Layout


def peers(layout: Layout, probability: float, inputs: torch.Tensor, upstream: torch.Tensor) -> dict[str, Contender]:
    """Those that can run on these inputs. inputs: [T, 3, H, D]. upstream: [T, H, D]."""
    lengths = (layout.sequence_starts[1:] - layout.sequence_starts[:-1]).tolist()
    is_bidirectional = layout.prefix_lengths.tolist() == lengths
    if layout.prefix_of is not None:
        can = is_bidirectional and inputs.device.type == "cuda" and inputs.dtype != torch.float32
        return (
            {"FlashAttention-2 varlen, keys copied": _flash_copied(layout, probability, inputs, upstream)}
            if can
            else {}
        )
    found = {"torch SDPA, dense mask": _dense_mask(layout, probability, inputs, upstream)}
    if inputs.device.type != "cuda" or inputs.dtype == torch.float32:
        return found
    found["FlashAttention-2 varlen"] = (
        _flash_varlen(layout, probability, inputs, upstream)
        if is_bidirectional
        else _flash_two_calls(layout, probability, inputs, upstream)
    )
    if is_bidirectional and len(set(lengths)) == 1:
        for name, backend in (
            ("torch SDPA, cuDNN, equal lengths", SDPBackend.CUDNN_ATTENTION),
            ("torch SDPA, flash, equal lengths", SDPBackend.FLASH_ATTENTION),
        ):
            found[name] = _equal_lengths(backend, lengths[0], probability, inputs, upstream)
    if probability == 0 and not is_bidirectional:  # it has no dropout, and FlashAttention takes packs without prefixes
        found["FlexAttention, compiled"] = _flex(layout, inputs, upstream)
    return found


def _padded(layout: Layout, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[S, longest, ...] padded with zeros, and [S, longest], which of these are positions."""
    lengths = (layout.sequence_starts[1:] - layout.sequence_starts[:-1]).long()
    valid = torch.arange(layout.longest, device=tensor.device) < lengths[:, None]
    padded = tensor.new_zeros(len(lengths), layout.longest, *tensor.shape[1:])
    padded[valid] = tensor
    return padded, valid


def _heads_first(padded: torch.Tensor) -> torch.Tensor:
    return padded.transpose(1, 2).contiguous().detach()


def _dense_mask(layout: Layout, probability: float, inputs: torch.Tensor, upstream: torch.Tensor) -> Contender:
    padded, valid = _padded(layout, inputs)
    masks = [sequence_mask(layout.longest, int(p), device=inputs.device) for p in layout.prefix_lengths]
    mask = (torch.stack(masks) & valid[:, None, :])[:, None]
    mask |= ~valid[:, None, :, None]  # rows of padding attend to everything, so that none is empty

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=probability)

    leaves = tuple(_heads_first(part) for part in padded.unbind(2))
    return Contender(call, leaves, _heads_first(_padded(layout, upstream)[0]))


def _equal_lengths(
    backend: SDPBackend, length: int, probability: float, inputs: torch.Tensor, upstream: torch.Tensor
) -> Contender:
    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(query, key, value, dropout_p=probability)

    batched = inputs.unflatten(0, (-1, length))
    # Positions before heads in memory, as a projection writes them: no backend needs a copy.
    leaves = tuple(part.contiguous().transpose(1, 2) for part in batched.unbind(2))
    return Contender(call, leaves, upstream.unflatten(0, (-1, length)).contiguous().transpose(1, 2))


def _flash_varlen(layout: Layout, probability: float, inputs: torch.Tensor, upstream: torch.Tensor) -> Contender:
    starts, longest = layout.sequence_starts, layout.longest

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return _flash(query, key, value, starts, starts, longest, longest, probability, is_causal=False)

    return Contender(call, tuple(part.contiguous() for part in inputs.unbind(1)), upstream)


def _flash_two_calls(layout: Layout, probability: float, inputs: torch.Tensor, upstream: torch.Tensor) -> Contender:
    """Prefixes (and whole bidirectional sequences) attend to themselves: one call without a mask. What follows a prefix attends
    to the whole sequence up to itself: one call whose causal mask is aligned at the end. Queries of the two are gathered."""
    lengths = (layout.sequence_starts[1:] - layout.sequence_starts[:-1]).tolist()
    prefixes, starts = layout.prefix_lengths.tolist(), layout.sequence_starts.tolist()
    spans = list(zip(starts, prefixes, lengths, strict=False))
    device = inputs.device
    first_rows = _rows([(start, start + prefix) for start, prefix, _ in spans], device)
    later = [(start, prefix, length) for start, prefix, length in spans if prefix < length]
    later_rows = _rows([(start + prefix, start + length) for start, prefix, length in later], device)
    key_rows = _rows([(start, start + length) for start, _, length in later], device)
    first_starts = _starts(prefixes, device)
    query_starts = _starts([length - prefix for _, prefix, length in later], device)
    key_starts = _starts([length for _, _, length in later], device)
    longest_first = max(prefixes)
    longest_query = max(length - prefix for _, prefix, length in later)
    longest_key = max(length for _, _, length in later)

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        first = [part.index_select(0, first_rows) for part in (query, key, value)]
        one = _flash(*first, first_starts, first_starts, longest_first, longest_first, probability, is_causal=False)
        rest = [query.index_select(0, later_rows), key.index_select(0, key_rows), value.index_select(0, key_rows)]
        two = _flash(*rest, query_starts, key_starts, longest_query, longest_key, probability, is_causal=True)
        return torch.empty_like(query).index_copy(0, first_rows, one).index_copy(0, later_rows, two)

    return Contender(call, tuple(part.contiguous() for part in inputs.unbind(1)), upstream)


def _flash_copied(layout: Layout, probability: float, inputs: torch.Tensor, upstream: torch.Tensor) -> Contender:
    """Bidirectional sequences, some of which attend to another one too: a copy of its keys goes before their own."""
    assert layout.prefix_of is not None
    spans = list(itertools.pairwise(layout.sequence_starts.tolist()))
    seen = [
        [span] if owner < 0 else [spans[owner], span]
        for span, owner in zip(spans, layout.prefix_of.tolist(), strict=True)
    ]
    counts = [sum(stop - start for start, stop in parts) for parts in seen]
    key_rows = _rows(list(itertools.chain.from_iterable(seen)), inputs.device)
    key_starts, longest_key = _starts(counts, inputs.device), max(counts)

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        keys, values = key.index_select(0, key_rows), value.index_select(0, key_rows)
        starts, longest = layout.sequence_starts, layout.longest
        return _flash(query, keys, values, starts, key_starts, longest, longest_key, probability, is_causal=False)

    return Contender(call, tuple(part.contiguous() for part in inputs.unbind(1)), upstream)


def _rows(spans: list[tuple[int, int]], device: torch.device) -> torch.Tensor:
    return torch.tensor(list(itertools.chain.from_iterable(range(*span) for span in spans)), device=device)


def _starts(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    longest_query: int,
    longest_key: int,
    probability: float,
    *,
    is_causal: bool,
) -> torch.Tensor:
    output: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, query_starts, key_starts, longest_query, longest_key, probability, is_causal, False
    )[0]
    return output


def _flex(layout: Layout, inputs: torch.Tensor, upstream: torch.Tensor) -> Contender:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    sequence, prefix = layout.position_sequence, layout.prefix_lengths
    offset = torch.arange(layout.num_positions, device=sequence.device) - layout.sequence_starts[sequence.long()]

    def visible(batch: Any, head: Any, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        same = sequence[row] == sequence[column]
        return same & ((offset[column] <= offset[row]) | (offset[column] < prefix[sequence[row]]))

    size = layout.num_positions
    block_mask = create_block_mask(visible, None, None, size, size, device=inputs.device)
    compiled: Callable[..., torch.Tensor] = torch.compile(flex_attention)

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return compiled(query, key, value, block_mask=block_mask)

    leaves = tuple(part.transpose(0, 1)[None].contiguous() for part in inputs.unbind(1))
    return Contender(call, leaves, upstream.transpose(0, 1)[None].contiguous())


def unpacked(output: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
    """A contender's output, sequence by sequence, [length, H, D], for comparison."""
    starts = layout.sequence_starts.tolist()
    for index, (start, stop) in enumerate(itertools.pairwise(starts)):
        if output.dim() == 3:
            yield output[start:stop]
        elif output.shape[0] == 1 and len(starts) > 2:
            yield output[0, :, start:stop].transpose(0, 1)
        else:
            yield output[index, :, : stop - start].transpose(0, 1)
