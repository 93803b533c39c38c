"""Where the build of tests/kubernetes has its packages from."""

from __future__ import annotations

from pathlib import Path

from tests.kubernetes.build import source_lines


def test_the_machines_own_sources_with_their_source_packages(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("# mine\ndeb [arch=amd64] http://a.example/debian bookworm main\n")
    more = tmp_path / "sources.list.d"
    more.mkdir()
    (more / "b.sources").write_text(
        "Types: deb\nURIs: http://b.example\nSuites: bookworm\nComponents: main\n"
    )
    (more / "c.sources.off").write_text("Types: deb\nURIs: http://c.example\n")
    line = "[arch=amd64] http://a.example/debian bookworm main\n"
    assert source_lines(tmp_path) == [
        (".list", f"deb {line}deb-src {line}"),
        (".sources", "Types: deb deb-src\nURIs: http://b.example\nSuites: bookworm\nComponents: main\n"),
    ]


def test_a_machine_without_a_list(tmp_path: Path) -> None:
    assert source_lines(tmp_path) == []
