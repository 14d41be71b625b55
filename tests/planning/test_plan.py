from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.evaluation import small
from unimo_ds import recipes
from unimo_ds.data.corpus import Corpus
from unimo_ds.engine import ds_config
from unimo_ds.overrides import apply_overrides
from unimo_ds.planning.cost import counted_cost
from unimo_ds.planning.plan import plan
from unimo_ds.planning.text import to_text
from unimo_ds.utils.duration import duration
from unimo_ds.utils.errors import UserError


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_can_be_planned_and_fits_where_it_is_meant_to_run(name: str) -> None:
    result = plan(recipes.load(name))
    stage = int(recipes.load(name).engine.deepspeed_config[len("zero")])
    assert result.memory[stage].fits
    totals = [stage.total for stage in result.memory]
    assert totals == sorted(totals, reverse=True), "a higher stage never needs more"
    assert name in to_text(result)
    assert dataclasses.asdict(result)["batches"]


def test_the_design_figure_for_the_base_run() -> None:
    # At 55 % utilisation one day on 32 V100 buys about 745 k tokens a step for 500 k steps.
    result = plan(recipes.load("base_32xv100"))
    own, large = result.batches
    assert (own.global_samples, large.global_samples) == (1024, 6144)
    assert own.positions_per_step * 500_000 / own.days == pytest.approx(745_000 * 500_000, rel=0.05)
    assert own.device_hours == pytest.approx(own.days * 24 * 32)
    assert (own.micro_batches, large.micro_batches) == (1, 5)
    # More than one micro-batch costs a rehearsal of the others: a third of forward and backward, over clean positions alone.
    clean, corrupted = 5 * (5 * 117 + 2 * 101 + 2 * 16), 5 * 117 + 101 + 384
    share = clean / (clean + corrupted)
    assert large.flops_per_step / own.flops_per_step == pytest.approx(6 * (1 + 4 / 5 * share / 3), rel=5e-3)
    assert result.encoder_parameters == pytest.approx(125.6e6, rel=1e-3)


@pytest.mark.parametrize(("name", "layers", "size"), [("base_32xv100", 12, 768), ("large_64xv100", 24, 1024)])
def test_operations_of_the_papers_runs_by_hand(name: str, layers: int, size: int) -> None:
    image, caption, text = 101, 16, 384  # [IMG] and [CLS] ... [SEP] included
    # Of seven samples: five pairs (corrupted, five joint, two images and two texts alone), an image and a text.
    lengths = 5 * (6 * [image + caption] + 2 * [image] + 2 * [caption]) + [image, text]
    positions = sum(lengths)
    language, masked, pooled = 0.2 * (5 * caption + text), 0.15 * 2 * 6 * image, 5 * (5 * 2 + 2 + 2)
    read = language + masked + pooled
    products = layers * (3 * size**2 * positions + 2 * size * sum(length**2 for length in lengths))
    products += 9 * size**2 * ((layers - 1) * positions + read)  # output projection and feed-forward
    products += (5 * 3 + 1) * image * (2048 + 5) * size  # images: corrupted, clean, related; and images alone
    products += language * size * (size + 50265) + masked * size * (2048 + 1601) + pooled * size**2
    own = plan(recipes.load(name)).batches[0]
    assert own.flops_per_step == pytest.approx(1024 / 7 * 3 * 2 * products, rel=1e-5)
    assert own.positions_per_step == round(1024 / 7 * positions)


def test_halving_the_utilisation_doubles_the_time() -> None:
    config = recipes.load("large_64xv100")
    fast, slow = (plan(config, utilisation=share).batches[0] for share in (0.5, 0.25))
    assert slow.days == pytest.approx(2 * fast.days)
    assert slow.read_bytes_per_second == pytest.approx(fast.read_bytes_per_second / 2)


def test_checkpointing_trades_memory_for_operations() -> None:
    config = recipes.load("large_64xv100")
    thrifty = dataclasses.replace(config, engine=dataclasses.replace(config.engine, activation_checkpointing=True))
    plain, less = plan(config), plan(thrifty)
    assert less.memory[1].activations < plain.memory[1].activations / 4
    assert less.batches[0].flops_per_step == pytest.approx(plain.batches[0].flops_per_step * 4 / 3, rel=1e-6)


def test_frozen_parts_have_no_gradients_and_no_moments() -> None:
    recipe = recipes.load("base_pixels_32xv100")
    frozen = apply_overrides(
        recipe, ["optimizer.rate_factors.image_transformer=0", "optimizer.rate_factors.layers=0.1"]
    )
    usual, less = plan(recipe), plan(frozen)
    # Twelve layers of a Vision Transformer, its patches, positions of 196 patches and of the class, and the last norm.
    layer = 4 * 768 * 769 + 3072 * 769 + 768 * 3073 + 4 * 768
    assert less.frozen_parameters == 12 * layer + 768 * 769 + 198 * 768 + 2 * 768
    assert less.total_parameters == usual.total_parameters
    for before, after in zip(usual.memory, less.memory, strict=True):
        shared = 32 if before.stage >= 1 else 1
        assert before.optimizer - after.optimizer == pytest.approx(12 * less.frozen_parameters / shared / 2**30)
        assert after.weights == before.weights
    assert after.gradients < before.gradients
    assert less.batches[0].communication_seconds < usual.batches[0].communication_seconds
    assert "M of them frozen" in to_text(less)
    with pytest.raises(UserError, match="image_transformer"):
        plan(apply_overrides(recipe, ["optimizer.rate_factors.image_transformers=0"]))


def test_the_rehearsal_of_further_micro_batches_needs_a_layers_memory() -> None:
    recipe = recipes.load("base_32xv100")  # one micro-batch a rank
    usual, more = plan(recipe), plan(apply_overrides(recipe, ["batch.global_samples=6144"]))
    full = plan(apply_overrides(recipe, ["batch.global_samples=6144", "contrast.enabled=false"]))
    assert usual.batches[0].micro_batches == 1
    assert more.memory[1].activations / full.memory[1].activations == pytest.approx(13 / 12, rel=0.05)


def test_patches_of_another_number_are_patches_still() -> None:
    config = apply_overrides(
        recipes.load("base_pixels_32xv100"), ["model.region_tag_sizes=576", "data.max_regions=576"]
    )
    usual, finer = plan(recipes.load("base_pixels_32xv100")), plan(config)
    assert finer.total_parameters - usual.total_parameters == (576 - 196) * 768
    assert "features 768, classes 1" in to_text(finer)
    assert "images of 576 regions" in to_text(finer)


def test_precision_is_what_the_file_says_whatever_its_name(tmp_path: Path) -> None:
    config = recipes.load("base_32xv100")
    path = tmp_path / "mine.json"

    def memory(name: str) -> float:
        return (
            plan(dataclasses.replace(config, engine=dataclasses.replace(config.engine, deepspeed_config=name)))
            .memory[1]
            .total
        )

    path.write_bytes((ds_config.FOLDER / "zero1_fp16.json").read_bytes())
    assert memory(str(path)) == memory("zero1_fp16") < memory("zero1_fp32")
    with pytest.raises(UserError, match="zero1_fp16"):
        memory("zero1_fp61")


def test_sequences_are_counted_where_data_is_given(tmp_path: Path) -> None:
    folder = small.write_corpus(tmp_path, num_pairs=12)
    config = dataclasses.replace(
        recipes.load("demo"),
        data=dataclasses.replace(
            recipes.load("demo").data, path=str(folder), kind_weights=recipes.load("small").data.kind_weights
        ),
    )
    corpus = Corpus.open(folder)
    config = recipes.fit_to_data(config, corpus)
    counted = plan(config, corpus=corpus)
    assert counted.batches[0].positions_per_step < plan(config).batches[0].positions_per_step
    assert any("counted over" in line for line in counted.assumptions)
    few = dataclasses.replace(config, data=dataclasses.replace(config.data, max_regions=1))
    assert any("max_regions" in line for line in plan(few, corpus=corpus).assumptions)
    (stream,) = counted.mix
    assert (stream.kind, stream.source, stream.folder, stream.samples, stream.share) == ("pair", "toys", "", 12, 1.0)
    assert stream.epochs == pytest.approx(config.batch.global_samples * config.schedule.total_steps / 12)
    assert "toys" in to_text(counted)
    data = dataclasses.replace(config.data, folder_weights=(2.0,))
    assert plan(dataclasses.replace(config, data=data), corpus=corpus).mix[0].folder == str(folder)
    cost, _ = counted_cost(config, corpus)
    # Corrupted, the pair, one positive and three levels of negatives of which one is absent here, and two alone.
    mean_regions = corpus.num_regions[corpus.kinds == 2].mean()
    assert cost.pooled == 2 * 4 + 2
    # An image is projected once for its corrupted copy and once for all clean sequences that show it.
    assert cost.regions == pytest.approx((1 + mean_regions) * 2, rel=0.1)
    assert 500 < cost.bytes < 20_000, "arrays and JSON of one pair, with the small JPEG between them"


def test_what_cannot_be_planned_is_refused() -> None:
    config = recipes.load("demo")
    with pytest.raises(UserError, match="did you mean 'v100'"):
        plan(config, hardware="v10")
    with pytest.raises(UserError, match="--utilisation 0 "):
        plan(config, utilisation=0)


def test_the_utilisation_can_come_from_measured_rows(tmp_path: Path) -> None:
    rows = tmp_path / "step_cuda.json"
    content = {
        "hardware": "NVIDIA H200",
        "threads": 1,
        "rows": [
            {"contender": "usual", "useful_teraflops": 99.0},
            {"contender": "ours", "useful_teraflops": 197.8},
        ],
    }
    rows.write_text(json.dumps(content))
    found = plan(recipes.load("single_gpu"), measured=str(rows))
    assert found.utilisation == pytest.approx(0.2)
    assert any("measured" in line for line in found.assumptions)
    with pytest.raises(UserError, match="not on v100"):
        plan(recipes.load("base_32xv100"), measured=str(rows))
    # Half of the kernels' time is products; the rest waits for memory, and 10 ms are idle.
    content["rows"][1] |= {
        "first_step_teraflop": 20.0,
        "first_step_seconds": 0.07,
        "first_step_gpu_seconds": 0.06,
        "first_step_product_seconds": 0.03,
    }
    rows.write_text(json.dumps(content))
    carried = plan(recipes.load("base_32xv100"), measured=str(rows))
    seconds = 0.03 * 989 / 125 + 0.03 * 4.8 / 0.9 + 0.01
    assert carried.utilisation == pytest.approx(20 / 125 / seconds)
    assert any("carried over from NVIDIA H200" in line for line in carried.assumptions)
    assert plan(recipes.load("single_gpu"), measured=str(rows)).utilisation == pytest.approx(0.2)
    with pytest.raises(UserError, match="not on cpu"):
        plan(recipes.load("demo"), measured=str(rows))
    rows.write_text("[]")
    with pytest.raises(UserError, match="not a row file"):
        plan(recipes.load("single_gpu"), measured=str(rows))


def test_communication_is_there_between_nodes_alone() -> None:
    config = recipes.load("base_32xv100")
    alone, four = (plan(config, devices=devices).batches[0] for devices in (8, 32))
    assert alone.communication_seconds == 0
    # Two bytes of each of 130.3 million parameters, three quarters of them leave the node, there and back.
    assert four.communication_seconds == pytest.approx(130.3e6 * (2 + 2) * 0.75 / 12.5e9, rel=0.01)
    wide = apply_overrides(config, ["engine.deepspeed_config=zero1_bf16"])  # whose gradients are summed in fp32
    assert plan(wide, devices=32).batches[0].communication_seconds == pytest.approx(
        four.communication_seconds * 6 / 4, rel=0.01
    )


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (0.0005, "43 s"),
        (0.0124, "18 min"),
        (0.06, "86 min"),
        (0.0625, "1.5 h"),
        (0.94, "23 h"),
        (0.998, "1.0 days"),
        (1.04, "1.0 days"),
        (1234, "1,234.0 days"),
    ],
)
def test_a_duration_is_said_in_its_unit(days: float, said: str) -> None:
    assert duration(days) == said
