"""Which images of the data a run uses: those that the stages after ingest read with its settings.

HPDv2 has 31 GB of images to train on, and a run that starts from noise uses none of them.
"""

from srpo_core.config import REAL_SOURCES
from srpo_core.data.subsets import evenly_spaced
from srpo_core.data.tables import NUM_EXAMPLES, choose_examples, read_pairs, read_prompts, read_real_images


def used_images(*, rollout_source: str, max_pairs: int | None, real_images: int) -> set[str]:
    """Return the paths of the images that later stages read, by the tables of pairs, captions and prompts.

    They are those of the questions with known answers; of the pairs of the split test that check_reward compares; those
    that a metric of evaluate compares with; and, if training starts from real images, one of each prompt, whichever of
    them the stage embed chooses.

    rollout_source: `train.rollout.source`. max_pairs: `check_reward.max_pairs`, None if it checks nothing. real_images:
    `evaluate.real_images`.

    Raises:
        ArtifactError: a table is missing or damaged.
    """
    judged = choose_examples(NUM_EXAMPLES)
    if max_pairs is not None:
        judged += read_pairs("test", max_pairs)
    used = {path for pair in judged for path in (pair.preferred, pair.rejected)}
    for split in ("test", "train") if real_images else ():
        used.update(compared_images(split, real_images))
    if rollout_source in REAL_SOURCES:
        images = read_real_images("train")
        used.update(images[prompt.text] for prompt in read_prompts("train") if prompt.text in images)
    return used


def compared_images(split: str, count: int) -> list[str]:
    """Return the paths of the real images that metrics compare with: the preferred ones of `count` pairs of a split.

    If the data have no pairs, they are up to `count` of the images with captions.

    Raises:
        ArtifactError: a table is missing or damaged.
    """
    if pairs := read_pairs(split, count):
        return list(dict.fromkeys(pair.preferred for pair in pairs))
    return evenly_spaced(list(dict.fromkeys(read_real_images(split).values())), count)
