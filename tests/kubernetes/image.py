"""An image of terway, made as README's Dockerfile does: Debian with its Python, and an environment.

Nobody here pulls or builds images, so Debian comes from the machine: the files of its own packages, of the
essential ones and of those that terway needs.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.e2e.containerd.image import write_archive

NAME = "docker.io/local/terway:1"
ROOT = Path(__file__).parents[2]
DEBIAN = ("python3-venv", "libnftables1")
#: Where the environment is in the image.
HOME = "/opt/terway"
#: What Debian's own images leave out as well.
USELESS = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/")


def write_image(folder: Path, drivers: Iterable[str]) -> Path:
    """Make the image with these drivers; the archive, such as ``docker save`` makes.

    Takes some forty seconds and 400 MB.
    """
    environment = folder / "environment"
    run("/usr/bin/python3", "-m", "venv", environment)
    packages = [ROOT, *(ROOT / "drivers" / driver for driver in drivers)]
    run(environment / "bin/pip", "install", "--quiet", "-c", ROOT / "constraints.txt", *packages)
    for script in (environment / "bin").iterdir():
        if not script.is_symlink():
            script.write_bytes(script.read_bytes().replace(os.fsencode(environment), HOME.encode()))
    layer = folder / "layer.tar"
    with tarfile.open(layer, "w") as tar:
        for link in ("/bin", "/lib", "/lib64", "/sbin"):
            tar.add(link, recursive=False)
        for path in files_of(closure(DEBIAN)):
            # The packages were made before /lib and /bin were links.
            tar.add(path, path.parent.resolve() / path.name, recursive=False)
        tar.add("/usr/share/base-passwd/passwd.master", "/etc/passwd")
        tar.add(environment, HOME)
    archive = folder / "terway.tar"
    path = f"{HOME}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    write_archive(archive, NAME, layer, {"Env": [f"PATH={path}"]})
    layer.unlink()
    return archive


def closure(names: Iterable[str]) -> set[str]:
    """Packages with all that they depend on, and the essential ones; all are installed here."""
    needs: dict[str, str] = {}
    providers: dict[str, str] = {}
    wanted = list(names)
    fields = "${Package}\t${Essential}\t${Provides}\t${Pre-Depends},${Depends}\n"
    for line in run("dpkg-query", "--show", f"--showformat={fields}").splitlines():
        package, essential, provides, depends = line.split("\t")
        needs[package] = depends
        providers |= dict.fromkeys([package, *map(_name, provides.split(","))], package)
        wanted += [package] * (essential == "yes")
    found: set[str] = set()
    while wanted:
        package = wanted.pop()
        if package not in found:
            found.add(package)
            for alternatives in needs[package].split(","):
                there = [providers[name] for name in map(_name, alternatives.split("|")) if name in providers]
                wanted += there[:1]
    return found


def files_of(packages: Iterable[str]) -> Iterator[Path]:
    """The files and folders of these packages, with what Python has compiled of them."""
    for line in sorted(set(run("dpkg-query", "--listfiles", *packages).splitlines())):
        path = Path(line)
        if not line.startswith("/") or line == "/." or line.startswith(USELESS) or not os.path.lexists(path):
            continue
        yield path
        if path.suffix == ".py":
            yield from (path.parent / "__pycache__").glob(f"{path.stem}.*")


def run(*argv: object) -> str:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def _name(relation: str) -> str:
    """Of the package in ``name:any (>= 1)``."""
    return relation.split("(")[0].strip().partition(":")[0]
