"""Cloud-config text to typed settings with places (spec/provider.md 2).

:func:`load` is the way in. This is the only package that imports pydantic; import it where it is needed, not at the
top of a program's start path.
"""

from provider_kairos.config.load import CloudConfig, load
from provider_kairos.config.notice import InvalidConfigError, Mark, Notice
from provider_kairos.config.schema import P2P, K0s, K3s, K3sAgent, KubeVip, Settings, json_schema

__all__ = [
    "P2P",
    "CloudConfig",
    "InvalidConfigError",
    "K0s",
    "K3s",
    "K3sAgent",
    "KubeVip",
    "Mark",
    "Notice",
    "Settings",
    "json_schema",
    "load",
]
