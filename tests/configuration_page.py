"""Renders ``docs/configuration.md`` from the settings' models. To write it anew:

python tests/configuration_page.py
"""

from __future__ import annotations

import types
import typing
from ipaddress import IPv4Network
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from terway_core.config import CloudConfig, Config, KubeConfig, PoolConfig

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

TEXT = """\
<!-- Generated from terway_core/config.py; change that, then run: python tests/configuration_page.py -->

# Configuration

A node's settings are one YAML file: the one given with `--config`, else the one that `TERWAY_CONFIG` names,
else `/etc/terway/config.yaml`, which may be absent. On top of it come environment variables: `TERWAY_` and
a field's name in capitals, such as `TERWAY_MTU=1400` or `TERWAY_DRIVERS=trunking,eniip_veth`. Text is taken
as it stands, anything else is read as YAML: `TERWAY_CLOUD='{{protocol: http}}'` replaces the whole section.
An unknown field or a wrong value is an error, and the daemon does not start.

```yaml
drivers: [vpc]
options:
  vpc:
    pod_cidrs: [172.20.1.0/24]
    cluster_cidrs: [172.20.0.0/16]
service_cidrs: [172.21.0.0/20]
cloud:
  region_id: cn-hangzhou
```

{config}

## The section `pool`

{pool}

## The section `kube`

{kube}

## The section `cloud`

{cloud}

## The sections in `options`

Each driver has its own; they are in the driver's README.
"""

NAMES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "`true` or `false`",
    Path: "path",
    IPv4Network: "CIDR",
}


def render() -> str:
    sections = {"pool": PoolConfig, "kube": KubeConfig, "cloud": CloudConfig}
    return TEXT.format(config=table(Config), **{name: table(model) for name, model in sections.items()})


def table(model: type[BaseModel]) -> str:
    rows = [
        f"| `{name}` | {kind(field.annotation)}{bounds(field)} | {default(field)} | {field.description} |"
        for name, field in model.model_fields.items()
    ]
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows])


def kind(annotation: object) -> str:
    arguments = [arg for arg in typing.get_args(annotation) if arg not in (type(None), ...)]
    match typing.get_origin(annotation):
        case None if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return "section"
        case None:
            return NAMES[annotation]
        case typing.Literal:
            return ", ".join(f"`{value}`" for value in arguments)
        case typing.Annotated | typing.Union | types.UnionType:
            return kind(arguments[0])  # IPv4 stands for both families
        case origin if origin is tuple:
            return f"list of {kind(arguments[0])}"
        case _:
            return "mapping of text" if arguments[1] is str else "sections"


def bounds(field: FieldInfo) -> str:
    words = {"ge": "from", "gt": "above", "le": "to", "pattern": "like"}
    found = [
        f"{word} `{getattr(limit, name)}`"
        for limit in field.metadata
        for name, word in words.items()
        if getattr(limit, name, None) is not None
    ]
    return ", " + " ".join(found) if found else ""


def default(field: FieldInfo) -> str:
    match field.get_default():
        case value if value is PydanticUndefined or value is None:
            return "host name" if field.annotation is str else ""
        case "" | () | BaseModel():
            return ""
        case bool() as value:
            return f"`{str(value).lower()}`"
        case value:
            return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(render())
