"""The etcd of the tests: the programs that `make test` unpacks, wherever pytest was started."""

import os
from pathlib import Path

from spacegrid.testing.etcd import PROGRAMS_VARIABLE, UNPACKED, Etcd, EtcdMember, free_ports

os.environ.setdefault(PROGRAMS_VARIABLE, str(Path(__file__).parents[2] / UNPACKED))

__all__ = ["Etcd", "EtcdMember", "free_ports"]
