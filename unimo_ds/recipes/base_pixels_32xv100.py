"""unimo prepare import --kind pairs --images coco.tar --captions coco.tsv --output data/train --extractor patches
RECIPE=base_pixels_32xv100 sbatch slurm/base.sh      (or: deepspeed unimo_ds/train.py --recipe base_pixels_32xv100 --data data)

The base run from pixels, end to end: a twelve-layer Vision Transformer, trained with the rest, replaces the detector (UNIMO-2's
image side in front of UNIMO). Neither paper has this run.
"""

from __future__ import annotations

import dataclasses

from unimo_ds.config import RunConfig
from unimo_ds.recipes.base_32xv100 import base_32xv100


def base_pixels_32xv100() -> RunConfig:
    """The base run with image layers initialised from ViT-B/16 of ImageNet-21k; the data give patch sizes and positions."""
    base = base_32xv100()
    return dataclasses.replace(
        base,
        recipe="base_pixels_32xv100",
        run_dir="runs/base_pixels_32xv100",
        model=dataclasses.replace(
            base.model,
            num_image_layers=12,
            region_feature_size=0,
            num_region_classes=0,
            initialize_images_from="pretrained/vit-base-patch16-224-in21k",
        ),
        # Twice the positions per image, and each passes twice the layers.
        batch=dataclasses.replace(base.batch, micro_batch_tokens=16384),
        # Patches have no classes. Their normalised pixels are predicted, as in masked autoencoders, which found them better.
        losses=dataclasses.replace(base.losses, region_classification=0.0),
        masking=dataclasses.replace(base.masking, normalised_pixels=True),
    )
