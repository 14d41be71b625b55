"""Tags of regions in transformers' form: the same weights, outputs and texts as the project's own model."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.data.prepare.raw import picture
from tests.huggingface import small
from tests.huggingface.test_family import TEXTS, assert_same, own_weights
from unimo_ds.data.inputs import clean_sequence, image_input, text_input
from unimo_ds.data.masking import Vocabulary
from unimo_ds.data.packing import pack_sequences
from unimo_ds.data.schema import NO_TAG, Regions, SequenceRole
from unimo_ds.export import source
from unimo_ds.export.folder import export
from unimo_ds.export.source import Source
from unimo_ds.generation.generate import GenerationSettings, generate, make_prompt
from unimo_ds.huggingface import heads, modeling
from unimo_ds.huggingface.modeling import UnimoModel, UnimoPreTrainedModel
from unimo_ds.huggingface.processing import UnimoProcessor
from unimo_ds.serving.model import ServedModel
from unimo_ds.utils.errors import UserError

NUM_IMAGES, SIZES = 3, (3, 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small.run_config()
    model = dataclasses.replace(config.model, region_tag_sizes=SIZES)
    return small.write_run(tmp_path_factory.mktemp("runs") / "run", config=dataclasses.replace(config, model=model))


@pytest.fixture(scope="module")
def regions(processor: UnimoProcessor) -> list[Regions]:
    """Of three pictures, in unequal number, with tags of which some are none."""
    found = []
    for number, one in enumerate(processor.image_processor.regions_of([picture(n) for n in range(NUM_IMAGES)])):
        count = len(one.boxes) - number
        tags = np.stack([np.arange(count) % (size + 1) + NO_TAG for size in SIZES], axis=1)
        arrays = (one.boxes, one.features, one.class_ids, one.class_probabilities)
        found.append(Regions(*(array[:count] for array in arrays), tags=tags.astype(np.int32)))
    return found


@pytest.fixture(scope="module")
def own(run: Path) -> Source:
    return source.load(run, device=torch.device("cpu"))


def test_round_trips_are_bit_equal(run: Path, exported: Path, tmp_path: Path) -> None:
    before = own_weights(run)
    assert {f"region_embedding.tags.{number}.weight" for number in range(2)} <= before.keys()
    assert_same(own_weights(exported), before)
    model = transformers.AutoModelForPreTraining.from_pretrained(exported)
    assert model.config.region_tag_sizes == list(SIZES)
    model.save_pretrained(tmp_path / "again")
    assert_same(own_weights(tmp_path / "again"), before)
    export(exported, tmp_path / "twice")
    assert_same(own_weights(tmp_path / "twice"), before)


@torch.no_grad()
def test_outputs_are_those_of_the_packed_model(
    own: Source, exported: Path, processor: UnimoProcessor, regions: list[Regions]
) -> None:
    model = UnimoModel.from_pretrained(exported).eval()
    inputs = processor.image_processor.prepared(regions)
    assert inputs["region_tags"].shape == (*inputs["region_features"].shape[:2], 2)
    assert (inputs["region_tags"][:, 0] == NO_TAG).all()
    assert inputs.to(dtype=torch.bfloat16)["region_tags"].dtype == torch.int64
    inputs = processor.image_processor.prepared(regions) | processor(text=TEXTS)
    sequences = [
        clean_sequence(
            role=SequenceRole.JOINT_PAIR,
            image=image_input(one, max_regions=20),
            text=text_input(own.tokenizer.encode(text), max_text_tokens=64),
        )
        for one, text in zip(regions, TEXTS, strict=True)
    ]
    expected = own.module(pack_sequences(sequences))
    found = model(**inputs)
    torch.testing.assert_close(found.image_pooled, expected.pooled_images, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.text_pooled, expected.pooled_texts, atol=1e-5, rtol=0)
    other = model(**{**inputs, "region_tags": torch.full_like(inputs["region_tags"], NO_TAG)})
    assert (other.text_pooled - found.text_pooled).abs().max() > 1e-3
    with pytest.raises(ValueError, match="regions have 0 tags, the model has tables for 2"):
        model(**{name: value for name, value in inputs.items() if name != "region_tags"})


def test_tags_that_are_not_those_of_the_regions_are_one_sentence(
    exported: Path, processor: UnimoProcessor, regions: list[Regions]
) -> None:
    model = UnimoModel.from_pretrained(exported).eval()
    inputs = processor.image_processor.prepared(regions)
    tags = inputs.pop("region_tags")
    for wrong in (tags[..., 0], tags[:, :-1], tags[:1]):
        with pytest.raises(ValueError, match=r"region_tags, \(.*\), must be \[B, R, G\].* region_features are \(3, "):
            model(**inputs, region_tags=wrong)
    with pytest.raises(ValueError, match="there are no region_features"):
        model(**processor(text=TEXTS), region_tags=tags)
    tags[0, 1, 0] = SIZES[0]
    with pytest.raises(IndexError):
        model(**inputs, region_tags=tags)


def test_generation_is_the_projects_own(
    own: Source, exported: Path, processor: UnimoProcessor, regions: list[Regions]
) -> None:
    model = transformers.AutoModelForImageTextToText.from_pretrained(exported).eval()
    prompts = [make_prompt(image=image_input(one, max_regions=20)) for one in regions]
    search = GenerationSettings(num_beams=2, max_tokens=8, length_penalty=0.0)
    found = generate(own.module, prompts, Vocabulary.of(own.tokenizer), search)
    rows = model.generate(
        **processor.image_processor.prepared(regions),
        num_beams=2,
        max_new_tokens=8,
        length_penalty=0.0,
        suppress_tokens=[0, 1, 3, own.tokenizer.mask_id],
    )
    texts = processor.batch_decode(rows, skip_special_tokens=True)
    assert texts == [own.tokenizer.decode(text.tokens) for (text,) in found]
    assert any(texts)


def test_every_class_takes_tags() -> None:
    """Arguments that a class does not know are passed over: none may let them fall."""
    classes = [one for module in (heads, modeling) for one in vars(module).values() if inspect.isclass(one)]
    methods = [
        method
        for one in classes
        if issubclass(one, UnimoPreTrainedModel)
        for method in vars(one).values()
        if inspect.isfunction(method) and "region_mask" in inspect.signature(method).parameters
    ]
    assert len(set(methods)) == 5
    assert all("region_tags" in inspect.signature(method).parameters for method in methods)


def test_an_extractor_without_the_models_tags_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match=r"the regions of an image have no tags, .*model\.region_tag_sizes=3,5"):
        ServedModel.open(run).image_vectors([picture(0)])
