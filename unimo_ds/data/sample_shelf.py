"""Samples of a data folder, prepared when they are first asked for and kept for the next time."""

from __future__ import annotations

from collections import OrderedDict

from unimo_ds.data.corpus import Corpus
from unimo_ds.data.inputs import ImageInput, PreparedSample, prepare_sample
from unimo_ds.utils.errors import UserError

MAX_BYTES = 512 * 2**20


class SampleShelf:
    """Samples as the encoder takes them; the latest ones are kept, up to a number of bytes."""

    def __init__(self, corpus: Corpus, *, max_regions: int, max_bytes: int = MAX_BYTES) -> None:
        self.corpus, self.max_regions, self._max_bytes = corpus, max_regions, max_bytes
        self._kept: OrderedDict[int, PreparedSample] = OrderedDict()
        self._bytes = 0

    def sample(self, number: int) -> PreparedSample:
        """
        Raises:
            UserError: damaged or unreadable.
        """
        kept = self._kept.get(number)
        if kept is not None:
            self._kept.move_to_end(number)
            return kept
        made = prepare_sample(self.corpus.read(number), max_regions=self.max_regions)
        self._kept[number] = made
        self._bytes += made.num_bytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].num_bytes
        return made

    def image(self, number: int) -> ImageInput:
        """
        Raises:
            UserError: as `sample`, or one without regions.
        """
        image = self.sample(number).image
        if image is None:
            raise UserError(f"sample {self.corpus.key(number)} has no image")
        return image

    def length(self, number: int) -> int:
        """Positions of its image, [IMG] included, from the index."""
        return 1 + min(int(self.corpus.num_regions[number]), self.max_regions)
