"""The parts `release` and `resources`, which no stage depends on."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from srpo_core.config.parts import Part, Positive, PositiveFloat


class ReleaseSettings(Part):
    """What a release is called and what its model card says. Read by publishing; no stage depends on it."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="a version is this name and a hash of dvc.lock"
    )
    base_model: str = Field(description="the base model as the card names it, an id on the hub if it has one")
    license: str = Field(
        description="licence of the weights, as the hub spells it; `other` needs license_name"
    )
    license_name: str | None = Field(description="name of a licence that the hub does not know, or null")
    license_files: list[str] = Field(
        min_length=1, description="licence texts that are carried along, the weights' own first"
    )
    unconditional_store: bool = Field(
        description="publish to a store that ignores conditional writes: only one publisher at a time is safe"
    )
    datasets: list[str] = Field(description="data sets of the model card, by their ids on the hub")
    tags: list[str] = Field(description="tags of the model card")

    @model_validator(mode="after")
    def _licence_has_a_name(self) -> Self:
        if (self.license == "other") != (self.license_name is not None):
            raise ValueError("license_name belongs to license: other, and to no licence that the hub knows")
        return self


class StallSettings(Part):
    """When training counts as stalled, and how often it is started again."""

    factor: Annotated[float, Field(gt=1)] = Field(
        description="a step that takes this many times the median step is stalled"
    )
    least_seconds: PositiveFloat = Field(description="and no step is stalled before this many seconds")
    restarts: Annotated[int, Field(ge=0)] = Field(
        description="times that the workers are started again after a stall or a crash before the run fails"
    )


class ResourceSettings(Part):
    """Where and how wide a run is computed. No stage depends on these: they do not change the result's meaning."""

    train_workers: Positive = Field(description="Ray Train workers, at most")
    min_train_workers: Positive = Field(
        description="workers with which to begin or go on when a cluster has no room for all"
    )
    generate_workers: Positive = Field(
        description="Ray tasks that draw images at once; 1 draws in the stage itself"
    )
    threads_per_worker: Positive = Field(description="CPU threads of each process that computes")
    use_gpu: bool = Field(description="one GPU per worker")
    shard: bool = Field(
        description="weights, gradients and optimizer cut over the workers (FSDP2), or whole on each"
    )
    keep_checkpoints: Positive = Field(
        description="newest checkpoints to resume from; the weights of the others are kept all the same"
    )
    async_checkpoints: bool = Field(
        description="train on while a checkpoint is written; needs room for a copy in CPU memory"
    )
    stall: StallSettings

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_train_workers > self.train_workers:
            raise ValueError(
                f"min_train_workers {self.min_train_workers} is more than train_workers {self.train_workers}"
            )
        return self
