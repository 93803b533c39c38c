"""Builds the programs of a Kubernetes cluster from Debian's source package, once, and prints where they are.

No release of Debian has them as binary packages. Bookworm's *source* package has the whole tree with all that
it depends on, so nothing is downloaded but packages, from where this machine has its packages from. Nothing
is installed: apt gets folders of its own, with the machine's own sources and their source packages. What the
build needs (Go, etcd, and small tools) is unpacked beside it.

Takes some ten minutes on two cores, and 3 GiB while it lasts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VERSION = "1.20.2"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
#: Where the programs are; etcd is one of them.
FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "terway" / f"kubernetes-{VERSION}"
GO = "1.19"
#: The one that the tree has knows maps as they were before Go 1.18; its API server would crash at the first
#: custom resource.
REFLECT = "github.com/modern-go/reflect2"
#: What is unpacked for the build, with what that needs beyond the C library.
PACKAGES = (
    "golang-github-modern-go-reflect2-dev",
    *(f"golang-{GO}-go", f"golang-{GO}-src", "etcd-server"),
    *("jq", "libjq1", "libonig5"),
    *("rsync", "liblz4-1", "libpopt0", "libxxhash0", "libzstd1"),
)


def main() -> None:
    """Build, unless that was done."""
    if not FOLDER.is_dir():
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{FOLDER.name}-", dir=FOLDER.parent) as work:
            build(Path(work)).rename(FOLDER)
    print(FOLDER)


def build(work: Path) -> Path:
    """The folder with the programs, in ``work``."""
    download(work)
    system = work / "system"
    for package in work.glob("*.deb"):
        run("dpkg", "-x", package, system)
    (description,) = work.glob("*.dsc")
    if f"really{VERSION}-" not in description.name and f"_{VERSION}" not in description.name:
        sys.exit(f"the source package is {description.name}, and not of version {VERSION} as in Debian 12")
    # apt has verified it; the key of who packed it need not be here.
    run("dpkg-source", "--no-check", "-x", description, work / "source")

    # The tree is of a time before modules: it must lie in a GOPATH.
    tree = work / "go/src/k8s.io/kubernetes"
    tree.parent.mkdir(parents=True)
    (work / "source").rename(tree)
    shutil.rmtree(tree / "vendor" / REFLECT)
    shutil.copytree(system / "usr/share/gocode/src" / REFLECT, tree / "vendor" / REFLECT)
    go = system / f"usr/lib/go-{GO}"
    libraries = [str(folder) for folder in (system / "usr/lib").glob("*-linux-gnu")]
    env = {
        "PATH": os.pathsep.join([f"{go}/bin", f"{system}/usr/bin", os.environ["PATH"]]),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "HOME": str(work),
        "GOROOT": str(go),
        "GOPATH": str(work / "go"),
        "GO111MODULE": "off",
        "CGO_ENABLED": "0",
    }
    run("make", "WHAT=" + " ".join(f"cmd/{name}" for name in PROGRAMS), cwd=tree, env=env)

    done = work / "bin"
    done.mkdir()
    for name in PROGRAMS:
        shutil.copy2(tree / "_output/bin" / name, done)
    shutil.copy2(system / "usr/bin/etcd", done)
    for folder, _, _ in os.walk(work / "go"):
        os.chmod(folder, 0o755)  # what Go writes into a GOPATH cannot be removed otherwise
    return done


def download(work: Path) -> None:
    """Get the packages, by an apt that shares nothing with the machine's own but what it trusts."""
    sources, lists = work / "sources", work / "lists"
    sources.mkdir()
    (lists / "partial").mkdir(parents=True)
    for number, (suffix, text) in enumerate(source_lines()):
        (sources / f"{number}{suffix}").write_text(text)
    options = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": sources,
        "Dir::State::lists": lists,
        "Dir::Cache": work / "apt",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    run(*apt, "update")
    run(*apt, "source", "--download-only", "kubernetes", cwd=work)
    run(*apt, "download", *PACKAGES, cwd=work)


def source_lines(etc: Path = Path("/etc/apt")) -> list[tuple[str, str]]:
    """The machine's own apt sources, with their source packages: ``.list`` or ``.sources``, and the text."""
    found = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix == ".list" and path.exists():
            lines = [line for line in path.read_text().splitlines() if line.startswith("deb ")]
            found.append((".list", "".join(f"{line}\ndeb-src {line[4:]}\n" for line in lines)))
        elif path.suffix == ".sources":
            types = re.compile(r"^Types:.*$", re.MULTILINE | re.IGNORECASE)
            found.append((".sources", types.sub("Types: deb deb-src", path.read_text())))
    return found


def run(*argv: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command, with its output on standard error, and a word once a minute: a compiler says nothing."""
    started = time.monotonic()
    process = subprocess.Popen(list(map(str, argv)), cwd=cwd, env=env, stdout=sys.stderr)
    while process.poll() is None:
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            minutes = (time.monotonic() - started) / 60
            print(f"{argv[0]} has run for {minutes:.0f} min", file=sys.stderr, flush=True)
    if process.returncode:
        sys.exit(f"{argv[0]} failed: exit status {process.returncode}")


if __name__ == "__main__":
    main()
