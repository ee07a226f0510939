"""A plan: the figures of a run on a cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from srpo_core.config import Settings
from srpo_core.plan.case import Case
from srpo_core.plan.cluster import Cluster
from srpo_core.plan.host_memory import host_memory_by_stage
from srpo_core.plan.images import Generated, generated, watched
from srpo_core.plan.memory import STEP, Parts, memory_by_stage, state_of_training
from srpo_core.plan.spending import Spent, spending
from srpo_core.plan.step import compute_seconds, flops_of_a_step, flops_of_the_pairs, flops_of_the_steps
from srpo_core.plan.traffic import traffic_of_a_step, traffic_seconds


@dataclass(frozen=True)
class Plan:
    """The figures of a run on a cluster, per device unless stated otherwise."""

    case: Case

    @property
    def settings(self) -> Settings:
        """The settings of the run."""
        return self.case.settings

    @property
    def cluster(self) -> Cluster:
        """The hardware."""
        return self.case.cluster

    @cached_property
    def stages(self) -> Mapping[str, Parts]:
        """Bytes by part at the peak of each stage. See `memory_by_stage`."""
        return memory_by_stage(self.case)

    @cached_property
    def hosts(self) -> Mapping[str, Parts]:
        """Bytes by part at the peak of each stage in a host's memory. See `host_memory_by_stage`."""
        return host_memory_by_stage(self.case)

    @property
    def memory(self) -> Parts:
        """Bytes by part at the peak of a training step."""
        return self.stages[STEP]

    @property
    def peaks(self) -> Mapping[str, float]:
        """Bytes at the peak of each stage."""
        return {stage: sum(parts.values()) for stage, parts in self.stages.items()}

    @property
    def step_peak(self) -> float:
        """Bytes at the peak of a training step."""
        return self.peaks[STEP]

    @property
    def peak(self) -> float:
        """Bytes at the peak of the whole run: the highest of all stages."""
        return max(self.peaks.values())

    @property
    def excess(self) -> float:
        """Bytes by which the stages exceed a device's memory, summed over the stages."""
        return sum(max(0.0, peak - self.cluster.memory) for peak in self.peaks.values())

    @property
    def fits(self) -> bool:
        """Whether every stage fits into a device's memory."""
        return self.excess == 0

    @property
    def state(self) -> float:
        """Bytes of parameters, gradients and optimizer."""
        return sum(state_of_training(self.case).values())

    @cached_property
    def flops(self) -> Mapping[str, float]:
        """FLOPs of one step by phase."""
        return flops_of_a_step(self.case)

    @property
    def flops_of_later_runs(self) -> float:
        """FLOPs of all steps on all devices, which is what a run needs for training if the pairs of cached rollouts exist."""
        return flops_of_the_steps(self.case)

    @property
    def flops_of_first_run(self) -> float:
        """FLOPs of all steps and of the stage rollouts, on all devices."""
        return flops_of_the_steps(self.case) + flops_of_the_pairs(self.case)

    @property
    def traffic(self) -> float:
        """Bytes that a device sends in one step."""
        return traffic_of_a_step(self.case)

    @property
    def compute_seconds(self) -> float:
        """Time of a step's FLOPs at the given share of the device's peak."""
        return compute_seconds(self.case)

    @property
    def traffic_seconds(self) -> float:
        """Time of a step's traffic if none of it overlaps with computing."""
        return traffic_seconds(self.case)

    @property
    def hours(self) -> float:
        """Hours of the optimizer steps."""
        return self.settings.train.steps * (self.compute_seconds + self.traffic_seconds) / 3600

    @property
    def watched(self) -> Mapping[str, Generated]:
        """What early stop generates while training runs."""
        return watched(self.case)

    @property
    def generated(self) -> Mapping[str, Generated]:
        """What select, evaluate and quantize generate."""
        return generated(self.case)

    @cached_property
    def spending(self) -> Sequence[Spent]:
        """What every stage spends time on."""
        return spending(self.case)

    def hours_of(self, *stages: str) -> float:
        """Hours of some stages."""
        return sum(spent.seconds for spent in self.spending if spent.stage in stages) / 3600

    @property
    def run_hours(self) -> float:
        """Hours of the whole run."""
        return sum(spent.seconds for spent in self.spending) / 3600

    @property
    def device_hours(self) -> float:
        """Device hours of a cluster that is rented for the whole run."""
        return self.run_hours * self.cluster.gpus

    @property
    def cost(self) -> float | None:
        """Price of the run, if a GPU hour has a price."""
        price = self.cluster.price
        return None if price is None else price * self.device_hours
