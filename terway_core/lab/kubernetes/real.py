"""A real API server: etcd and kube-apiserver, when their programs are at hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from terway_core.kube.rbac import NAME
from terway_core.lab import fabric
from terway_core.lab.process import Process, spawn
from terway_core.lab.state import Lab, LabError, open_netns, remember

#: Where Kubernetes' own test tools look for these programs.
ENV_ASSETS = "KUBEBUILDER_ASSETS"
DEFAULT_ASSETS = Path("/usr/local/kubebuilder/bin")


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the programs are."""

    etcd: Path
    apiserver: Path


def find(env: Mapping[str, str] = os.environ) -> Programs | None:
    """The programs in ``$KUBEBUILDER_ASSETS``, else in ``/usr/local/kubebuilder/bin``; None: there are none.

    :raises LabError: the variable is set, but something is missing there.
    """
    folder = Path(env.get(ENV_ASSETS, DEFAULT_ASSETS))
    paths = [folder / name for name in ("etcd", "kube-apiserver")]
    missing = [path for path in paths if shutil.which(path) is None]
    if not missing:
        return Programs(*paths)
    if ENV_ASSETS in env:
        raise LabError(f"{ENV_ASSETS} is set, but there is no program {missing[0]}")
    return None


def start_etcd(lab: Lab, programs: Programs) -> Process:
    """Start etcd in the switch's namespace; nobody else reaches it there."""
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    argv = [
        str(programs.etcd),
        f"--data-dir={lab.kubernetes_dir / 'etcd-data'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        "--unsafe-no-fsync",  # a lab's cluster does not outlive the lab
    ]
    return _spawn(lab, "etcd", argv)


def start_apiserver(lab: Lab, programs: Programs, tokens: Mapping[str, str]) -> Process:
    """Start kube-apiserver, which makes a certificate of its own.

    :param tokens: those of ``admin`` and ``daemon``.
    """
    folder = lab.kubernetes_dir
    account = f"system:serviceaccount:kube-system:{NAME}"
    (folder / "tokens.csv").write_text(
        f'{tokens["admin"]},admin,1,"system:masters"\n{tokens["daemon"]},{account},2\n'
    )
    (folder / "tokens.csv").chmod(0o600)
    argv = apiserver_command(
        programs,
        folder,
        etcd="http://127.0.0.1:2379",
        address=str(fabric.KUBERNETES),
        port=fabric.KUBERNETES_PORT,
        service_cidr=str(fabric.SERVICE_CIDR),
    )
    return _spawn(lab, "apiserver", argv)


def apiserver_command(
    programs: Programs, folder: Path, *, etcd: str, address: str, port: int, service_cidr: str
) -> list[str]:
    """The command line of a kube-apiserver that keeps its certificate, keys and ``tokens.csv`` in ``folder``;
    makes the key of its service accounts."""
    key = folder / "service-account.key"
    key.write_bytes(_private_key())
    key.chmod(0o600)
    return [
        str(programs.apiserver),
        f"--etcd-servers={etcd}",
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={port}",
        f"--cert-dir={folder}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={service_cidr}",
        # Nobody makes service accounts for namespaces here; that is a controller's work.
        "--disable-admission-plugins=ServiceAccount",
        "--endpoint-reconciler-type=none",
        "--allow-privileged=true",
    ]


def _spawn(lab: Lab, name: str, argv: list[str]) -> Process:
    folder = lab.kubernetes_dir / name
    folder.mkdir()
    with open_netns(lab.netns("switch")) as switch:
        process = spawn(switch, argv, log=lab.kubernetes_dir / f"{name}.log")
    remember(folder, process)
    return process


def _private_key() -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
