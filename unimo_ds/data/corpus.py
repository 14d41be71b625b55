"""Data folders as one long array of samples: metadata of all at once, and any sample by its number.

Metadata (kinds, lengths, references) are NumPy arrays over the whole corpus (`joined_index`), without Python work per sample.
`read` makes one or two positioned reads, checks them against the index's checksums and decodes strictly.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from unimo_ds.data.schema import Caption, PatchGrid, Sample
from unimo_ds.data.storage import blend, joined_index, member_json, members
from unimo_ds.data.vision import patch_extractor, region_tags
from unimo_ds.data.vision.crops import Crop
from unimo_ds.utils.errors import UserError

_SPLIT_NAMES = 64
"""Shards whose keys are cached as lists of strings."""
_LARGEST_GAP = 64 * 1024
"""Unneeded bytes (a JPEG) that are read too, since a second read costs more."""


class CorruptSample(UserError):
    """A sample that cannot be read: damaged, truncated, or unreadable after some attempts. Without a substitute, its message
    ends the command."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"sample {self.key} cannot be read: {self.reason}; run `unimo prepare verify` on its folder"


class Corpus:
    """One or several open data folders. Cheap to use from forked workers; pickled as a location, so spawned ones open it again.

    Attributes over the n samples in the manifest's order:
        kinds [n] uint8 (schema.Kind); source_ids [n] int32, into `source_names`; shard_of [n] int32; num_regions [n] int32.
        text_start [n + 1] int64: the texts of sample i are text_start[i] : text_start[i + 1] of
        text_role uint8, text_level uint8, text_caption int32 (-1: related text), text_tokens int32 (without specials), in the
        order of `members.texts_of`.
        related_image_start [n + 1] int64, and related_image_index int64: samples of this corpus.
        has_stored_regions: whether any image has regions that are not patches of its JPEG.
    Over its shards: folder_of_shard int32, into `folder_names`.
    Of the folders: manifest, feature_size, classes_per_region, num_region_classes, vocabulary_size, region_tag_sizes,
        fingerprint.
    Of this process: bytes_read, bytes read by `read` and `read_jpeg` so far.
    """

    def __init__(self, location: str | os.PathLike[str], cache_dir: str | None, cache_bytes: int) -> None:
        """See `open`."""
        self._arguments = (os.fspath(location), cache_dir, cache_bytes)
        self._folders = blend.open_folders(self.location, cache_dir=cache_dir, cache_bytes=cache_bytes)
        self.manifest = blend.joint_manifest(self._folders)
        self._folder_of = [folder for folder in self._folders for _ in folder.manifest.shards]
        self.folder_names = tuple(folder.location for folder in self._folders)
        sizes = [len(folder.manifest.shards) for folder in self._folders]
        self.folder_of_shard: NDArray[np.int32] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self.feature_size = self.manifest.feature_size
        self.classes_per_region = self.manifest.classes_per_region
        self.num_region_classes = self.manifest.num_region_classes
        self.region_tag_sizes = self.manifest.region_tag_sizes
        self.vocabulary_size = self.manifest.tokenizer.vocabulary_size
        self.fingerprint = self.manifest.fingerprint
        self.num_samples = self.manifest.num_samples
        self.bytes_read = 0
        self.source_names: tuple[str, ...] = tuple(
            sorted({name for one in self.manifest.shards for name in one.sources})
        )
        self.shard_start = np.cumsum([0, *(entry.samples for entry in self.manifest.shards)], dtype=np.int64)
        self._index = joined_index.join(
            list(zip(self._folder_of, self.manifest.shards, strict=True)),
            self.source_names,
            cache_dir=cache_dir,
            fingerprint=self.fingerprint,
        )
        self._base_names = functools.lru_cache(_SPLIT_NAMES)(self._index.base_names)
        columns = self._index.columns
        self._places = columns["places"]
        self.has_stored_regions = self._index.has_stored_regions
        self.kinds: NDArray[np.uint8] = columns["kinds"]
        self.source_ids: NDArray[np.int32] = columns["source_ids"]
        self.shard_of: NDArray[np.int32] = columns["shard_of"]
        self.num_regions: NDArray[np.int32] = columns["num_regions"]
        self.text_start: NDArray[np.int64] = columns["text_start"]
        self.text_role: NDArray[np.uint8] = columns["text_role"]
        self.text_level: NDArray[np.uint8] = columns["text_level"]
        self.text_caption: NDArray[np.int32] = columns["text_caption"]
        self.text_tokens: NDArray[np.int32] = columns["text_tokens"]
        self.related_image_start: NDArray[np.int64] = columns["related_image_start"]
        self.related_image_index: NDArray[np.int64] = columns["related_image_index"]

    @classmethod
    def open(
        cls, location: str | os.PathLike[str], *, cache_dir: str | None = None, cache_bytes: int = 50 * 2**30
    ) -> Corpus:
        """Open a local folder or a URL (http, s3, ...: see `remote_files.CLIENTS`), or several: `A::B`.

        cache_dir: where remote shards and the joined indices of large corpora are kept (None: ~/.cache/unimo_ds/shards);
        cache_bytes: limit for the shards.

        Raises:
            UserError: no folder or manifest there, another schema version, a missing or changed index, a missing or truncated
                shard (local folders), references to missing samples, or folders that do not fit together (see `blend`). If a
                large corpus's indices were joined earlier, shards and their indices are not checked here, but in `read`.
        """
        return cls(location, cache_dir, cache_bytes)

    def __reduce__(self) -> tuple[type[Corpus], tuple[str, str | None, int]]:
        return Corpus, self._arguments

    def __len__(self) -> int:
        return self.num_samples

    @property
    def location(self) -> str:
        return self._arguments[0]

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file, first fetched if the corpus is remote.

        Raises:
            UserError: it is missing or has other content.
        """
        return blend.lead_of(self._folders).tokenizer_path

    @functools.cached_property
    def patch_grid(self) -> PatchGrid | None:
        """How its extractor cuts images into patches; None if it does not, or there is none. Reads the extractor's file, first
        fetched if the corpus is remote.

        Raises:
            UserError: it is missing or has other content.
        """
        lead = blend.lead_of(self._folders)
        entry = lead.manifest.extractor
        if entry is None or entry.file is None:
            return None
        return patch_extractor.grid_in(lead.file_path(entry.file))

    @property
    def patch_columns(self) -> int:
        """Of that grid; 0 without one. Errors as `patch_grid`."""
        return 0 if self.patch_grid is None else self.patch_grid.columns

    def key(self, sample: int) -> str:
        """`SHARD.tar:BASE` of a sample, `FOLDER/SHARD.tar:BASE` if there are several folders."""
        shard, row = self._locate(sample)
        return f"{self.shard_name(shard)}:{self._base_names(shard)[row]}"

    def shard_name(self, shard: int) -> str:
        """Prefix of the keys of its samples."""
        return f"{self._folder_of[shard].key_prefix}{self.manifest.shards[shard].file}"

    def expect(self, samples: Iterable[int]) -> None:
        """Let the kernel prefetch what `read` will need of these samples. Failures are left to `read` to report."""
        with contextlib.suppress(OSError):
            for sample in samples:
                shard, _ = self._locate(sample)
                start, offset, size, _ = self._places[sample].item()
                wanted = int((offset + size)[_columns_of(size)].max())
                os.posix_fadvise(self._file(shard).fileno(), start, wanted, os.POSIX_FADV_WILLNEED)

    def read(self, sample: int, *, crop: Crop | None = None) -> Sample:
        """The sample, checked. Its arrays are read-only. crop: see `members.decode_sample`.

        Raises:
            CorruptSample: damaged, truncated or unreadable.
            IndexError: no such sample.
        """
        content = self._read_members(sample, _columns_of(self._places["size"][sample]))
        try:
            decoded = members.decode_sample(self.key(sample), content, crop=crop)
        except members.DecodeError as error:
            raise CorruptSample(self.key(sample), str(error)) from None
        # Order and packing were computed from what the index says.
        num_regions = 0 if decoded.regions is None else len(decoded.regions.features)
        num_texts = int(self.text_start[sample + 1] - self.text_start[sample])
        if decoded.kind != self.kinds[sample] or num_regions != self.num_regions[sample]:
            raise CorruptSample(self.key(sample), "its kind or number of regions differ from the index")
        if members.num_texts(decoded) != num_texts:
            raise CorruptSample(self.key(sample), "its number of texts differs from the index")
        if decoded.regions is not None and decoded.regions.features.shape[1] != self.feature_size:
            raise CorruptSample(self.key(sample), f"its regions have not {self.feature_size} features")
        if decoded.regions is not None and not region_tags.fit(
            region_tags.sizes_of(decoded.regions), self.region_tag_sizes
        ):
            raise CorruptSample(self.key(sample), "its regions have other tags than the manifest says")
        return decoded

    def captions(self, sample: int) -> tuple[Caption, ...]:
        """Captions of a pair with their rewrites, without reading its regions.

        Raises:
            CorruptSample: damaged, truncated or unreadable.
        """
        try:
            return member_json.read(self._read_members(sample, (members.JSON,))[members.JSON]).captions
        except member_json.BadRecord as error:
            raise CorruptSample(self.key(sample), str(error)) from None

    def read_jpeg(self, sample: int) -> bytes | None:
        """The JPEG as stored, or None if the folder was prepared without.

        Raises:
            CorruptSample: damaged, truncated or unreadable.
        """
        jpeg = self._read_members(sample, (members.JPEG,)).get(members.JPEG)
        return None if jpeg is None else bytes(jpeg)

    def details(self, sample: int) -> dict[str, Any]:
        """Further facts stored with the sample (original file name, image size).

        Raises:
            CorruptSample: damaged, truncated or unreadable.
        """
        return member_json.details_of(self._read_members(sample, (members.JSON,))[members.JSON])

    def close(self) -> None:
        """Close the shards this process has opened; the next read opens them again."""
        for folder in self._folders:
            folder.close()

    def _locate(self, sample: int) -> tuple[int, int]:
        if not 0 <= sample < self.num_samples:
            raise IndexError(f"sample {sample} of {self.num_samples}")
        shard = int(self.shard_of[sample])
        return shard, int(sample - self.shard_start[shard])

    def _read_members(self, sample: int, wanted: Iterable[int]) -> dict[int, memoryview]:
        """Column -> checked bytes of those wanted members that the sample has, as views of the bytes read."""
        shard, _ = self._locate(sample)
        start, offset, size, crc32 = self._places[sample].item()
        offsets, sizes, checksums = offset.tolist(), size.tolist(), crc32.tolist()
        content: dict[int, memoryview] = {}
        present = sorted((offsets[column], column) for column in wanted if sizes[column])
        while present:
            first = present[0][0]
            run, end = [present[0][1]], first + sizes[present[0][1]]
            for offset, column in present[1:]:
                if offset - end > _LARGEST_GAP:
                    break
                run.append(column)
                end = offset + sizes[column]
            block = memoryview(self._read_block(sample, shard, start + first, end - first))
            for column in run:
                offset = offsets[column] - first
                content[column] = block[offset : offset + sizes[column]]
                if zlib_ng.crc32(content[column]) != checksums[column]:
                    raise CorruptSample(self.key(sample), f"its .{members.EXTENSIONS[column]} is damaged (checksum)")
            present = present[len(run) :]
        return content

    def _read_block(self, sample: int, shard: int, offset: int, size: int) -> bytes:
        """Positioned read of exactly `size` bytes, retried after transient errors."""
        folder, entry = self._folder_of[shard], self.manifest.shards[shard]

        def read() -> bytes:
            try:
                file = self._file(shard)  # keep a reference: another thread may evict it
                return _pread(file.fileno(), offset, size)
            except OSError:
                # Stale handles of a network file system: reopening the files cures them.
                folder.close()
                raise

        try:
            block = folder.retry(entry.file, read)
        except OSError as error:
            raise CorruptSample(self.key(sample), f"its shard cannot be read: {error}") from error
        if len(block) < size:
            raise CorruptSample(self.key(sample), "its shard is cut")
        self.bytes_read += size
        return block

    def _file(self, shard: int) -> FileIO:
        return self._folder_of[shard].shard(self.manifest.shards[shard])


def _columns_of(size: NDArray[np.uint32]) -> list[int]:
    """The members from which a sample is decoded, given all sizes: the JPEG if no regions are stored."""
    return [members.JSON, *members.REGION_MEMBERS] if size[members.FEATURES] else [members.JSON, members.JPEG]


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    """`size` bytes, or fewer at the end of the file; the kernel may return a long read in parts."""
    block = os.pread(descriptor, size, offset)
    while 0 < len(block) < size:
        more = os.pread(descriptor, size - len(block), offset + len(block))
        if not more:
            break
        block += more
    return block
