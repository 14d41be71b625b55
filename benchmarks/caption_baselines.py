"""python benchmarks/caption_baselines.py --train photos/train --held-out photos/dev

What captions score that look at no image: the most frequent caption of the training data for every held-out image, and, for each
image, one caption of a training image drawn at random.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.corpus import Corpus
from unimo_ds.finetune.metrics import captions
from unimo_ds.finetune.pairs import Pairs
from unimo_ds.utils.seed import generator


def texts_of(folder: Path) -> list[list[str]]:
    """The captions of every image."""
    corpus = Corpus.open(folder)
    pairs = Pairs(corpus, tokenizers.load(corpus.tokenizer_path), max_regions=1, max_text_tokens=128)
    return [[pairs.text(caption) for caption in pairs.captions_of(image)] for image in range(pairs.num_images)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    options = parser.parse_args()
    training = [text for texts in texts_of(options.train) for text in texts]
    references = texts_of(options.held_out)
    counts = Counter(captions.split_plainly(text) for text in training)
    frequent, times = min(counts.items(), key=lambda item: (-item[1], item[0]))
    drawn = generator(0).integers(0, len(training), len(references))
    written = {
        f"most frequent caption ({frequent!r}, {times} times)": [frequent] * len(references),
        "a caption at random": [training[number] for number in np.asarray(drawn).tolist()],
    }
    for name, texts in written.items():
        metrics, notes = captions.measure(texts, references)
        print(name, json.dumps({key: round(100 * value, 2) for key, value in metrics.items()}), notes)


if __name__ == "__main__":
    main()
