"""Kubernetes on one node: settings and facts in, desired files and commands out (spec/provider.md 6; sans-IO).

:func:`render` is the way in; ``provider`` gathers the facts and applies what comes out through ``system``. k3s works;
k0s and kube-vip have their place and are refused with a clear error.
"""

from provider_kairos.kubernetes.arguments import config_file_keys, critical_values
from provider_kairos.kubernetes.choose import UnsupportedError, binary_path, choose_distribution, refuse_unsupported
from provider_kairos.kubernetes.facts import (
    Binaries,
    Choice,
    DesiredFile,
    Distribution,
    InitKind,
    NodeFacts,
    NodeRole,
    Rendering,
)
from provider_kairos.kubernetes.render import drop_in_path, env_file_path, render, service_name

__all__ = [
    "Binaries",
    "Choice",
    "DesiredFile",
    "Distribution",
    "InitKind",
    "NodeFacts",
    "NodeRole",
    "Rendering",
    "UnsupportedError",
    "binary_path",
    "choose_distribution",
    "config_file_keys",
    "critical_values",
    "drop_in_path",
    "env_file_path",
    "refuse_unsupported",
    "render",
    "service_name",
]
