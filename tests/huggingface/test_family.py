"""The transformers family: same weights, same ids, same outputs as the project's own model, and bit-equal round trips."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.prepare.raw import picture
from tests.evaluation import small as pairs
from tests.huggingface import small
from unimo_ds.config import DataConfig
from unimo_ds.data.inputs import ImageInput, clean_sequence, image_input, text_input
from unimo_ds.data.joined_texts import join_texts
from unimo_ds.data.masking import Vocabulary
from unimo_ds.data.packing import pack_sequences
from unimo_ds.data.schema import FIRST_POSITION, SequenceRole
from unimo_ds.data.tokenizer import load as load_tokenizer
from unimo_ds.data.vision import extractors, grid
from unimo_ds.data.vision.images import decode
from unimo_ds.evaluation import checkpoint
from unimo_ds.export import source
from unimo_ds.export.card import write_card
from unimo_ds.export.folder import export, write
from unimo_ds.finetune import model as task_models
from unimo_ds.finetune.loaded import load_task
from unimo_ds.finetune.object_words import ObjectWords
from unimo_ds.finetune.start import read_start
from unimo_ds.finetune_config import CaptioningConfig, FinetuneConfig
from unimo_ds.generation.generate import GenerationSettings, generate, make_prompt
from unimo_ds.huggingface import heads
from unimo_ds.huggingface.configuration import UnimoConfig
from unimo_ds.huggingface.image_processing import UnimoImageProcessor
from unimo_ds.huggingface.modeling import UnimoForPreTraining, UnimoModel
from unimo_ds.huggingface.packing import PaddedInputs
from unimo_ds.huggingface.processing import UnimoProcessor, fast_tokenizer
from unimo_ds.utils.errors import UserError

TEXTS = ["a red ball", "two dogs play in the snow", "the boat"]


def inputs_of(processor: UnimoImageProcessor, pictures: list) -> list[ImageInput]:
    return [image_input(one, max_regions=processor.max_regions) for one in processor.regions_of(pictures)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_run(tmp_path_factory.mktemp("runs") / "run")


def own_weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(path, device=torch.device("cpu")).module.named_parameters())


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


USE = """
import sys
{first}
{second}
folder = sys.argv[1]
model = transformers.AutoModel.from_pretrained(folder)
processor = transformers.AutoProcessor.from_pretrained(folder)
image_processor = transformers.AutoImageProcessor.from_pretrained(folder)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
features = model.get_text_features(**processor(text=["a red ball"]))
print(type(model).__name__, type(processor).__name__, type(image_processor).__name__, tuple(features.shape))
"""
CHECK = "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys(), 'importing unimo_ds must cost nothing'"


@pytest.mark.parametrize(
    ("first", "second"),
    [(f"import unimo_ds\n{CHECK}", "import transformers"), ("import transformers", "import unimo_ds")],
    ids=["unimo_ds first", "transformers first"],
)
def test_a_folder_is_read_after_nothing_but_import_unimo_ds(exported: Path, first: str, second: str):
    code = USE.format(first=first, second=second)
    found = subprocess.run(
        [sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=True, timeout=600
    )
    assert found.stdout.split(maxsplit=3) == ["UnimoModel", "UnimoProcessor", "UnimoImageProcessor", "(1, 32)\n"]


def test_round_trips_are_bit_equal(run: Path, exported: Path, tmp_path: Path):
    before = own_weights(run)
    assert_same(own_weights(exported), before)
    model = transformers.AutoModelForPreTraining.from_pretrained(exported)
    assert isinstance(model, UnimoForPreTraining)
    model.save_pretrained(tmp_path / "split", max_shard_size="20KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 2
    again = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "split")
    assert_same(again.state_dict(), model.state_dict())
    assert_same({name.removeprefix("unimo."): value for name, value in again.state_dict().items()}, before)
    assert_same(own_weights(tmp_path / "split"), before)
    model.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    assert again.config.to_diff_dict() | {"_name_or_path": ""} == model.config.to_diff_dict() | {"_name_or_path": ""}
    # What was exported can be exported.
    export(exported, tmp_path / "twice")
    names = {path.name for path in exported.iterdir()}
    assert names == {path.name for path in (tmp_path / "twice").iterdir()}
    assert extractors.load(tmp_path / "twice").fingerprint == small.make_extractor().fingerprint
    for name in names - {"README.md", "extractor.safetensors"}:
        assert (tmp_path / "twice" / name).read_bytes() == (exported / name).read_bytes(), name


def test_weights_without_our_prefix_are_read_too(run: Path, exported: Path, tmp_path: Path):
    """A checkpoint of a run beside a configuration of transformers."""
    (tmp_path / "config.json").write_text((exported / "config.json").read_text())
    weights = run / "checkpoints" / "step-7" / "model.safetensors"
    (tmp_path / "model.safetensors").write_bytes(weights.read_bytes())
    assert_same(
        transformers.AutoModelForPreTraining.from_pretrained(tmp_path).state_dict(),
        {f"unimo.{name}": value for name, value in own_weights(run).items()},
    )


def test_configurations_say_the_same_both_ways():
    model = small.run_config().model
    assert UnimoConfig.of(model).sizes() == model
    assert UnimoConfig().sizes() == dataclasses.replace(UnimoConfig().sizes())


def test_the_exported_folder_tells_what_the_run_recorded(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    card = (exported / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "| retrieval/mean_recall | 0.125 |" in card
    assert "| dev/accuracy | 0.5 |" in card
    assert "| steps trained | 7 |" in card
    assert "| with | torch 2.0 |" in card
    assert "abc123" in card
    assert "made by the extractor in this folder" in card
    _, _, python = card.partition("```python\n")
    picture(0).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    known: dict = {}
    exec(python.partition("```")[0].replace("FOLDER", str(exported)), known)
    assert (known["image"] @ known["texts"].T).shape == (1, 2)


def test_the_card_says_among_how_many_images_retrieval_searched(tmp_path: Path):
    config = small.run_config()
    held_out = str(pairs.write_corpus(tmp_path / "held_out", num_pairs=3))
    small.write_run(
        tmp_path / "run",
        None,
        dataclasses.replace(config, data=dataclasses.replace(config.data, held_out_path=held_out)),
    )
    export(tmp_path / "run", tmp_path / "exported")
    assert "| images | 3 |" in (tmp_path / "exported" / "README.md").read_text()


def test_the_card_finds_held_out_data_from_where_the_run_was_started(tmp_path: Path):
    config = small.run_config()
    pairs.write_corpus(tmp_path / "held_out", num_pairs=3)
    data = dataclasses.replace(config.data, held_out_path="held_out")
    run = small.write_run(tmp_path / "run", None, dataclasses.replace(config, data=data))
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**environment, "directory": str(tmp_path)}))
    export(run, tmp_path / "exported")
    assert "| images | 3 |" in (tmp_path / "exported" / "README.md").read_text()


def test_the_card_needs_no_index_of_the_data(tmp_path: Path):
    """Those of a large corpus are joined on disk."""
    config = small.run_config()
    data = pairs.write_corpus(tmp_path / "data", num_pairs=3)
    for file in Path(data).glob("*.index.npz"):
        file.unlink()
    small.write_run(tmp_path / "run", None, dataclasses.replace(config, data=DataConfig(path=str(data))))
    export(tmp_path / "run", tmp_path / "exported")
    assert " 3 samples |" in (tmp_path / "exported" / "README.md").read_text()


def test_the_card_shows_names_as_they_are(tmp_path: Path):
    """The run may be somebody else's."""
    name = "a|b <script> [x](http://x) `y`\n# z"
    run = small.write_run(tmp_path / "run", None, dataclasses.replace(small.run_config(), recipe=name))
    card = write_card(source.load(run), "UnimoModel")
    shown = r"a\|b \<script\> \[x\](http://x) \`y\` # z"
    assert f", {shown}\n" in card
    assert f"| recipe | {shown}, seed " in card


def test_tokens_are_those_of_training(exported: Path):
    fast = transformers.AutoTokenizer.from_pretrained(exported)
    own = load_tokenizer(exported)
    assert own.fingerprint == small.make_tokenizer().fingerprint

    @settings(max_examples=100)
    @given(st.text(max_size=30) | st.sampled_from(["<mask> and </s>", "<s><pad>", " two  spaces\n"]))
    def check(text: str) -> None:
        expected = [0, *own.encode(text).tolist(), 2]
        assert fast(text)["input_ids"] == expected
        assert fast.decode(expected, skip_special_tokens=True) == text

    check()
    assert fast("a", "b")["input_ids"] == [0, *own.encode("a"), 2, *own.encode("b"), 2]


def test_outputs_are_those_of_the_packed_model(run: Path, exported: Path, processor: UnimoProcessor):
    model = UnimoModel.from_pretrained(exported).eval()
    own = source.load(run, device=torch.device("cpu"))
    pictures = [picture(number) for number in range(3)]
    inputs = processor(images=pictures, text=TEXTS)
    assert inputs["region_features"].shape == (3, 21, 24)
    images = inputs_of(UnimoImageProcessor(20, extractor=own.extractor), pictures)
    texts = [text_input(own.tokenizer.encode(text), max_text_tokens=64) for text in TEXTS]
    sequences = [
        clean_sequence(role=SequenceRole.JOINT_PAIR, image=image, text=text)
        for image, text in zip(images, texts, strict=True)
    ]
    with torch.no_grad():
        expected = own.module(pack_sequences(sequences))
        found = model(**inputs)
        torch.testing.assert_close(found.image_pooled, expected.pooled_images, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.text_pooled, expected.pooled_texts, atol=1e-5, rtol=0)
        alone = own.module(
            pack_sequences(
                [clean_sequence(role=SequenceRole.SINGLE_TEXT, text=text) for text in texts], feature_size=24
            )
        ).pooled_texts
        features = model.get_text_features(**processor(text=TEXTS))
        torch.testing.assert_close(features, torch.nn.functional.normalize(alone, dim=-1), atol=1e-5, rtol=0)
        image_features = model.get_image_features(**processor(images=pictures))
        assert image_features.norm(dim=-1) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_a_photograph_is_read_as_training_read_it(processor: UnimoProcessor):
    """Turned as its EXIF data say, which an opened image is not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture(0).save(buffer, format="PNG", exif=exif)
    opened = Image.open(buffer)
    for image in (opened, opened):  # it is not changed by being read
        found = processor(images=image)["region_features"]
        assert torch.equal(found, processor(images=decode(buffer.getvalue()))["region_features"])
    assert not torch.equal(found, processor(images=picture(0))["region_features"])


def test_padding_changes_nothing(exported: Path, processor: UnimoProcessor):
    model = UnimoModel.from_pretrained(exported).eval()
    together = model(**processor(images=[picture(number) for number in range(3)], text=TEXTS))
    for row, text in enumerate(TEXTS):
        one = model(**processor(images=picture(row), text=text))
        torch.testing.assert_close(one.text_pooled[0], together.text_pooled[row], atol=1e-5, rtol=0)
        length = one.last_hidden_state.shape[1]
        torch.testing.assert_close(
            one.last_hidden_state[0], together.last_hidden_state[row, :length], atol=1e-5, rtol=0
        )
        assert not together.last_hidden_state[row, length:].any()
    # Padding on the left, garbage under the mask, regions hidden in the middle.
    inputs = processor(text=TEXTS[:1])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    left = model.get_text_features(
        torch.cat([torch.full_like(ids[:, :2], 7), ids], 1), torch.cat([torch.zeros_like(mask[:, :2]), mask], 1)
    )
    torch.testing.assert_close(left, model.get_text_features(ids, mask), atol=1e-5, rtol=0)


def test_generation_is_the_projects_own(run: Path, exported: Path, processor: UnimoProcessor):
    model = transformers.AutoModelForImageTextToText.from_pretrained(exported).eval()
    own = source.load(run, device=torch.device("cpu"))
    pictures = [picture(number) for number in range(3)]
    images = inputs_of(UnimoImageProcessor(20, extractor=own.extractor), pictures)
    prompts = [
        make_prompt(image=image, source=own.tokenizer.encode(text)) for image, text in zip(images, TEXTS, strict=True)
    ]
    found = generate(
        own.module,
        prompts,
        Vocabulary.of(own.tokenizer),
        GenerationSettings(num_beams=3, max_tokens=12, length_penalty=0.0),
    )
    arguments = {"num_beams": 3, "max_new_tokens": 12, "length_penalty": 0.0}
    arguments |= {**processor(images=pictures, text=TEXTS), "suppress_tokens": [0, 1, 3, own.tokenizer.mask_id]}
    rows = model.generate(**arguments)
    assert torch.equal(model.train().generate(**arguments), rows), "nothing is dropped out"
    assert model.training
    texts = processor.batch_decode(rows, skip_special_tokens=True)
    assert texts == [own.tokenizer.decode(text.tokens) for (text,) in found]
    assert any(texts)


def test_candidates_from_the_text_so_far_change_no_text_and_save_steps(exported: Path, processor: UnimoProcessor):
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(exported).eval()
    steps, saved = [], 0
    model.register_forward_hook(lambda *_: steps.append(1))
    for number, text in enumerate(TEXTS):
        inputs = processor(images=picture(number), text=text)
        arguments = {"max_new_tokens": 40, "suppress_tokens": [0, 1, 2, 3]}
        expected = model.generate(**inputs, **arguments)
        steps.clear()
        assert torch.equal(model.generate(**inputs, **arguments, prompt_lookup_num_tokens=4), expected)
        saved += 40 - len(steps)
    assert saved > 0
    with pytest.raises(ValueError, match="assistant_model cannot see what is written from"):
        model.generate(**inputs, assistant_model=model)


def test_transformers_trainers_are_served(exported: Path, processor: UnimoProcessor):
    """`Seq2SeqTrainer` generates from whole batches; `Trainer` believes of every forward that takes any keyword that it divides
    its loss by what gradients are accumulated over, unless the model says otherwise."""
    model = heads.UnimoForConditionalGeneration.from_pretrained(exported).eval()
    batch = processor(text=TEXTS) | {"labels": torch.tensor([[9, 10, 2]] * 3)}
    rows = model.generate(**batch, max_new_tokens=6)
    del batch["labels"]
    assert torch.equal(rows, model.generate(**batch, max_new_tokens=6))
    assert model.accepts_loss_kwargs is False


@torch.no_grad()
def test_the_loss_of_generation_is_that_of_its_steps(exported: Path, processor: UnimoProcessor):
    model = heads.UnimoForConditionalGeneration.from_pretrained(exported).eval()
    inputs = processor(images=[picture(0), picture(1)], text=TEXTS[:2])
    labels = torch.tensor([[9, 10, 11, 2], [12, 2, -100, -100]])
    output = model(**inputs, labels=labels)
    log_probabilities = output.logits.log_softmax(-1)
    known = [(0, 0, 9), (0, 1, 10), (0, 2, 11), (0, 3, 2), (1, 0, 12), (1, 1, 2)]
    expected = -sum(float(log_probabilities[place]) for place in known) / len(known)
    assert float(output.loss) == pytest.approx(expected, abs=1e-5)
    loss, logits = model(**inputs, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    single = model(**processor(images=picture(1), text=TEXTS[1]), labels=torch.tensor([[12, 2]]))
    torch.testing.assert_close(single.logits[0], output.logits[1, :2], atol=1e-5, rtol=0)


HEADS = [
    (heads.UnimoForSequenceClassification, torch.tensor([0, 2]), {"num_labels": 3}),
    (heads.UnimoForSequenceClassification, torch.tensor([0.5, 2.0]), {"num_labels": 1}),
    (
        heads.UnimoForSequenceClassification,
        torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    (heads.UnimoForVisualEntailment, torch.tensor([0, 2]), {"num_labels": 3, "classifier_hidden_size": 16}),
    (heads.UnimoForVisualQuestionAnswering, torch.eye(5)[[0, 2]], {"num_labels": 5}),
]


WRITES = (heads.UnimoForConditionalGeneration, torch.tensor([[9, 10, 2], [12, 2, -100]]), {})


@pytest.mark.parametrize(
    ("family", "labels", "changes"), [WRITES, HEADS[0], HEADS[3]], ids=["writes", "classes", "entails"]
)
def test_classes_train_in_mixed_precision(
    exported: Path, processor: UnimoProcessor, family: type, labels, changes: dict
):
    """As `Trainer` does it with `bf16=True`."""
    torch.manual_seed(0)
    model = family.from_pretrained(exported, **changes).eval()
    inputs = processor(images=[picture(0), picture(1)], text=TEXTS[:2])
    exact = float(model(**inputs, labels=labels).loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**inputs, labels=labels).loss
    loss.backward()
    assert float(loss) == pytest.approx(exact, rel=0.1)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize(("family", "labels", "changes"), HEADS, ids=lambda value: getattr(value, "__name__", ""))
def test_heads_learn(exported: Path, processor: UnimoProcessor, family: type, labels: torch.Tensor, changes: dict):
    torch.manual_seed(0)
    model = family.from_pretrained(exported, classifier_dropout=0.0, **changes).train()
    inputs = processor(images=[picture(0), picture(1)], text=TEXTS[:2])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    logits = model.eval()(**inputs).logits
    assert logits.shape[0] == 2
    if labels.is_floating_point() and labels.dim() == 1:  # values as columns of a table have them
        assert model(**inputs, labels=labels[:, None]).loss == model(**inputs, labels=labels).loss
    if model.config.problem_type == "multi_label_classification":
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        torch.testing.assert_close(model(**inputs, labels=labels).loss, expected)


@pytest.mark.parametrize(
    ("head", "family", "num_outputs"),
    [
        (task_models.TextHead, heads.UnimoForSequenceClassification, 2),
        (task_models.ProductHead, heads.UnimoForImageTextRetrieval, 1),
        (task_models.ProductHead, heads.UnimoForVisualQuestionAnswering, 3),
        (functools.partial(task_models.SumHead, middle=40), heads.UnimoForVisualEntailment, 3),
    ],
    ids=["text", "product", "answers", "sum"],
)
def test_fine_tuned_models_keep_their_head(head, family: type, num_outputs: int, tmp_path: Path):
    config = dataclasses.replace(small.run_config(), finetune=FinetuneConfig("sst2"))
    own = task_models.TaskModel(config, head(config, num_outputs=num_outputs)).eval()
    files = checkpoint.CheckpointFiles(tmp_path / "step-7" / "model.safetensors", tmp_path / "config.json")
    assets = {"answers": ["yes", "no", "2"]} if family is heads.UnimoForVisualQuestionAnswering else {"note": 1}
    found = source.Source(
        own, torch.device("cpu"), config, files, small.make_tokenizer(), small.make_extractor(), assets
    )
    folder = tmp_path / "exported"
    write(found, folder, dtype="fp32", max_shard_bytes=10**9, card=functools.partial(write_card, found))
    assert f"import {family.__name__}" in (folder / "README.md").read_text()
    model = family.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    pictures = [picture(0), picture(1)]
    texts = [text_input(small.make_tokenizer().encode(text), max_text_tokens=64) for text in TEXTS[:2]]
    sequences = [
        clean_sequence(role=SequenceRole.JOINT_PAIR, image=image, text=text)
        for image, text in zip(inputs_of(processor.image_processor, pictures), texts, strict=True)
    ]
    with torch.no_grad():
        expected = own(pack_sequences(sequences)).scores
        scores = model(**processor(images=pictures, text=TEXTS[:2])).logits.reshape(expected.shape)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    if family is heads.UnimoForVisualQuestionAnswering:
        assert model.config.id2label == {0: "yes", 1: "no", 2: "2"}
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert {name.removeprefix("unimo.") for name in stored} == {name for name, _ in own.named_parameters()}
    with pytest.raises(UserError, match="is a fine-tuned model"):
        checkpoint.load(folder)
    assert read_start(folder).config.model == config.model, "a fine-tuning may start from it"
    if head is task_models.TextHead:
        again = load_task(folder)
        assert (again.task.name, again.assets) == ("sst2", {"note": 1})
        assert model.config.id2label == {0: "0", 1: "1"}
        assert_same(dict(again.module.named_parameters()), dict(own.named_parameters()))


@pytest.mark.parametrize(("task", "num_outputs"), [("stsb", 1), ("mnli", 3)])
def test_pipelines_say_what_a_fine_tuned_model_says_of_two_sentences(task: str, num_outputs: int, tmp_path: Path):
    config = dataclasses.replace(small.run_config(), finetune=FinetuneConfig(task))
    own = task_models.TaskModel(config, task_models.TextHead(config, num_outputs=num_outputs)).eval()
    files = checkpoint.CheckpointFiles(tmp_path / "step-7" / "model.safetensors", tmp_path / "config.json")
    found = source.Source(own, torch.device("cpu"), config, files, small.make_tokenizer(), None, {})
    folder = tmp_path / "exported"
    write(found, folder, dtype="fp32", max_shard_bytes=10**9, card=functools.partial(write_card, found))
    texts = [small.make_tokenizer().encode(text) for text in TEXTS[:2]]
    sequence = clean_sequence(role=SequenceRole.SINGLE_TEXT, text=join_texts(texts, max_text_tokens=64))
    with torch.no_grad():
        scores = own(pack_sequences([sequence], feature_size=config.model.region_feature_size)).scores[0]
    expected = scores if task == "stsb" else scores.softmax(0)
    pipe = transformers.pipeline("text-classification", model=str(folder), tokenizer=str(folder), top_k=None)
    answers = pipe({"text": TEXTS[0], "text_pair": TEXTS[1]})
    labels = ["LABEL_0"] if task == "stsb" else ["contradiction", "entailment", "neutral"]
    assert {one["label"]: one["score"] for one in answers} == pytest.approx(
        dict(zip(labels, expected.tolist(), strict=True)), abs=1e-5
    )


def test_the_processor_of_a_model_taught_with_names_of_objects_names_them(tmp_path: Path):
    named = CaptioningConfig(object_names="given when it was taught", min_confidence=0.0, max_object_tokens=9)
    tuning = FinetuneConfig("captioning", captioning=named)
    config = dataclasses.replace(small.run_config(), finetune=tuning)
    names = [f"{colour} {thing}" for colour in ("red", "blue") for thing in ("ball", "dog", "boat", "man", "horse")]
    own = task_models.TaskModel(config, task_models.NoHead())
    files = checkpoint.CheckpointFiles(tmp_path / "step-7" / "model.safetensors", tmp_path / "config.json")
    found = source.Source(
        own, torch.device("cpu"), config, files, small.make_tokenizer(), small.make_extractor(), {"object_names": names}
    )
    write(found, tmp_path / "exported", dtype="fp32", card=lambda family: "")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "exported")
    pictures = [picture(0), picture(1)]
    inputs = processor(images=pictures)
    objects = ObjectWords.of(config, found.assets, found.tokenizer)
    expected = [objects.text(one) for one in small.make_extractor().extract(pictures)]
    for row, words in enumerate(expected):
        assert inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist() == words.tolist()
    assert max(map(len, expected)) == 9
    assert processor(images=pictures, text=TEXTS[:2])["input_ids"].shape == processor(text=TEXTS[:2])["input_ids"].shape
    processor.save_pretrained(tmp_path / "again")
    again = transformers.AutoProcessor.from_pretrained(tmp_path / "again")
    assert torch.equal(again(images=pictures)["input_ids"], inputs["input_ids"])


def test_a_fine_tuned_model_without_a_class_is_refused(tmp_path: Path):
    """A task with a head of its own that the family does not know."""
    config = dataclasses.replace(small.run_config(), finetune=FinetuneConfig("sst2", num_outputs=2))
    files = checkpoint.CheckpointFiles(tmp_path / "step-7" / "model.safetensors", tmp_path / "config.json")
    own = task_models.TaskModel(config, torch.nn.Identity())
    found = source.Source(own, torch.device("cpu"), config, files, small.make_tokenizer(), small.make_extractor())
    with pytest.raises(UserError, match="fine-tuned on sst2, whose parts no class"):
        write(
            found, tmp_path / "exported", dtype="fp32", max_shard_bytes=10**9, card=functools.partial(write_card, found)
        )
    assert not (tmp_path / "exported").exists()


def test_missing_pieces_are_named(exported: Path, tmp_path: Path, processor: UnimoProcessor, monkeypatch):
    with pytest.raises(UserError, match="already holds something"):
        export(exported, exported)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="or is the current folder; give a new folder to --to"):
        export(exported, Path())
    bare = UnimoProcessor(UnimoImageProcessor(20), fast_tokenizer(small.make_tokenizer(), max_tokens=9))
    with pytest.raises(UserError, match="no region extractor"):
        bare(images=picture(0))
    with pytest.raises(ValueError, match="as many images as texts"):
        processor(images=picture(0), text=TEXTS)
    for wrong in ("photo.png", ["photo.png"], np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(TypeError, match=r"an image is a PIL image, as Image.open\(PATH\) gives, not (str|ndarray)"):
            processor(images=wrong)
    with pytest.raises(ValueError, match="give images, text, or both"):
        processor()
    model = UnimoModel.from_pretrained(exported)
    with pytest.raises(ValueError, match="give input_ids, region_features, or both"):
        model()
    with pytest.raises(ValueError, match="its masks are all 0"):
        model(input_ids=torch.ones(1, 2, dtype=torch.int64), attention_mask=torch.zeros(1, 2, dtype=torch.int64))
    most = model.config.max_position_embeddings - FIRST_POSITION
    model(input_ids=torch.ones(1, most, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"a text of {most + 1} tokens is longer than the model's {most} positions"):
        model(input_ids=torch.ones(1, most + 1, dtype=torch.int64))
    pair = heads.UnimoForVisualQuestionAnswering(model.config)
    with pytest.raises(ValueError, match="UnimoForVisualQuestionAnswering wants an image with each text"):
        pair(input_ids=torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="belong together"):
        model.encode(PaddedInputs(None, None, torch.zeros(1, 2, 24), None, None))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="a model of type 'roberta', not a UNIMO"):
        checkpoint.load(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    maker = small.make_extractor()
    narrow = dataclasses.replace(maker.parameters, projection=maker.parameters.projection[:, :12].contiguous())
    grid.GridExtractor(dataclasses.replace(maker.settings, feature_size=12), narrow).save(other)
    with pytest.raises(UserError, match="features of size 12, the model takes 24"):
        source.load(exported, extractor=other)


def test_activation_checkpointing_gives_the_same_gradients(exported: Path, processor: UnimoProcessor):
    inputs = processor(text=TEXTS)
    gradients = []
    for is_on in (False, True):
        model = UnimoModel.from_pretrained(exported).train()
        if is_on:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        torch.manual_seed(3)
        model(**inputs).text_pooled.sum().backward()
        gradients.append(model.unimo.text_embedding.word.weight.grad)
    assert torch.equal(*gradients)
    assert np.isfinite(gradients[0].numpy()).all()
