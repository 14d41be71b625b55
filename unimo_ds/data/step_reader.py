"""Reads one rank's part of a step: stored samples to packed micro-batches, with substitutes for unreadable samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import CorruptSample
from unimo_ds.data.examples import Visit, make_examples, texts_to_encode
from unimo_ds.data.inputs import ImageInput, PreparedSample, prepare_sample, text_input
from unimo_ds.data.masking import Tokens, Vocabulary, WordTable
from unimo_ds.data.packing import pack
from unimo_ds.data.schema import BadSample, Example, Kind, PackedBatch, Sample, StepBatch
from unimo_ds.data.selection import select_step
from unimo_ds.data.step_plan import OrderedCorpus, StepPlanner
from unimo_ds.data.step_selection import Selection
from unimo_ds.data.vision import crops
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.seed import generator

_SAMPLE_CACHE_BYTES = 128 * 2**20
"""Prepared samples cached for their next use, per process: small corpora are decoded once."""
_TEXT_CACHE_TOKENS = 2_000_000
NOTHING = "nothing"
"""Stands for the substitute of a bad sample that has none, and of a related image, which is simply left out."""
_SUBSTITUTE = 0x73756273
_CANDIDATES, _ROUNDS = 64, 8
"""Substitutes drawn per round, and rounds, before a bad sample is left out."""


class ReadableCorpus(OrderedCorpus, Protocol):
    """The part of `corpus.Corpus` that reading uses."""

    feature_size: int
    classes_per_region: int
    bytes_read: int

    def expect(self, samples: Iterable[int], /) -> None: ...

    def read(self, sample: int, /, *, crop: crops.Crop | None = None) -> Sample: ...


class TextTokenizer(WordTable, Protocol):
    """The part of `tokenizer.Tokenizer` that reading uses."""

    def encode_batch(self, texts: Sequence[str], /) -> list[Tokens]: ...


class StepReader:
    """`read(step)` is a pure function of the step (caches and counters aside), so any process may make any step."""

    def __init__(
        self, corpus: ReadableCorpus, tokenizer: TextTokenizer, config: RunConfig, *, rank: int, world_size: int
    ) -> None:
        self._corpus, self._config, self._rank = corpus, config, rank
        self._planner = StepPlanner(corpus, config, world_size=world_size)
        self._vocabulary = Vocabulary.of(tokenizer)
        self._texts = _TextCache(tokenizer, max_text_tokens=config.data.max_text_tokens)
        self._samples: dict[int, PreparedSample] = {}
        self._samples_bytes = 0

    def read(self, step: int) -> StepBatch:
        """This rank's micro-batches of a step.

        Raises:
            UserError: a sample too large for a micro-batch, or an index made with another tokenizer.
        """
        bytes_before = self._corpus.bytes_read
        planned = self._planner.plan(step)
        mine = planned.split[self._rank]
        samples = planned.samples[np.concatenate(mine)].tolist()
        self._corpus.expect(sample for sample in samples if sample not in self._samples)
        bad: list[BadSample] = []
        micro_batches = []
        for rows in mine:
            made = {row: self._visit(planned.selection[row], bad) for row in rows.tolist()}
            visits = {row: visit for row, visit in made.items() if visit is not None}
            micro_batches.append(self._pack(self._examples(list(visits.values())), planned.groups[list(visits)]))
        return StepBatch(
            step=step,
            micro_batches=tuple(micro_batches),
            num_samples=len(planned.samples),
            bad_samples=tuple(bad),
            bytes_read=self._corpus.bytes_read - bytes_before,
        )

    def _examples(self, visits: list[Visit]) -> list[Example]:
        texts = [text for visit in visits for text in texts_to_encode(visit.sample, visit.selection)]
        examples = make_examples(
            visits, text_inputs=self._texts.inputs(texts), vocabulary=self._vocabulary, config=self._config
        )
        for visit, example in zip(visits, examples, strict=True):
            length, promised = sum(sequence.length for sequence in example.sequences), visit.selection.num_positions
            if length > promised:
                raise UserError(
                    f"sample {example.key} makes {length} positions where its index promised {promised}: "
                    "the index was made with another tokenizer; build it again with `unimo prepare pack`"
                )
        return examples

    def _pack(self, examples: list[Example], groups: NDArray[np.int64]) -> PackedBatch:
        return pack(
            examples,
            groups.tolist(),
            feature_size=self._corpus.feature_size or self._config.model.region_feature_size,
            classes_per_region=self._corpus.classes_per_region,
        )

    def _visit(self, selection: Selection, bad: list[BadSample]) -> Visit | None:
        """The visit with all that it shows; its sample is a substitute if it cannot be read, None if there is none either."""
        try:
            shown = selection, self._shown(selection)
        except CorruptSample as damage:
            substitute = self._substitute(selection)
            bad.append(BadSample(damage.key, damage.reason, substitute[1].key if substitute else NOTHING))
            if substitute is None:
                return None
            shown = substitute
        return Visit(*shown, self._related_images(shown[0], bad))

    def _substitute(self, selection: Selection) -> tuple[Selection, PreparedSample] | None:
        """Another sample of the visit's stream that is not longer and can be read; None if none is found.

        It depends only on (seed, position), so every rank draws the same.
        """
        random = generator(self._config.seed, selection.position, _SUBSTITUTE)
        for _ in range(_ROUNDS):
            candidates = self._planner.order.drawn_like(selection.position, _CANDIDATES, random)
            visits = select_step(self._corpus, candidates, np.full(_CANDIDATES, selection.position), self._config)
            for row in np.flatnonzero(visits.num_positions <= selection.num_positions).tolist():
                with contextlib.suppress(CorruptSample):
                    return visits[row], self._shown(visits[row])
        return None

    def _related_images(self, selection: Selection, bad: list[BadSample]) -> dict[int, ImageInput | None]:
        """The visit's images besides its own; one that cannot be read is left out."""
        images: dict[int, ImageInput | None] = {}
        for planned in selection.sequences:
            if planned.image >= 0 and planned.image != selection.sample:
                try:
                    images[planned.image] = self._prepared(planned.image).image
                except CorruptSample as error:
                    images[planned.image] = None
                    bad.append(BadSample(error.key, error.reason, substitute=NOTHING))
        return images

    def _shown(self, selection: Selection) -> PreparedSample:
        """The sample of a visit, with its image cropped as drawn for this visit.

        Raises:
            CorruptSample: it cannot be read.
        """
        smallest = self._config.data.smallest_crop
        if smallest == 1 or selection.kind is Kind.TEXT:
            return self._prepared(selection.sample)
        crop = crops.draw(selection.sequences[0].seed, smallest=smallest)
        sample = self._corpus.read(selection.sample, crop=crop)
        return prepare_sample(sample, max_regions=self._config.data.max_regions)

    def _prepared(self, sample: int) -> PreparedSample:
        """Read and prepared, or cached from an earlier use.

        Raises:
            CorruptSample: it cannot be read.
        """
        prepared = self._samples.get(sample)
        if prepared is None:
            prepared = prepare_sample(self._corpus.read(sample), max_regions=self._config.data.max_regions)
            # The first ones stay: in an epoch's order the least recently used is needed next.
            if self._samples_bytes + prepared.num_bytes <= _SAMPLE_CACHE_BYTES:
                self._samples[sample] = prepared
                self._samples_bytes += prepared.num_bytes
        return prepared


class _TextCache:
    """Caches inputs of texts; emptied when it reaches its limit, which costs encoding each text once more."""

    def __init__(self, tokenizer: TextTokenizer, *, max_text_tokens: int) -> None:
        self._tokenizer, self._max_text_tokens = tokenizer, max_text_tokens
        self._known: dict[str, Tokens] = {}
        self._num_tokens = 0

    def inputs(self, texts: Sequence[str]) -> dict[str, Tokens]:
        """`text_input` by text, for at least these texts."""
        if self._num_tokens > _TEXT_CACHE_TOKENS:
            self._known, self._num_tokens = {}, 0
        unknown = [text for text in dict.fromkeys(texts) if text not in self._known]
        for text, ids in zip(unknown, self._tokenizer.encode_batch(unknown) if unknown else (), strict=True):
            made = text_input(ids, max_text_tokens=self._max_text_tokens)
            self._known[text] = made
            self._num_tokens += len(made)
        return self._known
