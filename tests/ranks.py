"""Several ranks of a training run as processes of this machine, without Ray: gloo over a file."""

import multiprocessing
import os
import traceback
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory


def context():
    """Processes forked from one that has imported what is slow and run nothing."""
    there = multiprocessing.get_context("forkserver")
    there.set_forkserver_preload(["srpo_core.training.worker", "srpo_core.models", "diffusers", "open_clip"])
    return there


def train(job, world, *, inspect=None, double=False):
    """Run `job` on `world` ranks to its end; returns per rank what `inspect(worker)` says before training."""
    there = context()
    answers = there.Queue()
    with TemporaryDirectory() as meeting:
        arguments = [
            (job, rank, world, f"file://{meeting}/meeting", inspect, double, answers) for rank in range(world)
        ]
        ranks = [there.Process(target=_rank, args=words) for words in arguments]
        try:
            for rank in ranks:
                rank.start()
            said = {}
            while len(said) < world:
                rank, answer = answers.get(timeout=1200)
                # the others would wait for it in a collective until that gives up
                assert not isinstance(answer, str), answer
                said[rank] = answer
            for rank in ranks:
                rank.join(60)
        finally:
            for rank in ranks:
                if rank.is_alive():
                    rank.kill()
    return [said[rank] for rank in range(world)]


def _rank(job, rank, world, meeting, inspect, double, answers):
    import torch
    from torch import distributed as dist

    from srpo_core.training.worker import Worker

    try:
        torch.set_num_threads(1)
        os.chdir(job.inputs.path)
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
        if double:
            inputs_in_double()
        worker = Worker(job, rank=rank, world=world, device=torch.device("cpu"))
        if double:
            in_double(worker)
        found = inspect(worker) if inspect else None
        worker.run()
        answers.put((rank, (found, list(worker.metrics))))
        dist.destroy_process_group()
    except Exception:  # noqa: BLE001  # the process that waits must hear of it
        answers.put((rank, traceback.format_exc()))


def inputs_in_double():
    """Let what a worker reads and draws be float64, and every later cast to float32 one to float64."""
    import torch

    from srpo_core.training import worker as trainer

    read, noise = trainer.read_embeddings, trainer.keyed_noise

    def read_double(split):
        texts, styles, condition = read(split)
        return texts, styles, condition.to(torch.float64)

    trainer.read_embeddings = read_double
    trainer.keyed_noise = lambda *key: noise(*key).double()
    torch.Tensor.float = torch.Tensor.double


def in_double(worker):
    """Let a worker compute in float64 throughout, so that no rounding hides or makes a difference."""
    for module in (worker.model.transformer, worker.model.vae, worker.learner.reward):
        module.double()


def whole_state(worker):
    """Every tensor of the training state, whole, as lists of bytes by name: what resharding must keep."""
    from srpo_core.models.sharding import whole
    from srpo_core.training.checkpoint import TrainState, moments, trained

    state = TrainState(worker.model.transformer, worker.learner.optimizer, 0, {}, [])
    tensors = {**trained(worker.model.transformer), **moments(state)}
    return {name: whole(tensor).numpy().tobytes() for name, tensor in tensors.items()}


def left_whole_after_generating(worker):
    """The parameters that, once sample images were drawn, are not a rank's share."""
    from torch.distributed.tensor import DTensor

    from srpo_core.training.worker import generate_samples

    images = generate_samples(worker.model, worker.job, worker.device)
    assert images.isfinite().all()
    return [name for name, p in worker.model.transformer.named_parameters() if not isinstance(p, DTensor)]


def shards_held(worker):
    """(bytes that this rank holds, bytes of the whole) of the trained parameters."""
    parameters = [p for p in worker.model.transformer.parameters() if p.requires_grad]
    local = [p.to_local() if hasattr(p, "to_local") else p for p in parameters]
    return sum(p.numel() for p in local), sum(p.numel() for p in parameters)


def changed(job, tmp_path: Path, name: str, *, resources=None, **train_settings):
    """The job with other settings and a state directory of its own."""
    from srpo_core.runtime.shared_files import Location

    return replace(
        job,
        state=Location.of(tmp_path / name),
        train=job.train.model_copy(update=train_settings),
        resources=job.resources.model_copy(update=resources or {}),
    )


def dtypes_held_gathered_and_reduced(worker):
    """By which types a cut model holds its parameters, multiplies with them, and adds up its gradients."""
    from torch.distributed.fsdp import FSDPModule

    held = {str(p.dtype).removeprefix("torch.") for p in worker.model.transformer.parameters()}
    policies = [
        group.mp_policy
        for module in worker.model.transformer.modules()
        if isinstance(module, FSDPModule) and (group := module._get_fsdp_state()._fsdp_param_group)
    ]
    gathered = {str(policy.param_dtype).removeprefix("torch.") for policy in policies}
    reduced = {str(policy.reduce_dtype or "float32").removeprefix("torch.") for policy in policies}
    return {"held": sorted(held), "gathered": sorted(gathered), "reduced": sorted(reduced)}
