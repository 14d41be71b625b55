"""Checks before a run starts that its recipe can train on its data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.draws import Integers
from unimo_ds.data.schema import NUM_TEXT_SPECIALS, Kind, Level, TextRole
from unimo_ds.data.step_plan import OrderedCorpus, order_of
from unimo_ds.data.storage.manifest import MANIFEST_FILE, load_manifest
from unimo_ds.data.vision import region_tags, resolution
from unimo_ds.utils import locations
from unimo_ds.utils.errors import UserError

Flags = NDArray[np.bool_]

_SAMPLES_AT_ONCE, _TEXTS_AT_ONCE = 1 << 18, 1 << 20
"""Bound the memory of the check for a corpus of any size."""


class CheckableCorpus(OrderedCorpus, resolution.Patched, Protocol):
    """The part of `corpus.Corpus` that the check uses."""

    num_samples: int
    feature_size: int
    num_region_classes: int
    region_tag_sizes: region_tags.Sizes
    has_stored_regions: bool
    vocabulary_size: int


def check_corpus(corpus: CheckableCorpus, config: RunConfig) -> None:
    """Refuse data that do not fit the recipe. Cheap: only the index is used. Sizes of 0 in the configuration mean "as in the
    data".

    Raises:
        UserError: no samples at all; kinds or sources with weight but without samples; contrast without pairs; feature size,
            region classes, tags, patches or vocabulary other than the model's; crops or normalised pixels for regions that are
            not patches; or a sample that cannot fit into a micro-batch.
    """
    if not corpus.num_samples:
        raise UserError(f"the data at {config.data.path!r} holds no samples; import some with `unimo prepare import`")
    if config.contrast.enabled and not (corpus.kinds == Kind.PAIR).any():
        raise UserError("contrast.enabled=true but the data holds no pair; add pairs or set contrast.enabled=false")
    order = order_of(corpus, config)
    uses_regions = config.data.kind_weights.image or config.data.kind_weights.pair
    sizes = [("vocabulary_size", "its tokenizer has", corpus.vocabulary_size)]
    if uses_regions:
        sizes.append(("region_feature_size", "its regions have", corpus.feature_size))
        sizes.append(("num_region_classes", "its extractor knows", corpus.num_region_classes))
    for name, owner, actual in sizes:
        wanted = getattr(config.model, name)
        if wanted not in (0, actual):
            raise UserError(
                f"model.{name}={wanted} does not fit the data at {config.data.path!r}, where {owner} {actual}; "
                f"set model.{name}={actual} or prepare the data with the model's own"
            )
    if uses_regions and corpus.feature_size:
        region_tags.check(
            corpus.region_tag_sizes,
            config.model.region_tag_sizes,
            whose=f"the regions of the data at {config.data.path!r}",
        )
        resolution.check(corpus, config, location=f"the data at {config.data.path!r}", is_new=True)
    if config.data.smallest_crop < 1 and corpus.has_stored_regions:
        raise UserError(
            f"data.smallest_crop={config.data.smallest_crop} crops images, but the data at {config.data.path!r} holds regions "
            "that are no patches of them; set it to 1, or prepare the data with --extractor patches"
        )
    if config.masking.normalised_pixels and corpus.has_stored_regions:
        raise UserError(
            f"masking.normalised_pixels=true is for patches of images, but the data at {config.data.path!r} holds other regions; "
            "set it to false, or prepare the data with --extractor patches"
        )
    room = config.batch.micro_batch_tokens
    if largest_possible(config) <= room:
        return  # for any data; checking the texts of millions of samples takes minutes
    longest, positions = largest_sample(corpus, config, order.is_read())
    if positions > room:
        raise UserError(
            f"sample {corpus.key(longest)} can make up to {positions} stream positions, more than batch.micro_batch_tokens="
            f"{config.batch.micro_batch_tokens}; raise that, or lower data.max_text_tokens, data.max_regions or the "
            "contrast.* counts"
        )


def regions_left_out(corpus: CheckableCorpus, config: RunConfig) -> list[str]:
    """A sentence if the run reads images with more regions than `data.max_regions`, else nothing.

    The first regions are the most probable ones of a detector, but only the upper part of the picture for a grid.
    """
    limit = config.data.max_regions
    if corpus.num_regions.max(initial=0) <= limit:  # the usual case; making the order of millions of samples takes long
        return []
    largest = int(corpus.num_regions[order_of(corpus, config).is_read()].max(initial=0))
    if largest <= limit:
        return []
    return [
        f"images have up to {largest} regions, the first {limit} of each are read (data.max_regions={largest} reads all)"
    ]


def with_fingerprints(config: RunConfig, corpus: Corpus) -> RunConfig:
    """`config` with the fingerprints of its data's tokenizer and extractor, so that checkpoints and exports contain them."""
    entries = {"tokenizer": corpus.manifest.tokenizer, "extractor": corpus.manifest.extractor}
    made_with = {part: entry.fingerprint for part, entry in entries.items() if entry is not None}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, made_with=made_with))


def check_regions(corpus: Corpus, config: RunConfig) -> None:
    """Refuse images with regions of another form than a trained model reads.

    Raises:
        UserError: naming what differs.
    """
    resolution.check(corpus, config, location=corpus.location)
    if corpus.feature_size != config.model.region_feature_size:
        raise UserError(
            f"{corpus.location} has region features of size {corpus.feature_size}, the model takes "
            f"{config.model.region_feature_size}; prepare it with `--like` the training data"
        )
    region_tags.check(corpus.region_tag_sizes, config.model.region_tag_sizes, whose=f"the regions of {corpus.location}")


def check_made_alike(
    corpus: Corpus,
    training_data: str,
    *,
    parts: Sequence[Literal["tokenizer", "extractor"]],
    made_with: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Refuse data made with another tokenizer or region extractor than the model's training data.

    Another vocabulary or other features of the same size would otherwise be accepted silently. Folders of the training data
    that are missing or remote are not compared; if `training_data` is empty, none is.

    made_with: fingerprints stored with the model (`data.made_with`), which take precedence; older models have none. (Data may
        be remade after a run, and a model adapted to another resolution has the new fingerprint.)

    Raises:
        UserError: naming what differs.
    """
    places = locations.split(training_data) if training_data else ()
    trained_on = {place: load_manifest(place) for place in places if (Path(place) / MANIFEST_FILE).is_file()}
    for (place, manifest), part in itertools.product(trained_on.items(), parts):
        mine, theirs = getattr(corpus.manifest, part), getattr(manifest, part)
        if mine is None or mine.fingerprint == made_with.get(part):
            continue
        if theirs is not None and mine.fingerprint != theirs.fingerprint:
            raise UserError(
                f"{corpus.location} was prepared with another {part} than the training data {place}; prepare it with "
                f"`--like {place}` (features of one detector: with the same --feature-name)"
            )
    for part in parts:
        mine, wanted = getattr(corpus.manifest, part), made_with.get(part)
        if mine is not None and wanted is not None and mine.fingerprint != wanted:
            raise UserError(
                f"{corpus.location} was prepared with the {part} {mine.fingerprint}, the data that the model was trained on with "
                f"{wanted}; prepare it with `--like` that data, or any folder that was made like it"
            )


def largest_possible(config: RunConfig) -> int:
    """Upper bound of the stream positions of one use of any sample of any corpus."""
    contrast = config.contrast
    texts = [
        (TextRole.TEXT, Level.NONE),
        *[(TextRole.POSITIVE, Level.NONE)] * contrast.positives,
        *[(TextRole.NEGATIVE, Level.SENTENCE)] * contrast.sentence_negatives,
        *[(TextRole.NEGATIVE, Level.PHRASE)] * contrast.phrase_negatives,
        *[(TextRole.NEGATIVE, Level.WORD)] * contrast.word_negatives,
        *[(TextRole.RELATED, Level.NONE)] * contrast.related_texts,
    ]
    roles, levels = np.array(texts, np.uint8).T
    fullest = _Samples(
        kinds=np.array([Kind.PAIR]),
        num_regions=np.array([config.data.max_regions]),
        text_start=np.array([0, len(texts)]),
        text_role=roles,
        text_level=levels,
        text_tokens=np.full(len(texts), config.data.max_text_tokens),
        related_image_start=np.array([0, contrast.related_images]),
    )
    return int(_largest_visits(fullest, 0, 1, config)[0])


def largest_sample(corpus: CheckableCorpus, config: RunConfig, is_read: Flags) -> tuple[int, int]:
    """The sample that can make the most stream positions in one use, and how many: an upper bound over all draws.

    is_read: [n] whether the run reads each sample.
    """
    longest, positions = 0, 0
    stop = 0
    while (start := stop) < corpus.num_samples:
        texts = np.searchsorted(corpus.text_start, corpus.text_start[start] + _TEXTS_AT_ONCE, side="right")
        stop = min(start + _SAMPLES_AT_ONCE, max(int(texts) - 1, start + 1), corpus.num_samples)
        bounds = _largest_visits(corpus, start, stop, config)
        bounds[~is_read[start:stop]] = 0
        if bounds.max() > positions:
            longest, positions = start + int(bounds.argmax()), int(bounds.max())
    return longest, positions


@dataclasses.dataclass(frozen=True)
class _Samples:
    """The arrays of `corpus.Corpus` on which the bounds of samples depend."""

    kinds: NDArray[Any]
    num_regions: NDArray[Any]
    text_start: NDArray[Any]
    text_role: NDArray[Any]
    text_level: NDArray[Any]
    text_tokens: NDArray[Any]
    related_image_start: NDArray[Any]


def _largest_visits(corpus: CheckableCorpus | _Samples, start: int, stop: int, config: RunConfig) -> Integers:
    """[n] upper bound of the positions per use of a sample: its largest caption, with its longest rewrites and related items.

    Letters: n samples, c texts of text samples and captions of pairs.
    """
    data, contrast, masking = config.data, config.contrast, config.masking
    kinds = corpus.kinds[start:stop]
    images = np.minimum(corpus.num_regions[start:stop].astype(np.int64), data.max_regions) + 1
    texts = slice(int(corpus.text_start[start]), int(corpus.text_start[stop]))
    tokens = np.minimum(corpus.text_tokens[texts].astype(np.int64), data.max_text_tokens - NUM_TEXT_SPECIALS)
    lengths = tokens + NUM_TEXT_SPECIALS
    roles, levels = corpus.text_role[texts], corpus.text_level[texts]
    sample_of = np.repeat(np.arange(stop - start), np.diff(corpus.text_start[start : stop + 1]))
    is_caption = roles == TextRole.TEXT
    # A caption's rewrites follow it, so a running count of captions gives every rewrite's caption.
    caption_of = np.cumsum(is_caption) - 1
    sample = sample_of[is_caption]
    image, is_pair = images[sample], kinds[sample] == Kind.PAIR

    def drawn(is_candidate: Flags, wanted: int, owner: Integers, num_owners: int) -> tuple[Integers, Integers]:
        """How many of its candidates each owner gets, and the longest of them."""
        longest = np.zeros(num_owners, np.int64)
        np.maximum.at(longest, owner[is_candidate], lengths[is_candidate])
        return np.minimum(np.bincount(owner[is_candidate], minlength=num_owners), wanted), longest

    fragments = np.ceil(np.ceil(masking.fragment_share * tokens[is_caption]) / masking.min_fragment_tokens)
    captions = lengths[is_caption]
    totals = captions + NUM_TEXT_SPECIALS * fragments.astype(np.int64) + np.where(is_pair, image, 0)
    if contrast.enabled:
        # A joint sequence that shares the pair's image holds only its words.
        own_image = image if contrast.joint_encoding == "exact" else np.zeros_like(image)
        clean = image + captions + (own_image + captions) * contrast.encodes_jointly
        is_negative = roles == TextRole.NEGATIVE
        for is_rewrite, wanted in (
            (roles == TextRole.POSITIVE, contrast.positives),
            (is_negative & (levels == Level.SENTENCE), contrast.sentence_negatives),
            (is_negative & (levels == Level.PHRASE), contrast.phrase_negatives),
            (is_negative & (levels == Level.WORD), contrast.word_negatives),
        ):
            number, longest = drawn(is_rewrite, wanted, caption_of, len(captions))
            clean += number * (own_image + longest) * contrast.encodes_jointly
            clean += number * longest * contrast.encodes_rewrites_alone
        number, longest = drawn(roles == TextRole.RELATED, contrast.related_texts, sample_of, stop - start)
        clean += (number * longest)[sample]
        number = np.minimum(np.diff(corpus.related_image_start[start : stop + 1]), contrast.related_images)
        largest_image = min(int(corpus.num_regions.max(initial=0)), data.max_regions) + 1
        clean += number[sample] * largest_image
        totals += np.where(is_pair, clean, 0)
    bounds = np.where(kinds == Kind.IMAGE, images, 0)
    np.maximum.at(bounds, sample, totals)
    return bounds
