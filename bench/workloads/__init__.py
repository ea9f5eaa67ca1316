"""What the columns are given, in the order in which it is run."""

from bench.workloads.amplification import AMPLIFICATION
from bench.workloads.counted import INSTRUCTIONS
from bench.workloads.embedded import EMBEDDED
from bench.workloads.fans import FAN_IN, FAN_OUT, LONE_JOIN, NESTED, SUPERVISOR
from bench.workloads.history import HISTORY
from bench.workloads.idle import IDLE
from bench.workloads.recovery import RECOVERY
from bench.workloads.sequence import ALONE, LOADED, SCALING
from bench.workloads.submitting import SUBMIT
from bench.workloads.waiting import CALLS, FLIGHT
from bench.workloads.workload import Workload

WORKLOADS: tuple[Workload, ...] = (
    LOADED,
    ALONE,
    FAN_OUT,
    FAN_IN,
    SUPERVISOR,
    NESTED,
    SUBMIT,
    LONE_JOIN,
    CALLS,
    FLIGHT,
    RECOVERY,
    HISTORY,
    EMBEDDED,
    SCALING,
    IDLE,
    INSTRUCTIONS,
    AMPLIFICATION,
)
