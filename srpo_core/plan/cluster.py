"""The hardware that a plan is for, and the units of its figures."""

from dataclasses import dataclass
from typing import Final

GB: Final = 1e9
TERA: Final = 1e12
CONTEXT_BYTES: Final = 2e9  # CUDA context, its libraries and NCCL; an allowance, not measured


@dataclass(frozen=True)
class Cluster:
    """Devices and connections. Rates are in bytes per second.

    gpus: number of devices, one per worker; memory: bytes of each; price: of one GPU hour; mfu: share of `peak_flops`
    (FLOP/s in bfloat16) that a run reaches; bandwidth: from one device to the others of its node; float32: peak FLOP rate in
    float32 relative to `peak_flops` (1/15: A100 19.5 / 312, H100 67 / 989 TFLOP/s, dense); disk: of reading and writing
    weights; digest: of SHA-256 on one core; upload: to the store of releases; host: from the
    host's memory to a device (PCIe 4.0 x16 has 32 GB/s); node_gpus: devices of a node; node_bandwidth: from a node to the
    others (eight ports of 400 Gbit/s have 400 GB/s, one port of 100 Gbit/s has 12.5 GB/s).
    """

    gpus: int
    memory: float
    price: float | None
    mfu: float
    peak_flops: float
    bandwidth: float
    float32: float = 1 / 15
    disk: float = 2 * GB
    digest: float = 1.8 * GB
    upload: float = 0.1 * GB
    host: float = 25 * GB
    node_gpus: int = 8
    node_bandwidth: float = 400 * GB

    def seconds(self, flops: float, *, half: bool) -> float:
        """Time of FLOPs on one device, in bfloat16 (`half`) or float32."""
        return flops / ((1 if half else self.float32) * self.mfu * self.peak_flops)
