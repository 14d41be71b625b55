"""slurm/corpus.toml and held_out.toml, on a few files of each corpus: what the paper's recipes ask for, and no test image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.prepare.paper_corpora import NUM_COCO, SPLITS, write_paper_corpora
from unimo_ds import recipes
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.corpus_check import check_corpus
from unimo_ds.data.prepare.command import main as prepare
from unimo_ds.data.schema import Kind
from unimo_ds.evaluation.held_out import check_fits
from unimo_ds.overrides import apply_overrides


def test_the_paper_s_corpora_make_what_its_recipes_read(tmp_path: Path) -> None:
    for file in write_paper_corpora(tmp_path):
        assert prepare(["all", "--config", str(file), "--workers", "1"]) == 0
    train, held_out = Corpus.open(tmp_path / "data" / "train"), Corpus.open(tmp_path / "data" / "held_out")
    config = recipes.with_data(recipes.load("base_32xv100"), str(tmp_path / "data"))
    assert set(train.source_names) == set(config.data.source_weights)
    # The sizes of the grid and of the tokenizer that were trained here, in place of the detector's and RoBERTa's.
    sizes = ("vocabulary_size", "region_feature_size", "num_region_classes")
    config = recipes.fit_to_data(apply_overrides(config, [f"model.{size}=0" for size in sizes]), train)
    check_corpus(train, config)
    check_fits(held_out, config)

    names = {train.details(number).get("file", train.key(number)) for number in range(len(train))}
    left_out = {number for number in range(NUM_COCO) if SPLITS[number % len(SPLITS)] in ("val", "test")}
    numbers = {int(name[-16:-4]) for name in names if "COCO_" in name}
    assert numbers == set(range(NUM_COCO)) - left_out
    assert {name for name in names if name.startswith("10")} == {f"{number}.jpg" for number in range(1000, 1012)} - {
        "1004.jpg"
    }
    assert len(held_out) == sum(split == "val" for split in SPLITS) * NUM_COCO // len(SPLITS)
    pairs = np.flatnonzero(train.kinds == Kind.PAIR).tolist()
    assert all(train.read(number).related_texts and train.read(number).related_images for number in pairs[:10])
