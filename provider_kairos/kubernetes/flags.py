"""k3s' flags as far as rendering must know them (spec/k3s.md 1.1, 1.2, 6)."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["AGENT", "BOOLEAN", "CRITICAL", "SECRET", "SHORT", "SINGLE", "VALUED", "Flag"]

BOOLEAN = frozenset(
    [
        "debug",
        "alsologtostderr",
        "with-node-id",
        "selinux",
        "protect-kernel-defaults",
        "disable-default-registry-endpoint",
        "nonroot-devices",
        "docker",
        "enable-pprof",
        "rootless",
        "prefer-bundled-bin",
        "disable-apiserver-lb",
        "cluster-init",
        "cluster-reset",
        "tls-san-security",
        "flannel-ipv6-masq",
        "flannel-external-ip",
        "etcd-expose-metrics",
        "etcd-disable-snapshots",
        "etcd-snapshot-compress",
        "secrets-encryption",
        "disable-scheduler",
        "disable-cloud-controller",
        "disable-kube-proxy",
        "disable-network-policy",
        "disable-helm-controller",
        "embedded-registry",
        "supervisor-metrics",
        "etcd-s3",
        "etcd-s3-skip-ssl-verify",
        "etcd-s3-insecure",
        "help",
    ]
)
"""Flags without a value; ``--flag=false`` turns them off, ``--flag false`` would end the command line."""

_BOTH_VALUED = frozenset(
    [
        "config",
        "v",
        "vmodule",
        "log",
        "token",
        "token-file",
        "server",
        "data-dir",
        "bind-address",
        "node-name",
        "lb-server-port",
        "container-runtime-endpoint",
        "default-runtime",
        "image-service-endpoint",
        "pause-image",
        "snapshotter",
        "private-registry",
        "image-credential-provider-bin-dir",
        "image-credential-provider-config",
        "resolv-conf",
        "flannel-iface",
        "flannel-conf",
        "flannel-cni-conf",
        "vpn-auth",
        "vpn-auth-file",
        "node-label",
        "node-taint",
        "node-ip",
        "node-external-ip",
        "node-internal-dns",
        "node-external-dns",
        "kubelet-arg",
        "kube-proxy-arg",
    ]
)
"""With a value, for servers and agents alike."""

VALUED = _BOTH_VALUED | frozenset(
    [
        "https-listen-port",
        "advertise-address",
        "advertise-port",
        "tls-san",
        "cluster-cidr",
        "service-cidr",
        "cluster-dns",
        "disable",
        "kube-apiserver-arg",
        "etcd-arg",
        "kube-controller-manager-arg",
        "kube-scheduler-arg",
        "kube-cloud-controller-manager-arg",
        "service-node-port-range",
        "cluster-domain",
        "flannel-backend",
        "egress-selector-mode",
        "servicelb-namespace",
        "write-kubeconfig",
        "write-kubeconfig-mode",
        "write-kubeconfig-group",
        "helm-job-image",
        "agent-token",
        "agent-token-file",
        "cluster-reset-restore-path",
        "system-default-registry",
        "default-local-storage-path",
        "secrets-encryption-provider",
        "datastore-endpoint",
        "datastore-cafile",
        "datastore-certfile",
        "datastore-keyfile",
        "etcd-snapshot-name",
        "etcd-snapshot-schedule-cron",
        "etcd-snapshot-reconcile-interval",
        "etcd-snapshot-retention",
        "etcd-snapshot-dir",
        "etcd-s3-endpoint",
        "etcd-s3-endpoint-ca",
        "etcd-s3-access-key",
        "etcd-s3-secret-key",
        "etcd-s3-session-token",
        "etcd-s3-bucket",
        "etcd-s3-bucket-lookup-type",
        "etcd-s3-region",
        "etcd-s3-folder",
        "etcd-s3-retention",
        "etcd-s3-proxy",
        "etcd-s3-config-secret",
        "etcd-s3-timeout",
    ]
)

AGENT = _BOTH_VALUED | frozenset(
    [
        "debug",
        "alsologtostderr",
        "with-node-id",
        "selinux",
        "protect-kernel-defaults",
        "disable-default-registry-endpoint",
        "nonroot-devices",
        "docker",
        "enable-pprof",
        "rootless",
        "prefer-bundled-bin",
        "disable-apiserver-lb",
        "help",
    ]
)
"""What agents know; servers know everything but ``disable-apiserver-lb``. Any other flag keeps k3s from starting."""

SHORT = {
    "c": "config",
    "l": "log",
    "t": "token",
    "s": "server",
    "d": "data-dir",
    "i": "node-ip",
    "o": "write-kubeconfig",
    "h": "help",
}

SECRET = {
    "token": "K3S_TOKEN",
    "agent-token": "K3S_AGENT_TOKEN",
    "datastore-endpoint": "K3S_DATASTORE_ENDPOINT",
    "vpn-auth": "K3S_VPN_AUTH",
    "etcd-s3-access-key": "AWS_ACCESS_KEY_ID",
    "etcd-s3-secret-key": "AWS_SECRET_ACCESS_KEY",
    "etcd-s3-session-token": "AWS_SESSION_TOKEN",
}
"""Flags whose value is a secret, and the variable that means the same: nothing secret stands on a command line."""

SINGLE = frozenset({"flannel-iface", "node-ip", "server", "cluster-init", "embedded-registry", "with-node-id"})
"""Generated flags that give way when the user sets the same (k3s would take the last one, or both addresses)."""

CRITICAL = {
    "cluster-cidr": "10.42.0.0/16",
    "service-cidr": "10.43.0.0/16",
    "cluster-dns": "10.43.0.10",
    "cluster-domain": "cluster.local",
    "flannel-backend": "vxlan",
    "egress-selector-mode": "agent",
    "embedded-registry": "false",
    "secrets-encryption": "false",
    "disable-network-policy": "false",
}
"""What all servers of a cluster must agree on, with k3s' defaults."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag by its long name; ``value`` None: a boolean that stands alone."""

    name: str
    value: str | None = field(default=None, repr=False)

    def text(self) -> str:
        """One element of a command line. Always ``--flag=value``: a separate value could end k3s' parsing."""
        dashes = "-" if len(self.name) == 1 else "--"
        return f"{dashes}{self.name}" if self.value is None else f"{dashes}{self.name}={self.value}"

    def on(self) -> bool:
        """Whether a boolean flag is set."""
        return self.value is None or self.value.lower() in {"true", "t", "1"}
