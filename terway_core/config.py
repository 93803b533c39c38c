"""The settings of one node: a YAML file, then ``TERWAY_*`` environment variables on top of it.

The model is frozen and passed to whoever needs it; nothing reads it from a global. ``docs/configuration.md``
lists every field.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from terway_core.errors import InvalidConfig

Options = TypeVar("Options", bound=BaseModel)

DEFAULT_PATH = Path("/etc/terway/config.yaml")
ENV_PREFIX = "TERWAY_"
#: The variable that names the file itself; it is no field.
ENV_CONFIG = "TERWAY_CONFIG"

#: Of a union pydantic would report one error for each family, under names that mean nothing to the reader.
Cidr: TypeAlias = Annotated[IPv4Network | IPv6Network, BeforeValidator(lambda value: ip_network(str(value)))]


class CloudConfig(BaseModel):
    """Where the cloud's APIs are and who we are to them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    region_id: str = Field("", description="Region of the VPC. Empty: asked of the instance metadata.")
    vpc_endpoint: str = Field("", description="Host of the VPC API. Empty: the one inside the VPC.")
    ecs_endpoint: str = Field("", description="Host of the ECS API. Empty: the one inside the VPC.")
    sts_endpoint: str = Field("", description="Host of STS, for RRSA. Empty: the one inside the VPC.")
    protocol: Literal["https", "http"] = Field("https", description="How the endpoints are spoken to.")
    metadata_url: str = Field("http://100.100.100.200", description="The instance metadata service.")
    credentials_file: Path | None = Field(
        None,
        description="Access key, if the environment has none and no RRSA. Absent: the instance's RAM role.",
    )


class PoolConfig(BaseModel):
    """ENIs and addresses that are kept ready for the pods of the eni modes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cluster: str = Field("default", description="Tells this cluster's ENIs from those of others, by a tag.")
    vswitch_ids: tuple[str, ...] = Field(
        (), description="vSwitches of this node's zone for pods. Empty: that of the primary ENI."
    )
    security_group_ids: tuple[str, ...] = Field(
        (), description="Security groups of the ENIs. Empty: those of the primary ENI."
    )
    tags: dict[str, str] = Field(default_factory=dict, description="More tags for the ENIs.")
    ip_stack: Literal["ipv4", "dual"] = Field("ipv4", description="Address families of pods.")
    prefix_mode: bool = Field(False, description="Assign IPv4 /28 prefixes instead of single addresses.")
    warm_min: Annotated[int, Field(ge=0)] = Field(2, description="Free addresses to have at least.")
    warm_max: Annotated[int, Field(ge=0)] = Field(10, description="Free addresses to keep at most.")
    warm_enis: Annotated[int, Field(ge=0)] = Field(0, description="Free ENIs to have for the eni mode.")
    max_enis: Annotated[int, Field(ge=0)] = Field(
        0, description="ENIs to make at most. 0: the instance's quota."
    )
    cooldown: Annotated[float, Field(ge=0)] = Field(
        30, description="Seconds an address rests before it is used again."
    )
    wait: Annotated[float, Field(ge=0, le=95)] = Field(60, description="Seconds an ADD waits for an address.")
    reclaim_after: Annotated[float, Field(ge=0)] = Field(
        300, description="Seconds without pods coming or going before something is given back."
    )
    reconcile_interval: Annotated[float, Field(gt=0)] = Field(
        300, description="Seconds between two comparisons with the cloud."
    )

    @property
    def families(self) -> tuple[int, ...]:
        """What a pod has an address of."""
        return (4, 6) if self.ip_stack == "dual" else (4,)


class KubeConfig(BaseModel):
    """The Kubernetes cluster that this node belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(False, description="Ask the API server about pods, and tell it about the node.")
    kubeconfig: Path | None = Field(
        None, description="How to reach the API server. Absent: by the pod's service account."
    )
    namespace: str = Field("kube-system", description="Where terway's own objects are.")
    not_ready_taint: str = Field(
        "network.alibabacloud.com/not-ready",
        description="Key of a taint that is taken off the node once it can serve. Empty: none.",
    )
    gone_after: Annotated[float, Field(ge=0)] = Field(
        300,
        description="Seconds a pod must be missing in the API server before its network is taken down "
        "although its namespace is still there.",
    )


class Config(BaseModel):
    """Everything that can be set on a node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drivers: tuple[str, ...] = Field((), description="Modes to serve, in the order in which they are asked.")
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="One section for each driver, keyed by mode."
    )
    node_name: str = Field(default_factory=socket.gethostname, description="Name of this node.")
    vpc_cidrs: tuple[Cidr, ...] | None = Field(
        None, description="What the VPC reaches without NAT. Absent: asked of the instance metadata."
    )
    service_cidrs: tuple[Cidr, ...] = Field((), description="Where cluster IPs are from.")
    mtu: Annotated[int, Field(ge=1280, le=65535)] = Field(1500, description="MTU of pod links.")
    state_dir: Path = Field(Path("/var/lib/terway"), description="Journal and spool; must survive a reboot.")
    run_dir: Path = Field(Path("/run/terway"), description="Socket and lock of the daemon.")
    cni_bin_dir: Path = Field(Path("/opt/cni/bin"), description="Where the runtime looks for plugins.")
    cni_conf_dir: Path = Field(Path("/etc/cni/net.d"), description="Where the runtime looks for networks.")
    network: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = Field(
        "terway", description="Name of the CNI network."
    )
    cni_version: Literal["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] = Field(
        "1.0.0", description="cniVersion of the conflist; containerd before 2.0 accepts up to 1.0.0."
    )
    workers: Annotated[int, Field(ge=1, le=256)] = Field(
        16, description="CNI commands that run side by side."
    )
    gc_interval: Annotated[float, Field(gt=0)] = Field(60, description="Seconds between two gc rounds.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    pool: PoolConfig = Field(PoolConfig(), description="ENIs and addresses of the eni modes.")
    kube: KubeConfig = Field(KubeConfig(), description="The Kubernetes cluster.")
    cloud: CloudConfig = Field(CloudConfig(), description="Endpoints and credentials.")

    @field_validator("drivers", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, value.replace(",", " ").split())) if isinstance(value, str) else value

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return self.run_dir / "terway.sock"

    @property
    def spool(self) -> Path:
        """Where the plugin leaves a DEL for a daemon that is away."""
        return self.state_dir / "spool"

    @property
    def database(self) -> Path:
        """The journal."""
        return self.state_dir / "terway.db"


def load_config(path: Path | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Read the settings.

    :param path: the file; None means ``$TERWAY_CONFIG``, else ``/etc/terway/config.yaml``,
        which may be absent.
    :param env: the environment, that of the process by default. ``TERWAY_MTU=1400`` sets ``mtu``,
        ``TERWAY_CLOUD='{"region_id": "cn-hangzhou"}'`` a section: values other than plain text are YAML.
    :raises InvalidConfig: the message names the file, the field and what is wrong with it.
    """
    env = os.environ if env is None else env
    if path is None and env.get(ENV_CONFIG):
        path = Path(env[ENV_CONFIG])
    data = _read(path or DEFAULT_PATH, required=path is not None)
    overridden: dict[str, str] = {}  # field → the variable that sets it
    for name, field in Config.model_fields.items():
        variable = ENV_PREFIX + name.upper()
        if (text := env.get(variable)) is not None:
            # A node may be called 1234 or "no", which YAML takes for something else.
            data[name] = text if field.annotation is str else _parse_yaml(text, f"${variable}")
            overridden[name] = variable
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            variable = overridden.get(str(item["loc"][0]), "")
            problems.append(
                ".".join(map(str, item["loc"])) + (f" (${variable})" if variable else "") + f": {item['msg']}"
            )
        raise InvalidConfig(f"settings in {path or DEFAULT_PATH}: {'; '.join(problems)}") from error


def parse_options(model: type[Options], mode: str, options: Mapping[str, Any]) -> Options:
    """Check a driver's own section, ``options.MODE``, by a model of the driver's.

    :raises InvalidConfig: names each field and what is wrong with it.
    """
    try:
        return model.model_validate(options)
    except ValidationError as error:
        problems = "; ".join(
            ".".join(("options", mode, *map(str, item["loc"]))) + f": {item['msg']}"
            for item in error.errors()
        )
        raise InvalidConfig(problems) from error


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        if required:
            raise InvalidConfig(f"the configuration file {path} does not exist") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"the configuration file {path} cannot be read: {error}") from error
    data = _parse_yaml(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InvalidConfig(
            f"{path} must hold a mapping of settings, not {json.dumps(data, default=str)[:60]}"
        )
    return data


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{where} is not YAML: {' '.join(str(error).split())}") from error
