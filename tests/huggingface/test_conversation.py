"""An exported CoQA model answers with the bits of the run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers

from tests.huggingface import small
from unimo_ds.data.masking import Vocabulary
from unimo_ds.data.packing import pack_sequences
from unimo_ds.export.folder import export
from unimo_ds.finetune import model as task_models
from unimo_ds.finetune.batch import pack_examples
from unimo_ds.finetune.loaded import LoadedTask, load_task
from unimo_ds.finetune.tasks.coqa import CoqaExamples
from unimo_ds.finetune.text_writing import TextRow
from unimo_ds.finetune_config import FinetuneConfig, GenerationConfig
from unimo_ds.generation.generate import generate
from unimo_ds.huggingface import heads
from unimo_ds.huggingface.configuration import UnimoConfig
from unimo_ds.huggingface.packing import PaddedInputs

# Long ones first, as generation orders them, so that both sides compute the same stream.
PASSAGES = (
    "a man rides a brown horse in the snow and two dogs play on green grass " * 3,
    "two dogs play with a red ball in the snow",
    "the boat is blue",
)
TURNS = (
    ("the man", "a horse", "the dogs", "play", "the grass"),
    ("the ball", "red", "the dogs"),
    ("the boat",),
)


@pytest.fixture(scope="module", params=["0.0", "0.7"], ids=["as in CoQA", "length penalty"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedTask, Path]:
    """The run's own model, and the folder exported from it."""
    generation = GenerationConfig(beams=3, length_penalty=float(request.param), min_tokens=2, max_tokens=12)
    config = dataclasses.replace(
        small.run_config(), finetune=FinetuneConfig("coqa", num_outputs=0, generation=generation)
    )
    model = task_models.TaskModel(config, task_models.NoHead(), tag_sizes=(3, 16))
    torch.nn.init.constant_(model.language_head.bias[small.make_tokenizer().mask_id :], 2.0)
    torch.nn.init.constant_(model.language_head.bias[small.make_tokenizer().mask_id], 5.0)  # so that answers end
    folder = tmp_path_factory.mktemp("coqa")
    run = small.write_run(folder / "run", model, config)
    export(run, folder / "exported")
    return load_task(run, device=torch.device("cpu")), folder / "exported"


def prompts_of(own: LoadedTask) -> list:
    rows = [TextRow("", (passage, *turns), ()) for passage, turns in zip(PASSAGES, TURNS, strict=True)]
    limit = own.config.data.max_text_tokens
    examples = CoqaExamples(rows, own.tokenizer, max_source_tokens=limit, max_target_tokens=32, fingerprint="")
    return [examples.prompt(number) for number in range(len(rows))]


@torch.no_grad()
def test_hidden_states_have_the_same_bits(both):
    own, exported = both
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(exported).eval()
    inputs = transformers.AutoProcessor.from_pretrained(exported).conversations(PASSAGES, TURNS)
    expected = own.module.encode(pack_sequences(prompts_of(own), feature_size=24))
    found, _ = model.encode(
        PaddedInputs(inputs.input_ids, inputs.attention_mask, None, None, None, token_tags=inputs.token_tags)
    )
    assert torch.equal(found, expected)
    untagged, _ = model.encode(PaddedInputs(inputs.input_ids, inputs.attention_mask, None, None, None))
    assert not torch.allclose(untagged, expected, atol=1e-3), "roles and turns are seen"


def test_answers_and_their_scores_are_the_projects_own(both):
    own, exported = both
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(exported).eval()
    assert isinstance(model, heads.UnimoForConditionalGeneration)
    processor = transformers.AutoProcessor.from_pretrained(exported)
    settings = own.task.generation_settings(own.config, own.tokenizer)
    expected = generate(own.module, prompts_of(own), Vocabulary.of(own.tokenizer), settings)
    found = model.generate(**processor.conversations(PASSAGES, TURNS), return_dict_in_generate=True, output_scores=True)
    answers = processor.batch_decode(found.sequences, skip_special_tokens=True)
    assert answers == [own.tokenizer.decode(texts[0].tokens) for texts in expected]
    assert found.sequences_scores.tolist() == [texts[0].score for texts in expected]
    assert len(set(answers)) > 1
    assert any(texts[0].is_finished for texts in expected)


@torch.no_grad()
def test_the_loss_of_answers_is_that_of_the_run(both):
    own, exported = both
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(exported).eval()
    processor = transformers.AutoProcessor.from_pretrained(exported)
    target = own.tokenizer.encode("a horse")
    end = own.tokenizer.mask_id
    rows = [TextRow("", (PASSAGES[0], *TURNS[0]), ("a horse",))]
    examples = CoqaExamples(
        rows, own.tokenizer, max_source_tokens=own.config.data.max_text_tokens, max_target_tokens=32, fingerprint=""
    )
    own.module.language_head.smoothing = 0.0
    batch = pack_examples([examples.make(0, 0)], feature_size=24, target_size=0)
    expected = own.forward(batch).language_losses.mean()
    labels = torch.tensor([[*target.tolist(), end]])
    loss = model(**processor.conversations(PASSAGES[:1], TURNS[:1]), labels=labels).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)


def test_round_trip_and_refusals(both, tmp_path: Path):
    own, exported = both
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(exported)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    stored = dict(own.module.named_parameters())
    for name, parameter in load_task(exported, device=torch.device("cpu")).module.named_parameters():
        assert torch.equal(parameter, stored[name]), name
    processor = transformers.AutoProcessor.from_pretrained(exported)
    with pytest.raises(ValueError, match="3 passages and 2 conversations"):
        processor.conversations(PASSAGES, TURNS[:2])
    with pytest.raises(ValueError, match="an odd number"):
        processor.conversations(PASSAGES[:1], [TURNS[0][:2]])
    plain = heads.UnimoForConditionalGeneration(UnimoConfig.of(small.run_config().model))
    with pytest.raises(ValueError, match="has no tag_sizes"):
        plain.generate(**processor.conversations(PASSAGES, TURNS))
