"""The parts `release`, `watch` and `resources`, which no stage depends on."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from srpo_core.config.parts import Part, Positive, PositiveFloat, Share


class ReleaseSettings(Part):
    """Name and model card of a release. Publishing reads it; no stage depends on it."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the model; a version is this name and a hash of dvc.lock",
    )
    base_model: str = Field(description="the base model in the model card, an id on the hub if it has one")
    license: str = Field(
        description="license of the weights, as the hub spells it; `other` needs license_name"
    )
    license_name: str | None = Field(description="name of a license that the hub does not know, or null")
    license_files: list[str] = Field(
        min_length=1, description="license texts in the release, that of the weights first"
    )
    unconditional_store: bool = Field(
        description="publish to a store without conditional writes; then only one publisher at a time is safe"
    )
    allowed_signers: str | None = Field(
        description="file in OpenSSH's format with the keys whose signatures count; null: signatures are not checked"
    )
    require_signature: bool = Field(
        description="refuse to publish, pull, verify or promote what is not signed by an allowed signer"
    )
    datasets: list[str] = Field(description="data sets in the model card, by their ids on the hub")
    tags: list[str] = Field(description="tags in the model card")

    @model_validator(mode="after")
    def _license_has_a_name(self) -> Self:
        if (self.license == "other") != (self.license_name is not None):
            raise ValueError("license other needs license_name, and any other license must not have one")
        return self

    @model_validator(mode="after")
    def _signers_are_known(self) -> Self:
        if self.require_signature and self.allowed_signers is None:
            raise ValueError(
                "require_signature needs allowed_signers, the file with the keys whose signatures count"
            )
        return self


class WatchSettings(Part):
    """How far data may move away from those of production before `srpo watch` starts a run (docs/drift.md)."""

    styles: Share | None = Field(
        description="total variation distance of the prompts' styles beyond which a run starts, if it is shown; null: "
        "styles are not compared"
    )
    agreement: Share | None = Field(
        description="difference of the reward's agreement with people, up or down, beyond which a run starts, if it is "
        "shown; null: it is not compared"
    )
    confidence: Annotated[float, Field(ge=0.8, lt=1)] = Field(
        description="confidence with which both together must be shown, at least 0.8"
    )


class StallSettings(Part):
    """When training counts as stalled, and how often it is restarted."""

    factor: Annotated[float, Field(gt=1)] = Field(
        description="a step is stalled if it takes this many times the median step"
    )
    least_seconds: PositiveFloat = Field(
        description="a step never counts as stalled before this many seconds"
    )
    restarts: Annotated[int, Field(ge=0)] = Field(
        description="number of restarts of the workers after a stall or a crash; then the run fails"
    )


class HardwareSettings(Part):
    """The device by which the cost of stages is planned; the rates of a card are in its data sheet, without sparsity."""

    tflops: PositiveFloat = Field(description="peak rate of one device in bfloat16, in TFLOP/s")
    float32_tflops: PositiveFloat = Field(description="peak rate of one device in float32, in TFLOP/s")
    mfu: Annotated[float, Field(gt=0, le=1)] = Field(
        description="model FLOPs utilization: share of the peak rate that a run reaches"
    )


class ResourceSettings(Part):
    """Devices and workers of a run. No stage depends on these: they do not change the meaning of the result."""

    train_workers: Positive = Field(description="number of Ray Train workers, at most")
    min_train_workers: Positive = Field(
        description="least number of workers to start or resume with, if the cluster has no room for all"
    )
    generate_workers: Positive = Field(
        description="number of Ray tasks that generate images at once; 1: the stage itself does"
    )
    encode_batch_size: Positive = Field(
        description="number of prompts that the text encoders encode at once; less needs less memory"
    )
    threads_per_worker: Positive = Field(description="number of CPU threads per process")
    use_gpu: bool = Field(description="one GPU per worker")
    offload: bool = Field(
        description="select, evaluate and quantize keep the transformer in the host's memory and copy a block at a time "
        "to the GPU: slower, for GPUs that cannot hold it"
    )
    shard: bool = Field(
        description="shard weights, gradients and optimizer state across workers (FSDP2); off: replicate them"
    )
    shard_group: Annotated[int, Field(ge=2)] | None = Field(
        description="number of consecutive workers that together hold one copy of the model (HSDP), usually those of a "
        "machine; the copies are replicated. null: all workers hold one copy"
    )
    keep_checkpoints: Positive = Field(
        description="number of newest checkpoints with the state to resume from; of the others only the weights are kept"
    )
    async_checkpoints: bool = Field(
        description="continue training while a checkpoint is written; needs CPU memory for a copy"
    )
    kept_images_gb: Annotated[float, Field(ge=0)] = Field(
        description="GB of images of base and champion that are kept for later runs, the last used ones; 0 keeps none"
    )
    stall: StallSettings
    loggers: list[Literal["tensorboard", "wandb"]] = Field(
        description="loggers that show training while it runs, beside DVCLive's files: tensorboard in "
        ".srpo/tensorboard; wandb needs the package wandb, and takes its environment variables"
    )
    price: PositiveFloat | None = Field(
        description="price of one device for an hour: of a GPU, or without use_gpu of the machine; null: unknown"
    )
    currency: str = Field(
        pattern=r"^[A-Za-z]{1,8}$", description="currency of price and max_cost, for example USD"
    )
    max_cost: PositiveFloat | None = Field(
        description="a run ends before a stage with which it would cost more, by the plan; null: no limit"
    )
    hardware: HardwareSettings | None = Field(
        description="the device by which max_cost plans what a stage costs; null: unknown"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_train_workers > self.train_workers:
            raise ValueError(
                f"min_train_workers {self.min_train_workers} is more than train_workers {self.train_workers}"
            )
        return self

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.shard_group is None:
            return self
        if not self.shard:
            raise ValueError(
                "shard_group needs shard: true; set it to null to replicate the model on every worker"
            )
        if self.train_workers % self.shard_group:
            raise ValueError(
                f"train_workers {self.train_workers} is no multiple of shard_group {self.shard_group}: choose a divisor, or "
                "null"
            )
        return self

    @model_validator(mode="after")
    def _limit_can_be_checked(self) -> Self:
        missing = [key for key in ("price", "hardware") if getattr(self, key) is None]
        if self.max_cost is not None and missing:
            raise ValueError(
                f"max_cost {self.max_cost:g} needs {' and '.join(missing)}, without which no stage's cost can be planned: "
                "set what is missing (docs/cost.md), or set max_cost to null"
            )
        return self
