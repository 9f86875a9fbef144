"""How Ray is started for a sweep on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

_PRIORITY_OF_A_WORKER = """
import os, ray
from ddray.sweep.execute import Cluster, _session
with _session(Cluster(None, {"CPU": 1.0}, None)):
    print(ray.get(ray.remote(lambda: os.getpriority(os.PRIO_PROCESS, 0)).remote()))
"""


def test_trials_do_not_starve_beside_other_programs() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_worker_niceness"}
    ran = subprocess.run(
        [sys.executable, "-c", _PRIORITY_OF_A_WORKER], env=environment, capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) == os.getpriority(os.PRIO_PROCESS, 0)
