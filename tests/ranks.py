"""Run several ranks of a training run as processes on this machine: gloo over a file, without Ray."""

import multiprocessing
import os
import signal
import traceback
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory


def context():
    """Return a context that forks processes from a server in which the slow modules are imported."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(
        ["srpo_core.training.worker", "srpo_core.models", "diffusers", "open_clip"]
    )
    return forkserver


def train(job, world, *, inspect=None, double=False, before=None):
    """Run `job` on `world` ranks; `before()` is called in each rank before it loads anything.

    Returns (result of `inspect(worker)` before training, metrics) of each rank.
    """
    processes = context()
    answers = processes.Queue()
    with TemporaryDirectory() as meeting:
        arguments = [
            (job, rank, world, f"file://{meeting}/meeting", inspect, double, before, answers)
            for rank in range(world)
        ]
        ranks = [processes.Process(target=_rank, args=own) for own in arguments]
        try:
            for rank in ranks:
                rank.start()
            results = {}
            while len(results) < world:
                rank, answer = answers.get(timeout=1200)
                # after an error, the other ranks wait in a collective until its timeout
                assert not isinstance(answer, str), answer
                results[rank] = answer
            for rank in ranks:
                rank.join(60)
        finally:
            for rank in ranks:
                if rank.is_alive():
                    rank.kill()
    return [results[rank] for rank in range(world)]


def killed_in_the_third_step(job, kind):
    """Run one rank on a device of this kind until it kills itself; the checkpoint of step 2 is complete."""
    import torch

    from srpo_core.training.worker import Worker

    class Dies(Worker):
        def step(self, step):
            if step == 3:
                self.written.finish()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step(step)

        def _writer(self):
            self.written = super()._writer()
            return self.written

    torch.set_num_threads(1)
    os.chdir(job.inputs.path)
    Dies(job, rank=0, world=1, device=torch.device(kind)).run()


def _rank(job, rank, world, meeting, inspect, double, before, answers):
    import torch
    from torch import distributed as dist

    from srpo_core.training.worker import Worker

    try:
        torch.set_num_threads(1)
        os.chdir(job.inputs.path)
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
        if before:
            before()
        if double:
            inputs_in_double()
        worker = Worker(job, rank=rank, world=world, device=torch.device("cpu"))
        if double:
            in_double(worker)
        found = inspect(worker) if inspect else None
        worker.run()
        answers.put((rank, (found, list(worker.metrics))))
        dist.destroy_process_group()
    except Exception:  # noqa: BLE001  # reported to the waiting process
        answers.put((rank, traceback.format_exc()))


def inputs_in_double():
    """Make a worker's model, inputs and noise float64, and every later `Tensor.float()` a cast to float64.

    The model is cast as soon as it is loaded, so that a checkpoint is read in float64.
    """
    import torch

    from srpo_core.training import batch, refresh, samples, worker

    read, noise, load = batch.read_embeddings, batch.keyed_noise, worker._load_model
    of_pair = batch.pair_noise

    def load_double(*arguments):
        model = load(*arguments)
        for module in (model.transformer, model.vae):
            module.double()
        return model

    def read_double(split):
        texts, styles, condition = read(split)
        return texts, styles, condition.to(torch.float64)

    worker._load_model = load_double
    batch.read_embeddings = read_double
    batch.keyed_noise = samples.keyed_noise = lambda *key: noise(*key).double()
    batch.pair_noise = refresh.pair_noise = lambda *key: of_pair(*key).double()
    torch.Tensor.float = torch.Tensor.double


def in_double(worker):
    """Make a worker compute in float64, so that rounding neither hides nor causes a difference."""
    worker.learner.reward.double()


def compiling_quickly():
    """Let torch.compile make the graphs as always, forward and backward, and run them without a compiler."""
    import torch

    compile_module = torch.nn.Module.compile

    def compile_quickly(module, **options):
        compile_module(module, backend="aot_eager", **options)

    torch.nn.Module.compile = compile_quickly


def graphs_compiled(worker):
    """Return a list to which each step of the worker adds the number of graphs so far, and of graph breaks."""
    from torch._dynamo.utils import counters

    step, found = worker.step, []

    def counted(number):
        metrics = step(number)
        found.append((counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())))
        return metrics

    worker.step = counted
    return found


def whole_state(worker):
    """Return every tensor of the training state as bytes by name, unsharded: resharding must not change them."""
    from srpo_core.models.sharding import whole
    from srpo_core.training.state import optimizer_state, trained_parameters

    transformer = worker.model.transformer
    tensors = {**trained_parameters(transformer), **optimizer_state(transformer, worker.learner.optimizer)}
    if worker.average:
        tensors |= {f"average of {name}": tensor for name, tensor in worker.average.tensors().items()}
    return {name: whole(tensor).numpy().tobytes() for name, tensor in tensors.items()}


def left_whole(worker):
    """Return the parameters that are not sharded."""
    from torch.distributed.tensor import DTensor

    return [name for name, p in worker.model.transformer.named_parameters() if not isinstance(p, DTensor)]


def left_whole_after_generating(worker):
    """Return the parameters that are not sharded after sample images were generated."""
    from srpo_core.training.samples import generate_samples

    images = generate_samples(
        worker.model, worker.job, worker.prompts, worker.device, rank=worker.rank, world=worker.world
    )
    assert images.isfinite().all()
    return left_whole(worker)


def generated_gathered_or_not(worker, steps=3):
    """Generate by rollout and by the base's sampler in `steps` steps, with weights gathered at each call or once.

    Returns the elements held (on this rank, in total), the number of parts that are gathered separately, and by way of
    gathering: the number of all-gathers, the bytes of the latents, and the parameters that are whole afterwards.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor.debug import CommDebugMode

    from srpo_core.algorithm.rollout import starting_images

    model, batch = worker.model, worker.batch(1)
    rollout = worker.job.train.rollout.model_copy(update={"num_inference_steps": steps})
    train = worker.job.train.model_copy(update={"rollout": rollout})
    before, found = model._gather_rollout, {}
    for gather in (False, True):
        model._gather_rollout = gather
        with CommDebugMode() as counted:
            rolled, _ = starting_images(model, batch, train)
        with CommDebugMode() as counted_again:
            sampled = model.generate_latents(
                batch.condition, batch.noise, num_inference_steps=steps, guidance_scale=1.0
            )
        found[gather] = (
            (counted.get_total_counts(), counted_again.get_total_counts()),
            (rolled.numpy().tobytes(), sampled.numpy().tobytes()),
            left_whole(worker),
        )
    model._gather_rollout = before
    parts = sum(isinstance(module, FSDPModule) for module in model.transformer.modules())
    return shards_held(worker), parts, found


def shards_held(worker):
    """Return the number of elements of the trained parameters: (on this rank, in total)."""
    parameters = [p for p in worker.model.transformer.parameters() if p.requires_grad]
    local = [p.to_local() if hasattr(p, "to_local") else p for p in parameters]
    return sum(p.numel() for p in local), sum(p.numel() for p in parameters)


def changed(job, tmp_path: Path, name: str, *, resources=None, **train_settings):
    """Return the job with other settings and its own state directory."""
    from srpo_core.runtime.shared_files import Location

    return replace(
        job,
        state=Location.of(tmp_path / name),
        train=job.train.model_copy(update=train_settings),
        resources=job.resources.model_copy(update=resources or {}),
    )


def dtypes_held_gathered_and_reduced(worker):
    """Return the types in which a sharded model stores and gathers parameters, and reduces gradients."""
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
