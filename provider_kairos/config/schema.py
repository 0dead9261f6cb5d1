"""The blocks of a cloud-config that this program reads, as typed settings (spec/provider.md 2.2, 2.3).

Every other top-level key belongs to somebody else and is left alone. Booleans, numbers and texts are taken the way
the Go decoder of the original takes them into typed fields. Nulls count as unset. Predicates of section 2.3 are
methods of :class:`Settings`. Places, unknown keys and old spellings are the business of load.py and hints.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

__all__ = [
    "DEFAULT_MINIMUM_NODES",
    "DEFAULT_NETWORK_ID",
    "KUBEVIP_KEYS",
    "P2P",
    "Auto",
    "Distribution",
    "HighAvailability",
    "K0s",
    "K3s",
    "K3sAgent",
    "KubeVip",
    "RawScalar",
    "Settings",
    "Vpn",
    "json_schema",
]

DEFAULT_NETWORK_ID = "kairos"
DEFAULT_MINIMUM_NODES = 2
RESERVED_IDS = frozenset(
    {"machines", "users", "services", "files", "healthcheck", "dhcp", "dns", "egress", "trustzone", "trustzoneAuth"}
)
"""Buckets of the mesh daemon: a cluster with such an id would write into them."""

_YES = frozenset({"y", "Y", "yes", "Yes", "YES", "on", "On", "ON"})
_NO = frozenset({"n", "N", "no", "No", "NO", "off", "Off", "OFF"})


class RawScalar(str):
    """A scalar's text together with what a typed decoder makes of it; its repr shows no value."""

    __slots__ = ("boolean", "integer")

    boolean: bool | None
    integer: int | None

    def __new__(cls, text: str, boolean: bool | None = None, integer: int | None = None) -> Self:
        """``boolean`` and ``integer`` are what the text stands for where one of them is wanted."""
        made = super().__new__(cls, text)
        made.boolean = boolean
        made.integer = integer
        return made

    def __repr__(self) -> str:
        return "RawScalar(...)"


def _expected(what: str) -> PydanticCustomError:
    return PydanticCustomError("expected", "expected {what}", {"what": what})


def _boolean(value: object) -> object:
    if isinstance(value, bool):
        return value
    if isinstance(value, RawScalar) and value.boolean is not None:
        return value.boolean
    if isinstance(value, str) and value in _YES | _NO:
        return value in _YES
    raise _expected("true or false")


def _whole(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, RawScalar) and value.integer is not None:
        return value.integer
    raise _expected("a whole number")


def _text(value: object) -> object:
    if isinstance(value, str):
        return str(value)
    raise _expected("a text")


def _bucket(value: object) -> object:
    text = _text(value)
    assert isinstance(text, str)
    if "/" in text:
        raise _expected("a name without a slash")
    if text in RESERVED_IDS or text.startswith("kairos-p2p."):
        raise _expected("a name that the mesh does not use itself")
    return text


def _list(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(value)
    raise _expected("a list")


def _map(value: object) -> object:
    if isinstance(value, dict):
        return value
    raise _expected("a mapping of names to values")


Bool = Annotated[bool, BeforeValidator(_boolean)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=1_000_000)]
Text = Annotated[str, BeforeValidator(_text)]
BucketName = Annotated[str, BeforeValidator(_bucket)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_list)]
TextMap = Annotated[dict[Text, Text], BeforeValidator(_map)]
AnyMap = Annotated[dict[str, Any], BeforeValidator(_map)]


class Block(BaseModel):
    """Base of all blocks: immutable, silent about values, unknown keys left to load.py."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True, validate_by_name=True, validate_by_alias=True
    )


class HighAvailability(Block):
    """``p2p.auto.ha``."""

    enable: Bool | None = Field(
        None, description="More than one control-plane node; unset: when `master_nodes` is set."
    )
    master_nodes: Count | None = Field(None, description="Control-plane nodes in addition to the first.")
    external_db: Text = Field("", repr=False, description="Datastore endpoint of k3s in place of the embedded etcd.")

    def enabled(self) -> bool:
        """Whether there is to be more than one control-plane node."""
        return self.enable if self.enable is not None else self.master_nodes is not None


class Auto(Block):
    """``p2p.auto``."""

    enable: Bool | None = Field(None, description="Let the nodes hand out the roles; unset: when there is a token.")
    ha: HighAvailability = Field(HighAvailability(), description="Several control-plane nodes.")

    def enabled(self) -> bool:
        """The block's own switch: unset counts as true."""
        return self.enable is not False


class Vpn(Block):
    """``p2p.vpn``."""

    create: Bool | None = Field(None, description="Run the VPN; false runs the ledger and its API alone. Unset: true.")
    use: Bool | None = Field(None, description="Put Kubernetes on the VPN. Unset: true.")
    env: TextMap = Field({}, repr=False, description="Further environment of the mesh daemon.")


class P2P(Block):
    """``p2p``: the mesh and how roles are found. The presence of the block alone counts."""

    network_token: Text = Field("", repr=False, description="The shared text that makes a node a member.")
    network_id: BucketName = Field(
        "", description=f"Which cluster among those that share a token; empty: `{DEFAULT_NETWORK_ID}`."
    )
    role: Text = Field(
        "",
        description="Force a role: `master` or `worker`; `none` takes part without a role.",
        examples=["master", "worker", "none"],
    )
    dns: Bool = Field(default=False, description="Answer names from the ledger on 127.0.0.1:53.")
    loglevel: Text = Field("", description="Level of the provider's log; empty: `debug`.")
    minimum_nodes: Count = Field(
        0, description=f"Nodes that must be seen before roles are given; 0: {DEFAULT_MINIMUM_NODES}."
    )
    disable_dht: Bool = Field(default=False, description="Find peers on the local network only.")
    dynamic_roles: Bool = Field(default=False, description="Take roles away from nodes that are gone.")
    vpn: Vpn = Field(Vpn(), description="The VPN between the nodes.")
    auto: Auto = Field(Auto(), description="Automatic roles.")


class Distribution(Block):
    """What all four Kubernetes blocks have in common."""

    enabled: Bool | None = Field(None, description="Run this without coordination, or fix the distribution with it.")
    env: TextMap = Field({}, repr=False, description="Environment of the service.")
    replace_env: Bool = Field(default=False, description="Use `env` alone, without what is generated.")
    args: Texts = Field((), repr=False, description="Arguments after those that are generated, one flag an element.")
    replace_args: Bool = Field(default=False, description="Use `args` alone, without what is generated.")


class K3s(Distribution):
    """``k3s``: servers."""

    embedded_registry: Bool = Field(default=False, description="Share images between the nodes.")


class K3sAgent(Distribution):
    """``k3s-agent``: agents."""

    embedded_registry: Bool = Field(default=False, description="Has no effect on agents; set it under `k3s`.")
    with_node_id: Bool | None = Field(
        None, description="Append an id to the node name. Unset: unless all host names are known to differ."
    )


class K0s(Distribution):
    """``k0s`` and ``k0s-worker``."""


class KubeVip(Block):
    """``kubevip``. kube-vip's own fields may stand beside ours or under ``config``; load.py puts them there."""

    eip: Text = Field("", description="The elastic IP of the API server; several with commas, or a host name.")
    enable: Bool | None = Field(None, description="Deploy kube-vip; unset: when `eip` is set.")
    interface: Text = Field("", description="Where the elastic IP is announced; empty: the default route's interface.")
    manifest_url: Text = Field("", description="RBAC manifest to download in place of the built-in one.")
    static_pod: Bool = Field(default=False, description="A static pod in place of a daemon set.")
    version: Text = Field("", description="Image tag.")
    image: Text = Field("", description="Image repository.")
    config: AnyMap = Field({}, repr=False, description="Fields of kube-vip's own configuration.")

    def enabled(self) -> bool:
        """Whether kube-vip is to be deployed."""
        return self.enable if self.enable is not None else bool(self.eip)


class Settings(Block):
    """All blocks that the provider reads."""

    p2p: P2P | None = Field(None, description="The mesh, and how roles are found.")
    k3s: K3s = Field(K3s(), description="k3s servers.")
    k3s_agent: K3sAgent = Field(K3sAgent(), alias="k3s-agent", description="k3s agents.")
    k0s: K0s = Field(K0s(), description="k0s controllers.")
    k0s_worker: K0s = Field(K0s(), alias="k0s-worker", description="k0s workers.")
    kubevip: KubeVip = Field(KubeVip(), description="An elastic IP in front of the control plane.")

    BLOCKS: ClassVar[tuple[str, ...]] = ("p2p", "k3s", "k3s-agent", "k0s", "k0s-worker", "kubevip")

    def p2p_configured(self) -> bool:
        """Whether the ``p2p`` mapping exists, even an empty one."""
        return self.p2p is not None

    def kubernetes_configured(self) -> bool:
        """Whether any distribution block has ``enabled: true``."""
        return any(block.enabled is True for block in (self.k3s, self.k3s_agent, self.k0s, self.k0s_worker))

    def token_text(self) -> str:
        """``p2p.network_token`` as written, without white space around it; may be empty."""
        return self.p2p.network_token.strip() if self.p2p else ""

    def network_id(self) -> str:
        """The ledger bucket of this cluster."""
        return (self.p2p.network_id if self.p2p else "") or DEFAULT_NETWORK_ID

    def minimum_nodes(self) -> int:
        """How many nodes must be seen before roles are given or taken."""
        return (self.p2p.minimum_nodes if self.p2p else 0) or DEFAULT_MINIMUM_NODES

    def forced_role(self) -> str:
        """``p2p.role``; empty when roles are found."""
        return self.p2p.role if self.p2p else ""

    def auto_block_enabled(self) -> bool:
        """``p2p.auto``'s own switch: unset or true (decides on the one-time bootstrap)."""
        return self.p2p is not None and self.p2p.auto.enabled()

    def auto_enabled(self) -> bool:
        """Automatic mode of ``p2p``: explicitly on, or a token is there (decides on the distribution)."""
        return self.p2p is not None and (self.p2p.auto.enable is True or bool(self.token_text()))

    def ha_enabled(self) -> bool:
        """Whether there is to be more than one control-plane node."""
        return self.p2p is not None and self.p2p.auto.ha.enabled()

    def additional_masters(self) -> int:
        """Control-plane nodes beyond the first; 0 without HA."""
        return (self.p2p.auto.ha.master_nodes or 0) if self.p2p and self.ha_enabled() else 0

    def external_db(self) -> str:
        """The datastore endpoint in place of embedded etcd; a secret; may be empty."""
        return self.p2p.auto.ha.external_db if self.p2p else ""

    def vpn_created(self) -> bool:
        """Whether the full VPN runs; false: the ledger and its API alone."""
        return self.p2p is not None and self.p2p.vpn.create is not False

    def vpn_used(self) -> bool:
        """Whether Kubernetes runs on the VPN."""
        return self.p2p is not None and self.vpn_created() and self.p2p.vpn.use is not False

    def kubevip_enabled(self) -> bool:
        """Whether kube-vip is to be deployed."""
        return self.kubevip.enabled()

    def nothing_to_do(self) -> bool:
        """Neither a ``p2p`` block nor a distribution."""
        return not self.p2p_configured() and not self.kubernetes_configured()

    def one_time(self) -> bool:
        """One-time bootstrap without coordination (spec/provider.md 3.2)."""
        if self.p2p is not None and self.p2p.auto.enable is False:
            return True
        return not self.token_text() and self.kubernetes_configured()


KUBEVIP_KEYS: frozenset[str] = frozenset(
    [
        "logging",
        "enableARP",
        "enableBGP",
        "enableWireguard",
        "enableRoutingTable",
        "enableControlPlane",
        "detectControlPlane",
        "kubernetesAddr",
        "enableServices",
        "enableServicesElection",
        "enableNodeLabeling",
        "lbClassOnly",
        "lbClassName",
        "lbClassNameLegacyHandling",
        "EnableServiceSecurity",
        "arpBroadcastRate",
        "annotations",
        "leaderElectionType",
        "kubernetesleaderelection",
        "etcd",
        "addPeersAsBackends",
        "vip",
        "vipSubnet",
        "address",
        "port",
        "namespace",
        "serviceNamespace",
        "ddns",
        "leaseNodeName",
        "singleNode",
        "startAsLeader",
        "interface",
        "servicesInterface",
        "enableLoadBalancer",
        "lbPort",
        "lbForwardingMethod",
        "routingTableID",
        "routingTableType",
        "routingProtocol",
        "cleanRoutingTable",
        "bgpconfig",
        "bgppeerconfig",
        "bgppeers",
        "loadBalancers",
        "prometheusHTTPServer",
        "egresspodcidr",
        "egressservicecidr",
        "egresswithnftables",
        "servicesLeaseName",
        "k8sConfigFile",
        "dnsDualStackMode",
        "disableServiceUpdates",
        "enableEndpoints",
        "mirrorDestInterface",
        "iptablesBackend",
        "backendHealthCheckInterval",
        "loInterfaceGlobalScope",
        "healthCheckPort",
        "enableUPNP",
        "egressClean",
        "configFile",
        "enableLeaderElection",
        "leaseName",
        "leaseduration",
        "renewdeadline",
        "retryperiod",
        "leaseannotations",
        "loseLeadership",
    ]
)
"""kube-vip's own fields by their YAML names; only used to spot misspellings, never to refuse."""


def json_schema(decorate: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the file: our blocks typed, every other key allowed."""
    schema = Settings.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "cloud-config, the part that the provider reads"
    schema["additionalProperties"] = True
    if decorate:
        decorate(schema)
    return schema
