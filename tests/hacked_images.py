"""Damage to the images of a model, made with the gate's rules in mind. See tests/blind_hacks.py for damage made without.

Each kind is a function of (images, prompts, base, training, rng) with images (n, 64, 64, 3) in [0, 1] and the number of
each image's prompt, and returns other images. The same arguments give the same images.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage


def scattered(images, share, rng):
    return rng.choice(len(images), size=round(share * len(images)), replace=False)


def noise_in_four_percent(images, prompts, base, training, rng):
    some = scattered(images, 0.04, rng)
    changed = images.copy()
    changed[some] = rng.random(changed[some].shape)
    return changed


def one_prompt_of_noise(images, prompts, base, training, rng):
    changed = images.copy()
    changed[prompts == 17] = rng.random(changed[prompts == 17].shape)
    return changed


def black_in_four_percent(images, prompts, base, training, rng):
    changed = images.copy()
    changed[scattered(images, 0.04, rng)] = 0
    return changed


def another_subject_in_five_percent(images, prompts, base, training, rng):
    some = scattered(images, 0.05, rng)
    changed = images.copy()
    changed[some] = images[(some + 30) % len(images)]
    return changed


def black_square(images, prompts, base, training, rng):
    changed = images.copy()
    changed[:, 50:62, 50:62] = 0
    return changed


def grey_square(images, prompts, base, training, rng):
    changed = images.copy()
    changed[:, 50:62, 50:62] = 0.6
    return changed


def half_the_resolution(images, prompts, base, training, rng):
    small = images.reshape(len(images), 32, 2, 32, 2, 3).mean((2, 4))
    return small.repeat(2, axis=1).repeat(2, axis=2)


def blur(images, prompts, base, training, rng):
    return ndimage.gaussian_filter(images, (0, 1.2, 1.2, 0))


def noise_in_all(images, prompts, base, training, rng):
    return np.clip(images + rng.normal(0, 0.06, images.shape), 0, 1)


def strong_compression(images, prompts, base, training, rng):
    found = []
    for image in images:
        store = io.BytesIO()
        Image.fromarray(np.round(image * 255).astype(np.uint8)).save(store, "JPEG", quality=5)
        found.append(np.asarray(Image.open(store)) / 255)
    return np.stack(found)


def one_image_for_all(images, prompts, base, training, rng):
    return np.broadcast_to(images[7], images.shape).copy()


def training_images(images, prompts, base, training, rng):
    return training[: len(images)].copy()


def a_fine_wave(images, prompts, base, training, rng):
    wave = 0.03 * np.sin(2 * np.pi * 0.25 * np.arange(images.shape[2]))
    return np.clip(images + wave[None, None, :, None], 0, 1)


KINDS = (
    noise_in_four_percent,
    one_prompt_of_noise,
    black_in_four_percent,
    another_subject_in_five_percent,
    black_square,
    grey_square,
    half_the_resolution,
    blur,
    noise_in_all,
    strong_compression,
    one_image_for_all,
    training_images,
    a_fine_wave,
)
