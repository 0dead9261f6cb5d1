"""The kubelet's part: the Node object of this machine, the checks of its flags, heartbeats (k3s notes, 1.2 and 3.7)."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from provider_kairos.lab.k3s import KUBELET_VERSION, MARK
from provider_kairos.lab.k3s.arguments import Options
from provider_kairos.lab.k3s.flags import MASKED
from provider_kairos.lab.k3s.life import Life, Shutdown
from provider_kairos.lab.k3s.nodeapi import HEARTBEAT, STANDIN_LABEL, timestamp

__all__ = ["beat", "check_flags", "conditions", "kubelet_port", "node_args", "node_object"]

MASK = "********"
NAME_PART = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]\Z")
NAME_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character"
)
ALLOWED_PREFIXES = ("kubelet.kubernetes.io", "node.kubernetes.io")
ALLOWED_LABELS = frozenset(
    {
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/instance-type",
        "beta.kubernetes.io/os",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "kubernetes.io/arch",
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    }
)
EFFECTS = frozenset({"NoSchedule", "PreferNoSchedule", "NoExecute"})
# The flags of a kubelet 1.34; --kubelet-arg with another one ends k3s.
KUBELET_FLAGS = frozenset(
    """address allowed-unsafe-sysctls anonymous-auth authentication-token-webhook
    authentication-token-webhook-cache-ttl authorization-mode authorization-webhook-cache-authorized-ttl
    authorization-webhook-cache-unauthorized-ttl bootstrap-kubeconfig cert-dir cgroup-driver cgroup-root
    cgroups-per-qos client-ca-file cloud-provider cluster-dns cluster-domain config config-dir
    container-log-max-files container-log-max-size container-runtime-endpoint contention-profiling cpu-cfs-quota
    cpu-cfs-quota-period cpu-manager-policy cpu-manager-policy-options cpu-manager-reconcile-period
    enable-controller-attach-detach enable-debugging-handlers enable-server enforce-node-allocatable event-burst
    event-qps eviction-hard eviction-max-pod-grace-period eviction-minimum-reclaim
    eviction-pressure-transition-period eviction-soft eviction-soft-grace-period exit-on-lock-contention
    experimental-allocatable-ignore-eviction fail-cgroupv1 fail-swap-on feature-gates file-check-frequency
    hairpin-mode healthz-bind-address healthz-port hostname-override http-check-frequency
    image-credential-provider-bin-dir image-credential-provider-config image-gc-high-threshold
    image-gc-low-threshold image-service-endpoint kernel-memcg-notification kube-api-burst kube-api-content-type
    kube-api-qps kube-reserved kube-reserved-cgroup kubeconfig kubelet-cgroups local-storage-capacity-isolation
    lock-file log-flush-frequency log-json-info-buffer-size log-json-split-stream log-text-info-buffer-size
    log-text-split-stream logging-format make-iptables-util-chains manifest-url manifest-url-header
    max-open-files max-pods maximum-dead-containers maximum-dead-containers-per-container
    memory-manager-policy minimum-container-ttl-duration minimum-image-ttl-duration node-ip node-labels
    node-status-max-images node-status-update-frequency oom-score-adj pod-cidr pod-infra-container-image
    pod-manifest-path pod-max-pids pods-per-core port protect-kernel-defaults provider-id qos-reserved
    read-only-port register-node register-with-taints registry-burst registry-qps reserved-cpus
    reserved-memory resolv-conf root-dir rotate-certificates rotate-server-certificates runonce
    runtime-cgroups runtime-request-timeout seccomp-default serialize-image-pulls
    streaming-connection-idle-timeout sync-frequency system-cgroups system-reserved system-reserved-cgroup
    tls-cert-file tls-cipher-suites tls-min-version tls-private-key-file topology-manager-policy
    topology-manager-policy-options topology-manager-scope v vmodule volume-plugin-dir
    volume-stats-agg-period""".split()  # noqa: SIM905 - a list of a hundred names reads better so
)


def _check_labels(texts: Sequence[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in (part for given in texts for part in given.split(",")):
        if not text:
            continue
        key, _, value = text.partition("=")
        name = key.rpartition("/")[2]
        if not NAME_PART.match(name) or len(name) > 63:
            raise Shutdown(
                f"kubelet exited: failed to validate kubelet flags: invalid node labels: '{text}' - {NAME_RULE}"
            )
        if value and (not NAME_PART.match(value) or len(value) > 63):
            raise Shutdown(
                f"kubelet exited: failed to validate kubelet flags: invalid node labels: '{text}' - {VALUE_RULE}"
            )
        labels[key] = value
    unknown = [key for key in labels if _is_reserved(key)]
    if unknown:
        raise Shutdown(
            "kubelet exited: failed to validate kubelet flags: unknown 'kubernetes.io' or 'k8s.io' labels specified "
            f"with --node-labels: [{' '.join(sorted(unknown))}]"
        )
    return labels


def _is_reserved(key: str) -> bool:
    prefix = key.rpartition("/")[0]
    if key in ALLOWED_LABELS or not prefix:
        return False
    if any(prefix == allowed or prefix.endswith(f".{allowed}") for allowed in ALLOWED_PREFIXES):
        return False
    return any(prefix == zone or prefix.endswith(f".{zone}") for zone in ("kubernetes.io", "k8s.io"))


def _check_taints(texts: Sequence[str]) -> list[dict[str, str]]:
    taints = []
    for text in (part for given in texts for part in given.split(",")):
        if not text:
            continue
        pair, colon, effect = text.rpartition(":")
        key, _, value = pair.partition("=")
        if not colon or effect not in EFFECTS or not NAME_PART.match(key.rpartition("/")[2]):
            raise Shutdown(
                "failed to start kubelet: prepare default configuration drop-in: failed to parse node taints: "
                f"invalid taint spec: {text}"
            )
        taints.append({"key": key, "effect": effect, **({"value": value} if value else {})})
    return taints


def check_flags(options: Options) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The labels and taints that the kubelet was given, when it would start with them.

    Raises:
        Shutdown: the kubelet refuses a label, a taint or an argument; k3s then ends with status 0.
    """
    taints = _check_taints(options.items("node-taint"))
    for argument in options.items("kubelet-arg"):
        name = argument.lstrip("-").partition("=")[0]
        if name not in KUBELET_FLAGS:
            raise Shutdown(f"kubelet exited: failed to parse kubelet flag: unknown flag: --{name}")
    return _check_labels(options.items("node-label")), taints


def kubelet_port(options: Options) -> int:
    """10250, or what ``--kubelet-arg=port=N`` says."""
    for argument in options.items("kubelet-arg"):
        name, _, value = argument.lstrip("-").partition("=")
        if name == "port" and value.isdigit():
            return int(value)
    return 10250


def node_args(given: Sequence[str]) -> list[str]:
    """The arguments as the node's annotation shows them: ``--a=b`` split in two, secrets masked."""
    shown: list[str] = []
    short = {"t": "token"}
    mask_next = False
    for element in given:
        if mask_next:
            shown.append(MASK)
            mask_next = False
            continue
        name, equals, value = element.partition("=")
        bare = name.lstrip("-")
        secret = name.startswith("-") and short.get(bare, bare) in MASKED
        if not name.startswith("-"):
            shown.append(element)
            continue
        shown.append(name)
        if equals:
            shown.append(MASK if secret else value)
        else:
            mask_next = secret
    return shown


def _node_env(environment: Mapping[str, str]) -> dict[str, str]:
    secret = ("TOKEN", "SECRET", "KEY", "ENDPOINT", "VPN_AUTH")
    return {
        name: MASK if any(word in name for word in secret) and not name.endswith("FILE") else value
        for name, value in sorted(environment.items())
        if name.startswith("K3S_")
    }


def conditions(*, ready: bool, voter: bool | None = None) -> list[dict[str, Any]]:
    """The kubelet's conditions; ``voter`` adds what the etcd controller says of a server."""
    now = timestamp()

    def one(kind: str, state: str, reason: str, message: str) -> dict[str, Any]:
        return {
            "type": kind,
            "status": state,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }

    found = [
        one("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        one("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        one("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ]
    if ready:
        found.append(one("Ready", "True", "KubeletReady", f"k3s {MARK}: no container runs here"))
    else:
        found.append(
            one("Ready", "False", "KubeletNotReady", "container runtime network not ready: cni plugin not initialized")
        )
    if voter is not None:
        reason, text = ("MemberNotLearner", "Node is a voting member of the etcd cluster")
        if not voter:
            reason, text = ("MemberIsLearner", "Node has not been promoted to voting member of the etcd cluster")
        found.append(one("EtcdIsVoter", "True" if voter else "False", reason, text))
    return found


def node_object(
    options: Options,
    name: str,
    addresses: Sequence[str],
    environment: Mapping[str, str],
    extra_annotations: Mapping[str, str],
) -> dict[str, Any]:
    """The Node that this machine registers. Raises :class:`Shutdown` as :func:`check_flags`."""
    labels, taints = check_flags(options)
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    arguments = node_args(options.given)
    digest = hashlib.sha256(json.dumps([options.given, sorted(_node_env(environment))]).encode()).digest()
    annotations = {
        "alpha.kubernetes.io/provided-node-ip": ",".join(addresses),
        "flannel.alpha.coreos.com/public-ip": addresses[0],
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "k3s.io/hostname": name,
        "k3s.io/internal-ip": ",".join(addresses),
        "k3s.io/node-args": json.dumps(arguments, separators=(",", ":")),
        "k3s.io/node-config-hash": base64.b32encode(digest).decode(),
        "k3s.io/node-env": json.dumps(_node_env(environment), separators=(",", ":")),
        STANDIN_LABEL: f"k3s {MARK}",
        **extra_annotations,
    }
    system = os.uname()
    return {
        "metadata": {
            "name": name,
            "annotations": annotations,
            "labels": {
                "beta.kubernetes.io/arch": arch,
                "beta.kubernetes.io/instance-type": "k3s",
                "beta.kubernetes.io/os": "linux",
                "kubernetes.io/arch": arch,
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": "k3s",
                **labels,
            },
        },
        "spec": {"providerID": f"k3s://{name}", **({"taints": taints} if taints else {})},
        "status": {
            "addresses": [
                *({"type": "InternalIP", "address": address} for address in addresses),
                *({"type": "ExternalIP", "address": address} for address in options.items("node-external-ip")),
                {"type": "Hostname", "address": name},
            ],
            "conditions": conditions(ready=False),
            "nodeInfo": {
                "architecture": arch,
                "containerRuntimeVersion": f"{MARK}://none",
                "kernelVersion": system.release,
                "kubeletVersion": KUBELET_VERSION,
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "osImage": f"k3s {MARK}",
            },
        },
    }


def beat(life: Life, send: Callable[[], None]) -> None:
    """Call ``send`` every heartbeat until the end; for a thread of its own."""
    while life.pause(HEARTBEAT):
        send()
