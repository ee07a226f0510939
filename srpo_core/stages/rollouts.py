"""Stage rollouts: pairs of noise and image by the frozen base, for training with train.rollout.source cached."""

from srpo_core.config import (
    CachedSettings,
    GenerateSettings,
    ModelSettings,
    ResourceSettings,
    RolloutSettings,
    SolverName,
)


def run(  # noqa: PLR0913  # the settings that DVC tracks
    *,
    model: ModelSettings,
    train_reference: bool,
    train_compute_autocast: bool,
    train_compute_tf32: bool,
    train_rollout_source: str,
    train_rollout_num_inference_steps: int,
    train_rollout_solver: SolverName,
    train_rollout_shift: float,
    train_rollout_guidance_scale: float,
    train_rollout_cached_seed: int,
    train_rollout_cached_images_per_prompt: int,
    train_rollout_cached_batch_size: int,
    resources: ResourceSettings,
) -> None:
    """Generate the pairs of the training prompts and write runs/rollouts; an interrupted run generates only missing ones.

    Pairs that an earlier run has generated are read from the files that runs share (`resources.kept_images_gb`). If
    training does not start from cached images, the output says that there are no pairs.

    Raises:
        ArtifactError: an input is missing or damaged.
        ConfigError: no GPU where the resources ask for one.
        DivergenceError: the base generates NaN or infinity.
    """
    from srpo_core.generation.pairs import write_no_pairs

    if train_rollout_source != "cached":
        write_no_pairs()
        return
    cached = CachedSettings(
        seed=train_rollout_cached_seed,
        num_prompts=None,  # of all prompts that embed has encoded
        images_per_prompt=train_rollout_cached_images_per_prompt,
        batch_size=train_rollout_cached_batch_size,
        refresh_every=0,
    )
    rollout = RolloutSettings(
        source="cached",
        share_offline=0.0,
        num_inference_steps=train_rollout_num_inference_steps,
        solver=train_rollout_solver,
        shift=train_rollout_shift,
        guidance_scale=train_rollout_guidance_scale,
        cached=cached,
    )
    generate = GenerateSettings(
        num_inference_steps=rollout.num_inference_steps,
        guidance_scale=rollout.guidance_scale,
        batch_size=cached.batch_size,
        autocast=train_compute_autocast,
        tf32=train_compute_tf32,
        decode="whole",
    )
    _write(model, generate, rollout, resources, reference=train_reference)


def _write(
    model: ModelSettings,
    generate: GenerateSettings,
    rollout: RolloutSettings,
    resources: ResourceSettings,
    *,
    reference: bool,
) -> None:
    import torch

    from srpo_core.generation.pairs import write_pairs
    from srpo_core.generation.rollouts import RolloutJob, generate_pairs, read_images
    from srpo_core.models.embeddings import read_embeddings
    from srpo_core.runtime.resume import resumable

    torch.set_num_threads(resources.threads_per_worker)
    prompts, _, condition = read_embeddings("train")
    job = RolloutJob(model, generate, rollout, reference, prompts, condition)
    with resumable("rollouts") as directory:
        generate_pairs(job, directory / "pairs", resources)
        cached = rollout.cached
        write_pairs(
            read_images(job, directory / "pairs"),
            prompts,
            seed=cached.seed,
            images_per_prompt=cached.images_per_prompt,
        )
