"""A stand-in for k3s in test labs, built to what a running k3s v1.34.3 was seen to do (k3s notes, section 11).

It takes k3s' flags, files and environment, opens k3s' ports, hands out real certificates and tokens, accepts
and refuses joins as k3s does, and lists nodes. It runs no containers, no pods and no overlay network, and it
says that it is a stand-in wherever it shows up: version, log, node objects, ``kubectl``.

=================  ==========================================================================
module             job
=================  ==========================================================================
``flags``          the tables of flags
``arguments``      arguments, config files and environment to :class:`~.arguments.Options`
``pki``, ``tokens``  certificate authorities and certificates; join tokens
``store``          the state of a cluster on disk (in place of sqlite and etcd)
``https``          a TLS server that garbage cannot end; ``client`` is the other side
``routes``         what port 6443 answers: supervisor routes and who may use them
``nodeapi``        Node objects and their liveness; ``kubelet`` fills them in
``cluster``        several servers: membership, joining, replication
``server``, ``agent``  the two programs: order of events, waits, refusals
``balancer``       the agent's load balancer
``kubectl``        ``get nodes`` and ``delete node``
=================  ==========================================================================

Environment of the stand-in itself, for tests: ``K3S_STANDIN_SPEED`` divides every wait (default 1, which is
the recorded pace), ``K3S_STANDIN_ETC`` stands for ``/etc/rancher``, ``K3S_STANDIN_RUN`` for ``/run``.
"""

from __future__ import annotations

__all__ = ["KUBELET_VERSION", "MARK", "VERSION"]

VERSION = "v1.34.3+k3s1"
"""The k3s that was recorded."""

MARK = "stand-in"

KUBELET_VERSION = f"{VERSION}-standin"
"""What node objects and ``/version`` show."""
