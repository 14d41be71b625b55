"""The model's own laws: packing, order of regions, masks and dropout change nothing that they should not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests import support
from unimo_ds.data.packing import pack, pack_sequences
from unimo_ds.data.schema import PackedBatch, SequenceInput, SequenceRole
from unimo_ds.models.heads import Temperature
from unimo_ds.models.unimo import ModelOutput, Unimo
from unimo_ds.utils.seed import generator

FIELDS = [field.name for field in dataclasses.fields(ModelOutput) if field.name not in ("language_correct", "heads")]


def make_model(*, double: bool = True, **changes) -> Unimo:
    model = Unimo(support.model_config(**changes), seed=3)
    return model.double() if double else model


def training_batch(count: int = 6) -> PackedBatch:
    return pack(
        [support.example(position) for position in range(count)],
        feature_size=support.FEATURES,
        classes_per_region=support.STORED_CLASSES,
    )


def total(output: ModelOutput) -> torch.Tensor:
    """A scalar that every output has a part in."""
    return sum(
        (
            getattr(output, name).double()
            * torch.arange(1, getattr(output, name).numel() + 1).view_as(getattr(output, name))
        )
        .sin()
        .sum()
        for name in FIELDS
    )


def test_shapes_of_every_output():
    batch = training_batch()
    output = make_model(double=False).eval()(batch)
    assert output.language_losses.shape == batch.language_at.shape
    assert output.language_losses.dtype == torch.float32
    assert output.language_correct.dtype == torch.bool
    assert output.region_predictions.shape == (len(batch.masked_region_at), support.FEATURES)
    assert output.region_class_logits.shape == (len(batch.masked_region_at), support.CLASSES)
    assert output.pooled_images.shape == (len(batch.pooled_image_at), 32)
    assert output.pooled_texts.shape == (len(batch.pooled_text_at), 32)
    assert output.temperature.shape == ()
    assert float(output.temperature) == pytest.approx(0.07, abs=1e-6)


@pytest.mark.parametrize("initial", [0.001, 0.07, 0.5])
def test_the_temperature_starts_where_it_is_told_and_can_move(initial):
    """At an end of its range just inside of it; where the range is one number, it is that number."""
    temperature = Temperature(initial=initial, minimum=0.001, maximum=0.5)
    assert temperature().item() == pytest.approx(initial, abs=1e-4)
    temperature().backward()
    assert temperature.raw.grad.item() > 0
    assert Temperature(initial=initial, minimum=initial, maximum=initial)().item() == pytest.approx(initial)


def test_a_packed_stream_equals_its_sequences_one_by_one():
    model = make_model().train()
    sequences = [sequence for position in range(6) for sequence in support.example(position).sequences]
    together = model.encode(pack_sequences(sequences, feature_size=support.FEATURES))
    alone = torch.cat([model.encode(pack_sequences([one], feature_size=support.FEATURES)) for one in sequences])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_an_empty_batch_runs_every_module_and_gives_zero_gradients():
    model = make_model(double=False)
    ran: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    total(model(training_batch())).backward()
    full, ran[:] = list(ran), []
    model.zero_grad()
    total(model(pack([]))).backward()
    assert ran == full
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(not gradient.any() for name, gradient in gradients.items() if name != "temperature.raw")


def test_gradients_reach_every_parameter():
    model = make_model(double=False)
    total(model(training_batch())).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_heads_read_the_rows_that_encode_gives():
    """The last layer makes only the rows that heads read: nothing else may change."""
    model, batch = make_model().train(), training_batch()
    hidden = model.encode(batch)
    output = model(batch)
    torch.testing.assert_close(
        output.region_predictions, model.region_regression(hidden[batch.masked_region_at]), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        output.pooled_images, model.image_pooler(hidden[batch.pooled_image_at]), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(output.pooled_texts, model.text_pooler(hidden[batch.pooled_text_at]), rtol=0, atol=1e-12)
    losses, _ = model.language_head(hidden[batch.language_at], batch.language_targets)
    torch.testing.assert_close(output.language_losses, losses, rtol=0, atol=1e-12)


def test_results_do_not_depend_on_what_else_is_in_the_stream():
    """The same sequences in another order, dropout on: masks belong to the sequence, not to its place."""
    model = make_model().train()
    sequences = [sequence for position in range(5) for sequence in support.example(position).sequences]
    lengths = [sequence.length for sequence in sequences]
    forward = model.encode(pack_sequences(sequences, feature_size=support.FEATURES)).split(lengths)
    backward = model.encode(pack_sequences(sequences[::-1], feature_size=support.FEATURES)).split(lengths[::-1])
    for one, other in zip(forward, backward[::-1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_dropout_follows_the_seed_and_only_in_training():
    model, random = make_model(), generator(1)
    text = support.tokens(random, 6)

    def encode(seed: int) -> torch.Tensor:
        return model.encode(pack_sequences([support.sequence(SequenceRole.SINGLE_TEXT, seed, text=text)]))

    model.train()
    assert torch.equal(encode(1), encode(1))
    assert not torch.equal(encode(1), encode(2))
    torch.manual_seed(0)
    first = encode(1)
    torch.manual_seed(1)
    assert torch.equal(encode(1), first), "torch's own generator must have no part in it"
    model.eval()
    assert torch.equal(encode(1), encode(2))
    assert not torch.equal(encode(1), first)


def test_order_of_regions_carries_no_signal():
    model, random = make_model().eval(), generator(2)
    features, boxes = support.regions(random, 5)
    text = support.tokens(random, 4)
    order = np.array([0, 3, 1, 5, 2, 4])

    def encode(rows: np.ndarray) -> torch.Tensor:
        image = (features[rows], boxes[rows])
        return model.encode(pack_sequences([support.sequence(SequenceRole.JOINT_PAIR, 1, image=image, text=text)]))

    straight, permuted = encode(np.arange(6)), encode(order)
    torch.testing.assert_close(permuted[:6], straight[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(permuted[6:], straight[6:], rtol=0, atol=1e-12)


def test_position_and_location_do_carry_signal():
    model, random = make_model().eval(), generator(2)
    features, boxes = support.regions(random, 3)
    text = support.tokens(random, 4)
    whole = support.sequence(SequenceRole.JOINT_PAIR, 1, image=(features, boxes), text=text)
    plain = model.encode(pack_sequences([whole]))
    moved = dataclasses.replace(whole, token_positions=whole.token_positions + 1)
    shifted = dataclasses.replace(whole, region_boxes=boxes * 0.9)
    for changed in (moved, shifted):
        assert (model.encode(pack_sequences([changed])) - plain).abs().max() > 1e-4


@pytest.mark.parametrize("path", ["bucketed", "reference"])
def test_nothing_before_a_generated_token_depends_on_it(path):
    """Source, image and earlier target positions must not see the target (dropout on, so masks are seen to be safe too)."""
    model = Unimo(support.model_config(), attention=path, seed=3).double().train()
    random = generator(4)
    image, text = support.regions(random, 3), support.tokens(random, 10)
    whole = support.sequence(SequenceRole.CORRUPTED, 1, image=image, text=text, corrupt=True, generative=True)
    assert whole.prefix_length == 4 + 6
    plain = model.encode(pack_sequences([whole]))
    for changed_at in range(6, 12):
        other = text.copy()
        other[changed_at] = (other[changed_at] + 7) % support.VOCABULARY
        changed = model.encode(pack_sequences([dataclasses.replace(whole, token_ids=other)]))
        stream_at = 4 + changed_at
        assert torch.equal(changed[:stream_at], plain[:stream_at])
        assert all((changed[row] - plain[row]).abs().max() > 1e-6 for row in range(stream_at, 16))
    early = text.copy()
    early[2] += 1
    changed = model.encode(pack_sequences([dataclasses.replace(whole, token_ids=early)]))
    assert all((changed[row] - plain[row]).abs().max() > 1e-6 for row in range(16))


def test_single_encodings_never_see_their_pair():
    model, batch = make_model(), training_batch(4)
    sequence_of = batch.position_sequence.tolist()
    table = batch.contrast
    related = table.score_image[table.score_role == SequenceRole.RELATED_IMAGE][0]
    own = sequence_of[batch.pooled_image_at[related]]
    boxes = batch.region_boxes.double().requires_grad_()
    vectors = model(dataclasses.replace(batch, region_boxes=boxes)).pooled_images
    (gradient,) = torch.autograd.grad(vectors[related].sum(), boxes)
    shown = gradient.abs().sum(-1)[batch.region_row] > 0
    reached = {sequence_of[at] for at in batch.region_at[shown].tolist()}
    assert reached == {own}


def test_activation_checkpointing_gives_the_same_bits():
    plain = make_model(double=False).train()
    saving = Unimo(support.model_config(), seed=3, activation_checkpointing=True).train()
    batch = training_batch()
    outputs = [model(batch) for model in (plain, saving)]
    for name in FIELDS:
        assert torch.equal(*(getattr(output, name) for output in outputs)), name
    for output in outputs:
        total(output).backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_stays_near_fp32(dtype):
    model, batch = make_model(double=False).train(), training_batch()
    exact = model(batch)
    rounded = model.to(dtype)(batch)
    total(rounded).backward()
    assert all(parameter.grad.dtype == dtype for parameter in model.parameters())
    assert rounded.pooled_images.dtype == dtype
    assert rounded.language_losses.dtype == rounded.temperature.dtype == torch.float32
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(rounded, name).float(), getattr(exact, name).float(), rtol=0.05, atol=0.05, msg=name
        )


def test_temperature_stays_in_its_range_whatever_the_parameter():
    model = Unimo(support.model_config(), temperature=0.1, min_temperature=0.01, max_temperature=0.2)
    assert float(model.temperature()) == pytest.approx(0.1)
    for raw, limit in ((100.0, 0.2), (-100.0, 0.01)):
        with torch.no_grad():
            model.temperature.raw.fill_(raw)
        assert float(model.temperature()) == pytest.approx(limit)


def test_external_parameters_name_the_tied_table():
    model = make_model()
    ((module, parameter),) = model.external_parameters()
    assert module is model.language_head
    assert parameter is model.text_embedding.word.weight
    assert not any(one is parameter for one in module.parameters())
    with torch.no_grad():
        parameter[5] += 1
    logits, _ = model.language_head(torch.ones(1, 32, dtype=torch.float64))
    assert logits.shape == (1, support.VOCABULARY)


def test_a_text_that_shares_an_image_sees_it_and_the_image_sees_no_text():
    """The image's states are those of the image alone; the text's change with the image, and not with its neighbours."""
    model, random = make_model().train(), generator(7)
    images = [support.regions(random, count) for count in (5, 3)]
    texts = [support.tokens(random, count) for count in (4, 6, 3)]

    def image(number: int) -> SequenceInput:
        return support.sequence(SequenceRole.SINGLE_IMAGE, 10 + number, image=images[number])

    def text(number: int, at: int) -> SequenceInput:
        plain = support.sequence(SequenceRole.JOINT_NEGATIVE, 20 + number, text=texts[number])
        return dataclasses.replace(plain, shares_prefix_at=at)

    def encode(*sequences: SequenceInput) -> tuple[torch.Tensor, ...]:
        states = model.encode(pack_sequences(sequences, feature_size=support.FEATURES))
        return states.split([one.length for one in sequences])

    together = encode(text(0, 2), text(1, 3), image(0), text(2, -1), image(1))
    own, *_ = encode(image(0))
    torch.testing.assert_close(together[2], own, rtol=0, atol=1e-12)
    for place, (number, shown) in {0: (0, 0), 1: (1, 1), 3: (2, 0)}.items():
        _, alone = encode(image(shown), text(number, -1))
        torch.testing.assert_close(together[place], alone, rtol=0, atol=1e-12)
        _, elsewhere = encode(image(1 - shown), text(number, -1))
        assert not torch.allclose(alone, elsewhere)


def test_initial_weights_follow_the_seed_and_the_stated_deviation():
    model, twin, other = (Unimo(support.model_config(hidden_size=64), seed=seed) for seed in (1, 1, 2))
    for (name, one), same in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, same), name
    weight = model.layers[0].feed_forward_in.weight
    assert not torch.equal(weight, other.layers[0].feed_forward_in.weight)
    assert weight.abs().max() <= 0.04
    assert float(weight.std()) == pytest.approx(0.02 * 0.88, rel=0.1)  # cut at two deviations
    assert not model.layers[0].feed_forward_in.bias.any()
    assert bool((model.text_embedding.norm.weight == 1).all())
