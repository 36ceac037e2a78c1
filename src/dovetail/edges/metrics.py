"""What Prometheus is told (prometheus-client)."""

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one endpoint."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.row_steps = Counter("dovetail_row_steps", "Rows that went through the U-Net", registry=own)
        self.rows = Histogram(
            "dovetail_rows", "Rows a call of the U-Net", buckets=(1, 2, 4, 6, 8, 12, 16, 32, 64), registry=own
        )
        self.waiting = Gauge("dovetail_waiting", "Pictures that wait", registry=own)
        self.running = Gauge("dovetail_running", "Pictures that are being painted", registry=own)
        self.ready = Gauge("dovetail_ready", "Whether it can paint", registry=own)
        resident = Gauge("dovetail_resident_bytes", "Memory that the process holds", registry=own)
        resident.set_function(resident_bytes)
        self.pictures = Counter("dovetail_pictures", "Pictures finished", ["version"], registry=own)
        self.failures = Counter("dovetail_failures", "Wishes that were refused or failed", ["why"], registry=own)
        self.wait = Histogram("dovetail_wait_seconds", "From asked to begun", buckets=SECONDS, registry=own)
        self.denoise = Histogram("dovetail_denoise_seconds", "From begun to the last step", buckets=SECONDS, registry=own)
        self.decode = Histogram("dovetail_decode_seconds", "From the last step to the picture", buckets=SECONDS, registry=own)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)


def resident_bytes() -> int:
    """Memory that this process holds; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
