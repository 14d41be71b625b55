"""N ranks equal one rank, for a task of each kind, adversarial training and tags of regions included."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed.launching import launch
from tests.finetune import small
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.storage import index, shards
from unimo_ds.data.storage.folder import finish_folder

WORKER = Path(__file__).with_name("step_worker.py")
FACTORS = {"text_embedding": 0, "layers": 0.5, "layers.0": 0, "text_pooler": 2}
ALONE = [
    {"task": "sst2", "deepspeed": "zero0_fp32", "micro_batch_tokens": 4000},
    {"task": "retrieval", "deepspeed": "zero0_fp32", "micro_batch_tokens": 4000},
    {"task": "captioning", "deepspeed": "zero0_fp32", "micro_batch_tokens": 4000, "ascents": 2},
    {"task": "captioning", "deepspeed": "zero0_fp32", "micro_batch_tokens": 4000, "ascents": 2, "image_layers": 1},
    {"task": "sst2", "deepspeed": "zero0_fp32", "micro_batch_tokens": 4000, "rate_factors": FACTORS},
    {
        "task": "captioning",
        "deepspeed": "zero0_fp32",
        "micro_batch_tokens": 4000,
        "ascents": 2,
        "rate_factors": FACTORS,
    },
]
SPLIT = [
    {"task": "sst2", "deepspeed": "zero1_fp32", "micro_batch_tokens": 60},
    {"task": "retrieval", "deepspeed": "zero3_fp32", "micro_batch_tokens": 500},
    {"task": "captioning", "deepspeed": "zero2_fp32", "micro_batch_tokens": 90, "ascents": 2},
    {"task": "captioning", "deepspeed": "zero1_fp32", "micro_batch_tokens": 90, "ascents": 2, "image_layers": 1},
    {"task": "sst2", "deepspeed": "zero3_fp32", "micro_batch_tokens": 60, "rate_factors": FACTORS},
    {"task": "captioning", "deepspeed": "zero2_fp32", "micro_batch_tokens": 90, "ascents": 2, "rate_factors": FACTORS},
]
"""The same tasks on two ranks, in several micro-batches each, some of them empty."""


def give_tags(folder: Path) -> None:
    """To the regions of a data folder: each has its number."""
    tokenizer = tokenizers.load(folder)

    def tagged(_: int, stored: shards.StoredSample) -> shards.StoredSample:
        regions = stored.sample.regions
        if regions is None:
            return stored
        regions = dataclasses.replace(regions, tags=np.arange(len(regions.boxes), dtype=np.int32)[:, None])
        return dataclasses.replace(stored, sample=dataclasses.replace(stored.sample, regions=regions))

    for path in shards.shard_files(folder):
        index.rewrite(path, tagged, tokenizer)
    finish_folder(folder, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[list[dict], list[dict]]:
    folder = tmp_path_factory.mktemp("step")
    small.write_pairs(folder / "pairs")
    give_tags(folder / "pairs" / "train")
    small.write_sst2(folder / "sst2", train=23)
    found = []
    for number, cases in enumerate((ALONE, SPLIT), start=1):
        output = folder / f"{number}.json"
        launch(WORKER, [json.dumps(cases), str(folder), str(output)], processes=number)
        found.append(json.loads(output.read_text()))
    return found[0], found[1]


@pytest.mark.parametrize("number", range(len(ALONE)), ids=["_".join([case["task"], *list(case)[3:]]) for case in ALONE])
def test_two_ranks_take_the_steps_of_one(number, results):
    one, two = (found[number] for found in results)
    assert one["applied"]
    assert two["applied"]
    assert two["counts"] == one["counts"]
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-5)
    assert two["norms"] == pytest.approx(one["norms"], rel=2e-4)
    assert two["metrics"] == one["metrics"]
    assert two["temperatures"] == pytest.approx(one["temperatures"], rel=1e-6)
    assert one["temperatures"][0] == pytest.approx(0.07)
    assert one["losses"][0] != one["losses"][1]
    assert one["norms"][0] > 0
    (table,) = (name for name in one["weights"] if name.endswith("tags.0.weight"))
    assert table.startswith("image_transformer." if "image_layers" in ALONE[number] else "region_embedding.")
    *tags, none = torch.tensor(one["weights"][table]).view(-1, 32)
    assert all(row.any() for row in tags)
    assert not none.any()
    for name, expected in one["weights"].items():
        # Adam divides by the gradient's size, so that rounding of tiny gradients shows: 5 % of one step's 1e-3.
        torch.testing.assert_close(
            torch.tensor(two["weights"][name]),
            torch.tensor(expected),
            rtol=1e-4,
            atol=5e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_frozen_parts_stand_still(results):
    for found in results:
        for free, frozen in ((found[0], found[4]), (found[2], found[5])):
            for name, weight in frozen["weights"].items():
                if name.startswith(("text_embedding.", "layers.0.")) and name.endswith(("norm.weight", "bias")):
                    assert set(weight) == {1.0 if name.endswith("weight") else 0.0}, "as they began"
                    assert set(free["weights"][name]) != set(weight)
