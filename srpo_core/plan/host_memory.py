"""Peak memory of a host, by stage and by part: what its processes hold in RAM while models are read or offloaded."""

from collections.abc import Mapping

from srpo_core.plan.case import Case
from srpo_core.plan.memory import Parts, adapter_bytes, scorers_of
from srpo_core.plan.rollouts import num_pairs
from srpo_core.weights.shards import PORTION


def host_memory_by_stage(case: Case) -> Mapping[str, Parts]:
    """Bytes by part at the peak of each stage on the host with the most devices.

    Each process reads its models one after the other into the host's memory and moves each to its device; without a GPU, and
    with `resources.offload` for the base, they stay. Python and its libraries (about 1 GB for each process), the system's
    file cache, and what pinning adds to offloaded adapters are not counted.
    """
    return {
        "embed": {"text encoders": 4.0 * case.sizes.encoders},
        **({"rollouts": _rollouts(case)} if num_pairs(case.settings.train) else {}),
        "train: loading": _loading(case),
        "train: export": _export(case),
        "select": _generating(case, "select"),
        "evaluate": _generating(case, "evaluate"),
        "quantize": _quantize(case),
    }


def _loading(case: Case) -> Parts:
    """A sharded base is read by each worker into its share on the device; one in 4 bits a block at a time."""
    train, sizes = case.settings.train, case.sizes
    if case.shards > 1:
        base = 0.0
    elif train.tune == "lora" and train.lora.frozen == "nf4":
        base = 2.0 * sizes.block
    else:
        base = 4.0 * case.base  # read in float32, then cast to `train.lora.frozen`
    return _peak(
        case,
        moved={"base": base, "VAE": 4.0 * sizes.vae, "reward": 4.0 * sizes.reward},
        processes=_workers(case),
    )


def _export(case: Case) -> Parts:
    """All weights are joined in portions; adapters are read as a whole."""
    if case.settings.train.tune == "lora":
        return {"adapters": 4.0 * case.sizes.trained}
    return {"portion of the weights": float(PORTION)}


def _rollouts(case: Case) -> Parts:
    """The base generates as in `_generating`, and nothing measures the images."""
    width, vae = 2.0 if case.half else 4.0, {"VAE": 4.0 * case.sizes.vae}
    if case.settings.resources.offload:
        return _peak(case, stays={"base": width * _offloaded(case)}, moved=vae, processes=_processes(case))
    return _peak(case, moved={**vae, "base": width * case.base}, processes=_processes(case))


def _generating(case: Case, stage: str) -> Parts:
    width = 2.0 if case.settings.generate.autocast else 4.0
    moved = dict(_scored(case, stage))
    adapters = {"adapters": adapter_bytes(case)}
    if case.settings.resources.offload:
        stays = {"base": width * _offloaded(case), **adapters}
        return _peak(case, stays=stays, moved=moved, processes=_processes(case))
    return _peak(case, moved={**moved, "base": width * case.base, **adapters}, processes=_processes(case))


def _offloaded(case: Case) -> int:
    """Parameters of an offloaded base; on a GPU the blocks are in pinned memory, which torch reserves in powers of two."""
    return case.sizes.pinned + case.sizes.rest if case.settings.resources.use_gpu else case.base


def _quantize(case: Case) -> Parts:
    """Adapters are merged in portions before. Then each format's weights are read beside the base, in float32."""
    resources, whole = case.settings.resources, 4.0 * case.base
    stays = {"weights of a format": whole}
    if resources.offload or not resources.use_gpu:
        stays["base"] = 4.0 * _offloaded(case) if resources.offload else whole
    return _peak(case, stays=stays, moved=_scored(case, "quantize"))


def _scored(case: Case, stage: str) -> Parts:
    return {"VAE": 4.0 * case.sizes.vae, "scorer": case.scorer} | {
        f"scorer {number}": case.scorer for number in range(2, scorers_of(case.settings)[stage] + 1)
    }


def _peak(case: Case, *, moved: Parts, stays: Parts | None = None, processes: int = 1) -> Parts:
    """Add what stays in a host's memory to what is moved to devices: of that, the largest part of each process."""
    if case.settings.resources.use_gpu:
        largest = max(moved, key=lambda part: moved[part])
        moved = {largest: moved[largest]}
    return {part: processes * size for part, size in {**(stays or {}), **moved}.items() if size}


def _workers(case: Case) -> int:
    return min(case.cluster.gpus, case.cluster.node_gpus)


def _processes(case: Case) -> int:
    """Number of processes of a host that generate images at the same time."""
    return min(case.settings.resources.generate_workers, _workers(case))
