"""Pairs per second through the contrastive objective with rewrites: exact, with a shared image, and padded as in usual code.

    python -m benchmarks.hard_negatives                                   a CPU, fp32
    python -m benchmarks.hard_negatives --device cuda --pairs 64          a GPU, bf16

A pair has single encodings of its image and caption, and joint ones of itself, one positive rewrite and `--negatives` negative
rewrites: forward and backward of all of them, without optimizer. Exact and padded must agree on the loss (dropout off); a
shared image is masked differently (docs/choices.md, 6b), so its loss differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks import measuring
from benchmarks.mix import MixCorpus, NumberTokenizer
from benchmarks.usual import PaddedStep, UsualModel, copy_weights, pad
from unimo_ds.config import ModelConfig
from unimo_ds.data.inputs import clean_sequence, image_input, text_input
from unimo_ds.data.packing import pack
from unimo_ds.data.schema import Example, Kind, PackedBatch, Sample, SequenceInput, SequenceRole
from unimo_ds.losses.contrast_plan import make_plan, share_sizes
from unimo_ds.losses.contrastive import contrastive_loss
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils.communicator import SingleProcess
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.host_memory import keep_freed_buffers
from unimo_ds.utils.running import run_command
from unimo_ds.utils.seed import mix

EXACT, SHARED, PADDED = "exact, packed", "shared image, packed", "exact, padded"
FORM = "two_logs"


def pair_example(sample: Sample, position: int, *, negatives: int, shares_image: bool) -> Example:
    """The clean sequences of a pair."""
    assert sample.regions is not None
    caption = sample.captions[0]
    encode = NumberTokenizer().encode_batch
    image = image_input(sample.regions, max_regions=100)
    rewrites = [caption.positives[0], *(caption.negatives * (negatives // len(caption.negatives) + 1))[:negatives]]
    texts = [text_input(ids, max_text_tokens=512) for ids in encode([caption.text, *(one.text for one in rewrites)])]
    roles = [SequenceRole.JOINT_PAIR, SequenceRole.JOINT_POSITIVE, *[SequenceRole.JOINT_NEGATIVE] * negatives]
    sequences: list[SequenceInput] = []
    for number, (role, text) in enumerate(zip(roles, texts, strict=True)):
        sequences.append(
            clean_sequence(
                role=role,
                seed=mix(position, number),
                image=None if shares_image else image,
                text=text,
                shares_prefix_at=len(roles) - number if shares_image else 0,
            )
        )
    sequences.append(clean_sequence(role=SequenceRole.SINGLE_IMAGE, seed=mix(position, 1000), image=image))
    sequences.append(clean_sequence(role=SequenceRole.SINGLE_TEXT, seed=mix(position, 1001), text=texts[0]))
    return Example(sample.key, Kind.PAIR, position, tuple(sequences), text_key=position + 1, image_key=position + 1)


def loss_of(model: torch.nn.Module, step: PackedBatch | PaddedStep) -> torch.Tensor:
    """Mean CMCL of the pairs."""
    output = model(step)
    table = (step.packed if isinstance(step, PaddedStep) else step).contrast
    plan = make_plan(table, form=FORM, sizes=share_sizes(table, SingleProcess())).to(output.pooled_images.device)
    result = contrastive_loss(
        output.pooled_images,
        output.pooled_texts,
        plan,
        temperature=output.temperature,
        form=FORM,
        in_batch=True,
        communicator=SingleProcess(),
    )
    unused = output.language_losses.sum() + output.region_predictions.sum() + output.region_class_logits.sum()
    return result.loss_sum / plan.num_pairs + 0.0 * unused


def measure(arguments: argparse.Namespace, *, regions: str, negatives: int) -> list[dict[str, Any]]:
    """Rows of the three contenders for one case."""
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    config = ModelConfig(
        num_layers=arguments.layers, hidden_dropout=arguments.dropout, attention_dropout=arguments.dropout
    )
    corpus = MixCorpus(images=0, texts=0, pairs=arguments.pairs * arguments.rounds, regions=regions)
    ours = Unimo(config, attention=arguments.attention)
    usual = UsualModel(config)
    copy_weights(ours, usual)
    ours, usual = ours.to(device, dtype), usual.to(device, dtype)

    def batches(shares_image: bool) -> list[PackedBatch]:
        chosen = np.split(np.arange(len(corpus.samples)), arguments.rounds)
        return [
            pack(
                [
                    pair_example(corpus.samples[at], at, negatives=negatives, shares_image=shares_image)
                    for at in part.tolist()
                ],
                classes_per_region=corpus.classes_per_region,
            )
            for part in chosen
        ]

    exact, shared = batches(False), batches(True)
    steps: dict[str, tuple[torch.nn.Module, list[Any]]] = {
        EXACT: (ours, [batch.to(device) for batch in exact]),
        SHARED: (
            Unimo(config).to(device, dtype) if arguments.device == "cuda" else ours,
            [b.to(device) for b in shared],
        ),
        PADDED: (usual, [pad(batch).to(device) for batch in exact]),
    }
    for model, _ in steps.values():
        model.eval()
    with torch.no_grad():
        losses = {name: float(loss_of(model, own[0])) for name, (model, own) in steps.items()}
    if abs(losses[EXACT] - losses[PADDED]) > (3e-2 if arguments.device == "cuda" else 2e-4) * abs(losses[PADDED]):
        raise UserError(f"packed and padded disagree about the loss: {losses}")
    for model, _ in steps.values():
        model.train()

    def run(name: str) -> Callable[[int], None]:
        model, own = steps[name]

        def step(number: int) -> None:
            loss_of(model, own[number % arguments.rounds]).backward()  # warm-up rounds have numbers below 0
            model.zero_grad(set_to_none=True)

        return step

    synchronize = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    timings = measuring.interleaved(
        {name: run(name) for name in steps},
        rounds=arguments.rounds,
        warm_up=arguments.rounds if arguments.device == "cuda" else 1,  # cuDNN makes a new plan for every shape
        synchronize=synchronize,
        say=True,
    )
    rows = []
    for name, timing in timings.items():
        positions = [step.num_padded if isinstance(step, PaddedStep) else step.num_positions for step in steps[name][1]]
        rows.append(
            {
                "case": f"{negatives} negatives, {regions} regions",
                "contender": name,
                "device": arguments.device,
                "layers": arguments.layers,
                "dropout": arguments.dropout,
                "pairs": arguments.pairs,
                "positions": sum(positions) / len(positions),
                "loss_without_dropout": losses[name],
                "pairs_per_second": arguments.pairs / timing.row()["seconds_median"],
                "pairs_per_processor_second": arguments.pairs / timing.row()["processor_seconds_median"],
                **timing.row(),
                **{f"padded_{key}": value for key, value in measuring.ratio_of_rounds(timings[PADDED], timing).items()},
            }
        )
    return rows


def _main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)  # beside a GPU too, as in training
    if arguments.device == "cpu":
        keep_freed_buffers()
    rows = []
    for case in arguments.cases.split(","):
        regions, _, negatives = case.partition(":")
        rows += measure(arguments, regions=regions, negatives=int(negatives))
    columns = ("case", "contender", "positions", "pairs_per_second", "padded_ratio_median", "padded_ratio_worst")
    print("\n" + measuring.table(rows, (*columns, "padded_processor_ratio_median", "padded_processor_ratio_worst")))
    name = f"hard_negatives_{arguments.device}"
    print("wrote", measuring.write(name, rows, device=arguments.device, path=arguments.json))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", default="detected:3,full:3", help="REGIONS:NEGATIVES, several with commas")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--attention", default="auto", help="path of this project's attention")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        measuring.steady_allocator("benchmarks.hard_negatives")
    return run_command(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
