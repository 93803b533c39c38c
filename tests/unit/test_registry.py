import logging
import sys
from ipaddress import ip_interface

import pytest

from terway_core.errors import DriverContractError, InvalidConfig, NoAddress, UnknownDriver
from terway_core.hookspecs import hookimpl
from terway_core.registry import REQUIRED_HOOKS, Drivers
from terway_core.types import Attachment, GcReport, Lease, Node, Outcome, Pod, Problem
from terway_core.wiring.objects import LinkUp, Wiring

NODE = Node(name="node-a")
ATTACHMENT = Attachment(network="terway", container_id="c0ffee", ifname="eth0")
LEASE = Lease(addresses=(ip_interface("10.0.0.2/32"),))


class Good:
    @hookimpl
    def terway_allocate(self, attachment, node):
        return LEASE

    @hookimpl
    def terway_setup(self, attachment, lease, node):
        return Wiring(pod=(LinkUp(dev="lo"),))

    @hookimpl
    def terway_teardown(self, attachment, lease):
        return Outcome(changed=lease is not None)

    @hookimpl
    def terway_gc(self, live, node):
        return GcReport()


def answering(hook, answer):
    """A driver whose ``hook`` answers with what ``answer()`` gives or raises."""
    arguments = {"terway_teardown": "attachment, lease", "terway_start": "services", "terway_stop": ""}
    scope = {"answer": answer, "hookimpl": hookimpl}
    exec(f"@hookimpl\ndef {hook}(self, {arguments.get(hook, 'node')}): return answer()", scope)
    return type("Answering", (Good,), {hook: scope[hook]})()


def registered(**plugins):
    drivers = Drivers()
    for mode, plugin in plugins.items():
        drivers.register(mode, plugin)
    return drivers


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution on sys.path: its module's source and its entry points."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def install(name, source="", points="", version="1.0"):
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: About {name}\n"
            "Requires-Dist: terway-core>=0.1\nRequires-Dist: pytest; extra == 'dev'\n"
        )
        info.joinpath("entry_points.txt").write_text(points)
        tmp_path.joinpath(f"{name.replace('-', '_')}.py").write_text(source)

    yield install
    for module in set(sys.modules) - before:
        del sys.modules[module]


GOOD_SOURCE = """
from terway_core.hookspecs import hookimpl
from terway_core.types import GcReport, Lease, Outcome, Wiring
class Driver:
    @hookimpl
    def terway_allocate(self, attachment, node): return Lease(addresses=())
    @hookimpl
    def terway_setup(self, attachment, lease, node): return Wiring()
    @hookimpl
    def terway_teardown(self, attachment, lease): return Outcome(changed=False)
    @hookimpl
    def terway_gc(self, live, node): return GcReport()
driver = Driver()
"""


def info_of(drivers, mode):
    (info,) = [info for info in drivers.infos if info.mode == mode]
    return info


# ---- what is installed


def test_installed_driver_is_described_by_its_package(install):
    install("kx-good", GOOD_SOURCE, "[terway.drivers]\nkx_good = kx_good:driver\n")
    info = info_of(Drivers.installed(), "kx_good")
    assert (info.distribution, info.version, info.summary) == ("kx-good", "1.0", "About kx-good")
    assert info.requirements == ("terway-core>=0.1",)
    assert set(info.hooks) == set(REQUIRED_HOOKS)
    assert info.problem == ""


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import kx_not_there", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd: odd"),
        ("", "AttributeError"),
        (GOOD_SOURCE + "driver = Driver", "Driver is a class; name an instance of it"),
        (GOOD_SOURCE + "driver = None", "required hooks are missing"),
        (GOOD_SOURCE + "del Driver.terway_gc", "required hooks are missing: terway_gc"),
        (GOOD_SOURCE + "Driver.__eq__ = lambda a, b: True\nDriver.__hash__ = None", "unhashable"),
    ],
)
def test_broken_driver_is_listed_with_its_cause_and_stops_nobody_else(install, source, cause):
    install("kx-aaa", source, "[terway.drivers]\nkx_aaa = kx_aaa:driver\n")
    install("kx-good", GOOD_SOURCE, "[terway.drivers]\nkx_good = kx_good:driver\n")
    drivers = Drivers.installed()
    assert cause in info_of(drivers, "kx_aaa").problem
    assert info_of(drivers, "kx_aaa").distribution == "kx-aaa"
    assert drivers.allocate("kx_good", ATTACHMENT, NODE) == Lease(addresses=())
    with pytest.raises(UnknownDriver, match="kx_aaa"):
        drivers.allocate("kx_aaa", ATTACHMENT, NODE)


def test_interrupt_while_loading_is_not_swallowed(install):
    install("kx-aaa", "raise KeyboardInterrupt", "[terway.drivers]\nkx_aaa = kx_aaa:driver\n")
    with pytest.raises(KeyboardInterrupt):
        Drivers.installed()


def test_two_packages_with_one_mode_both_stay_out(install):
    install("kx-one", GOOD_SOURCE, "[terway.drivers]\nkx_mode = kx_one:driver\n")
    install("kx-two", GOOD_SOURCE, "[terway.drivers]\nkx_mode = kx_two:driver\n", version="2.5")
    install("kx-good", GOOD_SOURCE, "[terway.drivers]\nkx_good = kx_good:driver\n")
    drivers = Drivers.installed()
    problems = {info.problem for info in drivers.infos if info.mode == "kx_mode"}
    assert problems == {"mode 'kx_mode' is offered by kx-one 1.0 and by kx-two 2.5; uninstall all but one"}
    with pytest.raises(UnknownDriver, match=r"kx-one 1\.0 and by kx-two 2\.5"):
        drivers.info("kx_mode")
    assert drivers.gc("kx_good", (), NODE) == GcReport()


@pytest.mark.parametrize(
    "text", ["[console_scripts]\nrubbish\n", "[console_scripts]\nx = \N{LATIN SMALL LETTER Y WITH DIAERESIS}"]
)
def test_package_with_unreadable_entry_points_is_left_out_alone(install, tmp_path, text, caplog):
    install("kx-aaa")
    (tmp_path / "kx_aaa-1.0.dist-info" / "entry_points.txt").write_bytes(text.encode("latin-1"))
    install("kx-good", GOOD_SOURCE, "[terway.drivers]\nkx_good = kx_good:driver\n")
    with caplog.at_level(logging.WARNING):
        assert info_of(Drivers.installed(), "kx_good").problem == ""
    assert "metadata cannot be read" in caplog.text


def test_installed_wrapper_runs_around_every_driver(install):
    install(
        "kx-wrap",
        "from dataclasses import replace\n"
        "from terway_core.hookspecs import hookimpl\n"
        "from terway_core.wiring.objects import LinkUp\n"
        "class Wrapper:\n"
        "    @hookimpl(wrapper=True)\n"
        "    def terway_setup(self, attachment):\n"
        "        wiring = yield\n"
        "        return replace(wiring, pod=(*wiring.pod, LinkUp(dev='added')))\n"
        "plugin = Wrapper()\n",
        "[terway.plugins]\nkx_wrap = kx_wrap:plugin\n",
    )
    drivers = Drivers.installed()
    assert "kx_wrap" in {info.mode for info in drivers.wrappers}
    drivers.register("kx_one", Good())
    drivers.register("kx_two", Good())
    for mode in ("kx_one", "kx_two"):
        assert drivers.setup(mode, ATTACHMENT, LEASE, NODE).pod == (LinkUp(dev="lo"), LinkUp(dev="added"))


def test_bandwidth_is_installed():
    (info,) = [info for info in Drivers.installed().wrappers if info.mode == "bandwidth"]
    assert (info.distribution, info.problem) == ("terway-core", "")


# ---- what a plugin must look like


def test_unknown_argument_is_a_problem():
    class Wrong(Good):
        @hookimpl
        def terway_setup(self, attachment, lease, host):
            return Wiring()

    problem = Drivers().register("wrong", Wrong()).problem
    assert "host" in problem
    assert "terway_setup" in problem


def test_argument_that_pluggy_never_gives_is_a_problem():
    class Wrong(Good):
        @hookimpl
        def terway_gc(self, live, *, node):
            return GcReport()

    assert "'node'" in Drivers().register("wrong", Wrong()).problem


def test_hook_may_name_only_the_arguments_it_needs():
    class Short(Good):
        @hookimpl
        def terway_gc(self):
            return GcReport(released=("x",))

    drivers = registered(short=Short())
    assert drivers.gc("short", (ATTACHMENT,), NODE) == GcReport(released=("x",))


def test_misspelt_hook_is_a_problem():
    class Wrong(Good):
        @hookimpl
        def terway_prefligth(self, node):
            return []

    assert "terway_prefligth" in Drivers().register("wrong", Wrong()).problem


def test_async_hook_is_a_problem():
    class Wrong(Good):
        @hookimpl
        async def terway_allocate(self, attachment, node):
            return LEASE

    assert "synchronous" in Drivers().register("wrong", Wrong()).problem


def test_driver_that_wraps_is_a_problem_and_wraps_nobody():
    class Wrong(Good):
        @hookimpl(wrapper=True)
        def terway_setup(self, attachment, lease, node):
            yield
            return None

    drivers = registered(wrong=Wrong(), good=Good())
    assert "plugins wrap" in info_of(drivers, "wrong").problem
    assert drivers.setup("good", ATTACHMENT, LEASE, NODE)


def test_plugin_that_does_not_wrap_is_a_problem_and_answers_for_nobody():
    class Hijack:
        @hookimpl
        def terway_allocate(self, attachment, node):
            raise AssertionError("called")

    drivers = registered(good=Good())
    assert "hookimpl(wrapper=True)" in drivers.register_wrapper("hijack", Hijack()).problem
    assert drivers.allocate("good", ATTACHMENT, NODE) is LEASE


def test_one_object_under_two_modes_is_a_problem():
    plugin = Good()
    drivers = registered(one=plugin)
    assert "another name" in drivers.register("two", plugin).problem
    assert drivers.info("one").problem == ""


def test_third_driver_of_a_mode_does_not_revive_it():
    drivers = registered(one=Good())
    drivers.register("one", Good())
    drivers.register("one", Good())
    assert [bool(info.problem) for info in drivers.infos] == [True, True, True]


def test_driver_refused_for_its_mode_is_not_called_for_another():
    drivers = registered(other=Good(), one=answering("terway_claim", lambda: True))
    drivers.register("one", answering("terway_preflight", lambda: [Problem(summary="x", remedy="y")]))
    assert drivers.preflight("other", NODE) == []


# ---- calls


def test_call_reaches_the_one_driver_it_names():
    drivers = registered(
        one=answering("terway_allocate", lambda: Lease(addresses=(), data={"by": "one"})),
        two=answering("terway_allocate", lambda: Lease(addresses=(), data={"by": "two"})),
    )
    assert drivers.allocate("one", ATTACHMENT, NODE).data == {"by": "one"}
    assert drivers.allocate("two", ATTACHMENT, NODE).data == {"by": "two"}


def test_unknown_mode_says_what_to_install():
    with pytest.raises(UnknownDriver, match="pip install terway-driver-eniip-veth"):
        Drivers().allocate("eniip_veth", ATTACHMENT, NODE)


def test_teardown_gets_a_lost_lease_as_none():
    drivers = registered(good=Good())
    assert drivers.teardown("good", ATTACHMENT, None) == Outcome(changed=False)
    assert drivers.teardown("good", ATTACHMENT, LEASE) == Outcome(changed=True)


CALLS = {
    "terway_allocate": lambda d: d.allocate("m", ATTACHMENT, NODE),
    "terway_setup": lambda d: d.setup("m", ATTACHMENT, LEASE, NODE),
    "terway_teardown": lambda d: d.teardown("m", ATTACHMENT, LEASE),
    "terway_gc": lambda d: d.gc("m", (), NODE),
    "terway_claim": lambda d: d.claim("m", Pod(), NODE),
    "terway_preflight": lambda d: d.preflight("m", NODE),
    "terway_start": lambda d: d.start("m", None),
    "terway_stop": lambda d: d.stop("m"),
}


@pytest.mark.parametrize("hook", [name for name in CALLS if name not in ("terway_start", "terway_stop")])
def test_forgotten_return_breaks_the_contract(hook):
    with pytest.raises(DriverContractError, match=f"{hook}: returned None"):
        CALLS[hook](registered(m=answering(hook, lambda: None)))


@pytest.mark.parametrize("hook", CALLS)
def test_wrong_type_breaks_the_contract(hook):
    with pytest.raises(DriverContractError, match=f"'m', hook {hook}: returned a str"):
        CALLS[hook](registered(m=answering(hook, lambda: "ok")))


@pytest.mark.parametrize("hook", CALLS)
def test_coroutine_breaks_the_contract_and_is_closed(hook):
    async def later():
        return LEASE

    made = []
    with pytest.raises(DriverContractError, match="returned a coroutine"):
        CALLS[hook](registered(m=answering(hook, lambda: made.append(later()) or made[0])))
    assert made[0].cr_frame is None


def test_preflight_answers_problems_only():
    with pytest.raises(DriverContractError, match="returned a str where its contract says Problem"):
        registered(m=answering("terway_preflight", lambda: ["no ipvlan"])).preflight("m", NODE)


@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit("boom")])
@pytest.mark.parametrize("hook", CALLS)
def test_foreign_error_becomes_a_contract_error_with_its_text(hook, error):
    def fail():
        raise error

    with pytest.raises(DriverContractError, match="boom") as caught:
        CALLS[hook](registered(m=answering(hook, fail)))
    assert caught.value.__cause__ is error
    assert "boom" in caught.value.details
    assert "test_registry.py" in caught.value.details


def test_error_of_the_tree_passes():
    def fail():
        raise NoAddress("empty")

    with pytest.raises(NoAddress, match="empty"):
        registered(m=answering("terway_allocate", fail)).allocate("m", ATTACHMENT, NODE)


def test_absent_optional_hooks_have_an_answer():
    drivers = registered(m=Good())
    conflist = {"plugins": []}
    assert drivers.claim("m", Pod(), NODE) is True
    assert drivers.preflight("m", NODE) == []
    assert drivers.commands("m") is None
    assert drivers.conflist("m", conflist) is conflist
    drivers.start("m", None)
    drivers.stop("m")


def test_conflist_is_the_drivers_answer():
    class Chained(Good):
        @hookimpl
        def terway_conflist(self, conflist):
            return {**conflist, "plugins": [*conflist["plugins"], {"type": "tuning"}]}

    drivers = registered(m=Chained(), other=Good())
    assert drivers.conflist("m", {"plugins": []}) == {"plugins": [{"type": "tuning"}]}
    assert drivers.conflist("other", {"plugins": []}) == {"plugins": []}


def test_conflist_of_another_type_breaks_the_contract():
    class Wrong(Good):
        @hookimpl
        def terway_conflist(self, conflist):
            return [conflist]

    with pytest.raises(DriverContractError, match="returned a list"):
        registered(m=Wrong()).conflist("m", {})


def test_commands_are_a_typer_app():
    import typer

    app = typer.Typer()

    class WithCommands(Good):
        @hookimpl
        def terway_commands(self):
            return app

    assert registered(m=WithCommands()).commands("m") is app


# ---- selection


def claiming(answer):
    return answering("terway_claim", lambda: answer)


def test_drivers_are_asked_in_the_configured_order():
    drivers = registered(no=claiming(False), yes=claiming(True), silent=Good())
    assert drivers.select(Pod(), NODE, ("no", "yes", "silent")) == "yes"
    assert drivers.select(Pod(), NODE, ("no", "silent", "yes")) == "silent"


def test_driver_out_of_the_order_is_not_asked():
    drivers = registered(other=answering("terway_claim", lambda: 1 / 0), yes=claiming(True))
    assert drivers.select(Pod(), NODE, ("yes",)) == "yes"


def test_mode_that_is_not_installed_stops_the_search():
    drivers = registered(no=claiming(False), yes=claiming(True))
    with pytest.raises(UnknownDriver, match="eni"):
        drivers.select(Pod(), NODE, ("no", "eni", "yes"))
    assert drivers.select(Pod(), NODE, ("yes", "eni")) == "yes"


def test_pod_that_nobody_claims_is_named():
    with pytest.raises(InvalidConfig, match=r"\(no\) serves pod shop/cart"):
        registered(no=claiming(False)).select(Pod(namespace="shop", name="cart"), NODE, ("no",))


def test_no_driver_configured():
    with pytest.raises(InvalidConfig, match="no driver is configured"):
        registered(m=Good()).select(Pod(), NODE, ())
