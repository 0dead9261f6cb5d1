"""The flags of ``k3s server`` and ``k3s agent`` as tables (k3s notes, section 1.1); how they are read is ``arguments``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["AGENT", "COMMANDS", "MASKED", "SERVER", "Flag", "Kind"]


class Kind(Enum):
    """How a flag takes values."""

    BOOL = "bool"
    VALUE = "value"
    NUMBER = "number"
    LIST = "list"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: its name, kind, one-letter form, environment variable and default."""

    name: str
    kind: Kind
    short: str = ""
    env: str = ""
    default: str = ""


def _table(kind: Kind, text: str) -> list[Flag]:
    """Read ``name[,short][@ENV][=default]`` entries; white space separates them (``~`` is a space in a default)."""
    flags = []
    for entry in text.split():
        head, _, default = entry.partition("=")
        head, _, env = head.partition("@")
        name, _, short = head.partition(",")
        flags.append(Flag(name, kind, short, env, default.replace("~", " ")))
    return flags


_BOTH = [
    *_table(
        Kind.VALUE,
        """
        config,c@K3S_CONFIG_FILE=/etc/rancher/k3s/config.yaml vmodule log,l token,t@K3S_TOKEN
        token-file@K3S_TOKEN_FILE server,s@K3S_URL data-dir,d@K3S_DATA_DIR=/var/lib/rancher/k3s bind-address=0.0.0.0
        node-name@K3S_NODE_NAME container-runtime-endpoint default-runtime image-service-endpoint pause-image
        snapshotter=overlayfs private-registry=/etc/rancher/k3s/registries.yaml image-credential-provider-bin-dir
        image-credential-provider-config resolv-conf@K3S_RESOLV_CONF flannel-iface flannel-conf flannel-cni-conf
        vpn-auth@K3S_VPN_AUTH vpn-auth-file@K3S_VPN_AUTH_FILE
        """,
    ),
    *_table(Kind.NUMBER, "v=0 lb-server-port@K3S_LB_SERVER_PORT=6444"),
    *_table(
        Kind.LIST,
        """
        node-label node-taint node-ip,i node-external-ip node-internal-dns node-external-dns kubelet-arg kube-proxy-arg
        """,
    ),
    *_table(
        Kind.BOOL,
        """
        debug@K3S_DEBUG alsologtostderr with-node-id selinux@K3S_SELINUX protect-kernel-defaults
        disable-default-registry-endpoint nonroot-devices docker enable-pprof rootless prefer-bundled-bin
        """,
    ),
]

AGENT = (*_BOTH, *_table(Kind.BOOL, "disable-apiserver-lb"))

SERVER = (
    *_BOTH,
    *_table(Kind.NUMBER, "https-listen-port=6443 advertise-port etcd-snapshot-retention=5 etcd-s3-retention=5"),
    *_table(
        Kind.LIST,
        """
        tls-san cluster-cidr=10.42.0.0/16 service-cidr=10.43.0.0/16 cluster-dns disable kube-apiserver-arg etcd-arg
        kube-controller-manager-arg kube-scheduler-arg kube-cloud-controller-manager-arg
        """,
    ),
    *_table(
        Kind.VALUE,
        """
        advertise-address service-node-port-range=30000-32767 cluster-domain=cluster.local flannel-backend=vxlan
        egress-selector-mode=agent servicelb-namespace=kube-system write-kubeconfig,o@K3S_KUBECONFIG_OUTPUT
        write-kubeconfig-mode@K3S_KUBECONFIG_MODE write-kubeconfig-group@K3S_KUBECONFIG_GROUP helm-job-image
        agent-token@K3S_AGENT_TOKEN agent-token-file@K3S_AGENT_TOKEN_FILE cluster-reset-restore-path
        system-default-registry@K3S_SYSTEM_DEFAULT_REGISTRY default-local-storage-path
        secrets-encryption-provider=aescbc datastore-endpoint@K3S_DATASTORE_ENDPOINT
        datastore-cafile@K3S_DATASTORE_CAFILE datastore-certfile@K3S_DATASTORE_CERTFILE
        datastore-keyfile@K3S_DATASTORE_KEYFILE etcd-snapshot-name=etcd-snapshot
        etcd-snapshot-schedule-cron=0~*/12~*~*~* etcd-snapshot-reconcile-interval=10m etcd-snapshot-dir
        etcd-s3-endpoint etcd-s3-endpoint-ca etcd-s3-access-key@AWS_ACCESS_KEY_ID
        etcd-s3-secret-key@AWS_SECRET_ACCESS_KEY etcd-s3-session-token@AWS_SESSION_TOKEN etcd-s3-bucket
        etcd-s3-bucket-lookup-type etcd-s3-region=us-east-1 etcd-s3-folder etcd-s3-proxy etcd-s3-config-secret
        etcd-s3-timeout=5m
        """,
    ),
    *_table(
        Kind.BOOL,
        """
        cluster-init@K3S_CLUSTER_INIT cluster-reset@K3S_CLUSTER_RESET tls-san-security=true flannel-ipv6-masq
        flannel-external-ip etcd-expose-metrics etcd-disable-snapshots etcd-snapshot-compress secrets-encryption
        disable-scheduler disable-cloud-controller disable-kube-proxy disable-network-policy disable-helm-controller
        embedded-registry supervisor-metrics etcd-s3 etcd-s3-skip-ssl-verify etcd-s3-insecure
        """,
    ),
)

COMMANDS: dict[str, tuple[Flag, ...]] = {"server": SERVER, "agent": AGENT}

MASKED = frozenset(
    {
        "token",
        "agent-token",
        "datastore-endpoint",
        "vpn-auth",
        "etcd-s3-access-key",
        "etcd-s3-secret-key",
        "etcd-s3-session-token",
    }
)
"""Flags whose values the node annotations show as ``********``."""
