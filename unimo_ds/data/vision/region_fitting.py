"""What a grid extractor learns from images: dictionaries of whitened patches, a palette, principal components, a codebook.

Unsupervised (Coates, Lee and Ng 2011; Coates and Ng 2012) and deterministic: every draw comes from the generator passed in.
`grid` uses the result, and `vision_encoder` its codebook.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from unimo_ds.data.schema import Regions
from unimo_ds.data.vision.region_extractor import Found, to_regions

CONTRAST_FLOOR = 0.01
"""Added to the variance of a patch (values in [0, 1]), so that flat patches stay flat."""
_WHITENING_FLOOR = 0.1
"""Added to the spectrum of patches, as a fraction of its mean."""
_SPECTRUM_POWER = 0.25
"""Principal components are divided by variance to this power: half-way between raw (0) and white (0.5)."""


def fit_filters(
    pixels: torch.Tensor, *, side: int, number: int, randomness: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dictionary of whitened patches, folded into filters on raw pixels [number, 3, side, side] and a bias [number].

    pixels: [N, 3, height, width] in [0, 1]. A filter's response divided by the patch's deviation, plus the bias, is the product
    of the normalised, whitened patch with the dictionary entry.
    """
    num_images, _, height, width = pixels.shape
    wanted = max(20_000, 200 * number)
    steps = torch.arange(side)
    image = torch.randint(num_images, (wanted,), generator=randomness)
    top = torch.randint(height - side + 1, (wanted,), generator=randomness)[:, None] + steps
    left = torch.randint(width - side + 1, (wanted,), generator=randomness)[:, None] + steps
    patches = pixels[image[:, None, None], :, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2).flatten(1)
    patches = patches - patches.mean(1, keepdim=True)
    patches = patches * torch.rsqrt(patches.square().mean(1, keepdim=True) + CONTRAST_FLOOR)
    mean = patches.mean(0)
    spectrum, basis = torch.linalg.eigh((patches - mean).T @ (patches - mean) / wanted)
    floor = _WHITENING_FLOOR * spectrum.mean().clamp_min(1e-6)
    whitening = (basis * torch.rsqrt(spectrum.clamp_min(0) + floor)) @ basis.T
    dictionary = spherical_k_means((patches - mean) @ whitening, number, randomness)
    filters = dictionary @ whitening
    # A filter of mean zero responds equally to a patch and to the patch minus its mean.
    centred = filters - filters.mean(1, keepdim=True)
    return centred.reshape(-1, 3, side, side), -(filters @ mean)


def fit_colours(
    colours: torch.Tensor, *, number: int, randomness: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Palette [number, 3] of standardised colours, with their mean and scale; colours: [n, 3]."""
    chosen = colours[torch.randint(len(colours), (60_000,), generator=randomness)]
    mean, scale = chosen.mean(0), chosen.std(0).clamp_min(1e-3)
    return k_means((chosen - mean) / scale, number, randomness), mean, scale


def fit_projection(descriptors: torch.Tensor, feature_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [D] and map [D, F]: standardise, take principal components, flatten their spectrum half-way, scale to unit size."""
    mean = descriptors.mean(0)
    scale = descriptors.std(0).clamp_min(1e-4) if len(descriptors) > 1 else torch.ones_like(mean)
    standard = (descriptors - mean) / scale
    spectrum, basis = torch.linalg.eigh(standard.T @ standard / len(standard))
    spectrum, basis = spectrum.flip(0)[:feature_size], basis.flip(1)[:, :feature_size]
    # An eigenvector's sign is arbitrary: make its largest entry positive.
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = basis * torch.where(largest < 0, -1.0, 1.0)
    floored = spectrum.clamp_min(1e-3 * spectrum[0].clamp_min(1e-6))
    weights = floored.pow(-_SPECTRUM_POWER)
    unit = (spectrum.clamp_min(0) * weights.square()).mean().clamp_min(1e-6).rsqrt()
    return mean, basis * weights * unit / scale[:, None]


def fit_classes(features: torch.Tensor, number: int, randomness: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A codebook [number, F] of features [n, F], and the squared distance [] that counts as one unit."""
    classes = k_means(features, number, randomness)
    nearest = squared_distances(features, classes).topk(min(2, number), largest=False).values
    # The unit is half the gap between the two nearest classes: a typical region then has one probable class and a few others.
    return classes, 0.5 * (nearest[:, -1] - nearest[:, 0]).mean().clamp_min(1e-6)


def regions_of(
    boxes: torch.Tensor, features: torch.Tensor, classes: torch.Tensor, softness: torch.Tensor, *, stored_classes: int
) -> list[Regions]:
    """The regions of images, all with these boxes [R, 4]: features [N, R, F], and classes by the results of `fit_classes`."""
    chances = (torch.softmax(-squared_distances(one, classes) / softness, dim=-1) for one in features)
    return [
        to_regions(Found(boxes, one, probabilities), stored_classes=stored_classes)
        for one, probabilities in zip(features, chances, strict=True)
    ]


def squared_distances(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """[..., n] squared distances of points [..., d] to centres [n, d]."""
    products = points @ centres.T
    return (points.square().sum(-1, keepdim=True) - 2 * products + centres.square().sum(-1)).clamp_min(0)


def k_means(points: torch.Tensor, number: int, randomness: torch.Generator, *, rounds: int = 12) -> torch.Tensor:
    """[number, d] centres; one that loses all its points does not move."""
    centres = points[torch.randint(len(points), (number,), generator=randomness)].clone()
    for _ in range(rounds):
        nearest = torch.cat([squared_distances(part, centres).argmin(1) for part in torch.split(points, 16384)])
        counts = torch.bincount(nearest, minlength=number)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return centres


def spherical_k_means(
    points: torch.Tensor, number: int, randomness: torch.Generator, *, rounds: int = 8
) -> torch.Tensor:
    """[number, d] unit directions; a point counts, with its sign, for the direction most parallel to it."""
    directions = functional.normalize(torch.randn(number, points.shape[1], generator=randomness), dim=1)
    for _ in range(rounds):
        sums = torch.zeros_like(directions)
        for part in torch.split(points, 16384):
            products = part @ directions.T
            best = products.abs().argmax(1, keepdim=True)
            sums.index_add_(0, best[:, 0], part * products.gather(1, best))
        empty = sums.norm(dim=1, keepdim=True) < 1e-6
        directions = functional.normalize(torch.where(empty, directions, sums), dim=1)
    return directions
