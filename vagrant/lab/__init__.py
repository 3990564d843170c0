"""A load balancer with two production servers and a shadow, in network namespaces on this machine.

    with Lab(Options(shadow_delay_ms=5)) as lab:
        lab.rate(1000, seconds=10)

Everything is real (HAProxy, nginx, veth pairs, a bridge) and lives inside namespaces that `Lab` makes and removes.
"""

from vagrant.lab.lab import Lab
from vagrant.lab.load import Load
from vagrant.lab.network import LabError
from vagrant.lab.servers import Options
from vagrant.lab.shop import FAULTS, Fault

__all__ = ["FAULTS", "Fault", "Lab", "LabError", "Load", "Options"]
