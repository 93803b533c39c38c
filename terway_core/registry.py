"""Which drivers there are, who is broken and why, and one typed call for each hook.

Drivers come from the entry-point group ``terway.drivers``; the entry point's name is the mode, its value an
*instance*. The group ``terway.plugins`` holds wrappers (``hookimpl(wrapper=True)``) that run around every
driver's hooks. Each is loaded on its own: a broken one is listed with its cause and stops nobody else.
"""

from __future__ import annotations

import inspect
import logging
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pluggy

from terway_core import hookspecs
from terway_core.errors import DriverContractError, InvalidConfig, TerwayError, UnknownDriver
from terway_core.types import Attachment, GcReport, Lease, Node, Outcome, Pod, Problem, Services, Wiring

if TYPE_CHECKING:
    import typer

    from terway_core.config import Config

__all__ = ["DRIVERS_GROUP", "PLUGINS_GROUP", "REQUIRED_HOOKS", "DriverInfo", "Drivers"]

DRIVERS_GROUP: Final = "terway.drivers"
PLUGINS_GROUP: Final = "terway.plugins"
#: No options.
_NONE: Final[Mapping[str, Any]] = MappingProxyType({})
REQUIRED_HOOKS: Final = ("terway_allocate", "terway_setup", "terway_teardown", "terway_gc")

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverInfo:
    """What is known of a driver, or of a wrapper plugin, without asking it.

    :param mode: the entry point's name.
    :param distribution: name of the package that offers it; ``""`` when it was registered by hand.
    :param summary: the package's one-line description.
    :param hooks: names of the hooks it implements.
    :param requirements: the package's requirements, without those of its extras.
    :param problem: why it cannot be used; ``""`` when it can.
    """

    mode: str
    distribution: str = ""
    version: str = ""
    summary: str = ""
    hooks: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    problem: str = ""

    @property
    def origin(self) -> str:
        """The package and its version, for messages."""
        return f"{self.distribution} {self.version}".strip() or "a driver registered by hand"


class Drivers:
    """The drivers of this process. ``Drivers.installed()`` finds them; ``Drivers()`` is empty."""

    def __init__(self) -> None:
        self._manager = _new_manager()
        self._infos: list[DriverInfo] = []
        self._wrappers: list[DriverInfo] = []
        self._plugins: dict[str, object] = {}
        self._callers: dict[tuple[str, str], pluggy.HookCaller] = {}

    @classmethod
    def installed(cls) -> Drivers:
        """Everything that the installed packages offer, in the order of the modes' names."""
        drivers = cls()
        for point in _entry_points(PLUGINS_GROUP):
            drivers.register_wrapper(point.name, *_load(point))
        for point in _entry_points(DRIVERS_GROUP):
            drivers.register(point.name, *_load(point))
        return drivers

    @property
    def infos(self) -> tuple[DriverInfo, ...]:
        """All drivers, usable or not. A mode that two packages offer is there twice."""
        return tuple(self._infos)

    @property
    def wrappers(self) -> tuple[DriverInfo, ...]:
        """All wrapper plugins, usable or not."""
        return tuple(self._wrappers)

    def info(self, mode: str) -> DriverInfo:
        """What is known of a usable driver.

        :raises UnknownDriver: it is not installed or cannot be used; the message says which and why.
        """
        found = [info for info in self._infos if info.mode == mode]
        if not found or found[0].problem:
            raise UnknownDriver(mode, reason=found[0].problem if found else "")
        return found[0]

    def register(self, mode: str, plugin: object, about: DriverInfo | None = None) -> DriverInfo:
        """Add a driver. What is wrong with it is in the answer's ``problem``; nothing is raised.

        Two drivers of one mode: neither can be used, for which one won would be a matter of luck.

        :param about: what its package says of it.
        """
        info = _examine(replace(about or DriverInfo(mode=mode), mode=mode), plugin, wraps=False)
        rivals = [other for other in self._infos if other.mode == mode]
        if rivals:
            origins = " and by ".join(sorted(other.origin for other in (*rivals, info)))
            problem = f"mode {mode!r} is offered by {origins}; uninstall all but one"
            self._infos = [replace(i, problem=problem) if i.mode == mode else i for i in self._infos]
            info = replace(info, problem=problem)
        info = self._admit(info, plugin)
        if not info.problem:
            self._plugins[mode] = plugin
        self._infos.append(info)
        return info

    def register_wrapper(self, name: str, plugin: object, about: DriverInfo | None = None) -> DriverInfo:
        """Add a wrapper plugin, which runs around the hooks of every driver. Raises nothing, as above."""
        info = _examine(replace(about or DriverInfo(mode=name), mode=name), plugin, wraps=True)
        info = self._admit(info, plugin)
        self._wrappers.append(info)
        return info

    def select(self, pod: Pod, node: Node, order: Sequence[str]) -> str:
        """The first mode in ``order`` whose driver says that the pod is its own.

        A mode that cannot be used stops the search: the next driver would give the pod another network
        than the one meant for it.

        :raises UnknownDriver: the search came to a mode that is not installed or broken.
        :raises InvalidConfig: no driver is configured, or none claims the pod.
        """
        for mode in order:
            if self.claim(mode, pod, node):
                return mode
        name = f"{pod.namespace}/{pod.name}" if pod.name else "without a name"
        raise InvalidConfig(
            f"none of the configured drivers ({', '.join(order)}) serves pod {name}; "
            "put a driver without conditions at the end of `drivers`"
            if order
            else "no driver is configured; name at least one in `drivers`"
        )

    def allocate(self, mode: str, attachment: Attachment, node: Node) -> Lease:
        """``terway_allocate``. This and every hook below raises UnknownDriver, DriverContractError and what
        the driver itself raises of the :class:`~terway_core.errors.TerwayError` tree."""
        return self._call(mode, "terway_allocate", Lease, attachment=attachment, node=node)

    def setup(self, mode: str, attachment: Attachment, lease: Lease, node: Node) -> Wiring:
        """``terway_setup``, with what the wrapper plugins add to its answer."""
        return self._call(mode, "terway_setup", Wiring, attachment=attachment, lease=lease, node=node)

    def teardown(self, mode: str, attachment: Attachment, lease: Lease | None) -> Outcome:
        """``terway_teardown``."""
        return self._call(mode, "terway_teardown", Outcome, attachment=attachment, lease=lease)

    def gc(self, mode: str, live: tuple[Attachment, ...], node: Node) -> GcReport:
        """``terway_gc``."""
        return self._call(mode, "terway_gc", GcReport, live=live, node=node)

    def claim(self, mode: str, pod: Pod, node: Node) -> bool:
        """``terway_claim``; a driver without it takes every pod."""
        claimed = self._optional(mode, "terway_claim", bool, pod=pod, node=node)
        return claimed is None or claimed

    def preflight(self, mode: str, node: Node, options: Mapping[str, Any] = _NONE) -> list[Problem]:
        """``terway_preflight``; a driver without it needs nothing."""
        problems = self._optional(mode, "terway_preflight", list, node=node, options=options) or []
        return [_checked(mode, "terway_preflight", problem, Problem) for problem in problems]

    def start(self, mode: str, services: Services) -> None:
        """``terway_start``."""
        self._optional(mode, "terway_start", type(None), services=services)

    def stop(self, mode: str) -> None:
        """``terway_stop``."""
        self._optional(mode, "terway_stop", type(None))

    def commands(self, mode: str) -> typer.Typer | None:
        """``terway_commands``; None when the driver has none."""
        import typer  # the daemon has no use for it

        return self._optional(mode, "terway_commands", typer.Typer)

    def conflist(
        self, mode: str, conflist: dict[str, Any], options: Mapping[str, Any] = _NONE
    ) -> dict[str, Any]:
        """``terway_conflist``; a driver without it leaves the conflist as it is."""
        # The one hook that is not firstresult: its answer is a list, of at most one element here.
        answers = self._call(mode, "terway_conflist", list, conflist=conflist, options=options)
        return _checked(mode, "terway_conflist", answers[0], dict) if answers else conflist

    def rbac(self, mode: str) -> list[dict[str, list[str]]]:
        """``terway_rbac``; a driver without it asks nothing of the Kubernetes API."""
        rules = self._optional(mode, "terway_rbac", list) or []
        return [_checked(mode, "terway_rbac", rule, dict) for rule in rules]

    def manifests(self, mode: str, config: Config, image: str) -> list[dict[str, Any]]:
        """``terway_manifests``; a driver without it needs no more than the daemon."""
        found = self._optional(mode, "terway_manifests", list, config=config, image=image) or []
        return [_checked(mode, "terway_manifests", manifest, dict) for manifest in found]

    def _call(self, mode: str, hook: str, want: type[_T], **arguments: object) -> _T:
        return _checked(mode, hook, self._ask(mode, hook, arguments), want)

    def _optional(self, mode: str, hook: str, want: type[_T], **arguments: object) -> _T | None:
        """Like ``_call``; None when the driver does not implement the hook and no wrapper answers for it."""
        answer = self._ask(mode, hook, arguments)
        if answer is None and hook not in self.info(mode).hooks:
            return None
        return _checked(mode, hook, answer, want)

    def _ask(self, mode: str, hook: str, arguments: dict[str, object]) -> object:
        """Call one hook of one driver, inside the wrappers."""
        try:
            return self._caller(mode, hook)(**arguments)
        except (TerwayError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit too: a driver must not end the daemon
            contract = DriverContractError(mode, hook, f"raised {_one_line(error)}")
            # The innermost frames tell a fault of the driver from one of a wrapper around it.
            contract.details = "".join(traceback.format_exception(error, limit=-2, chain=False)).strip()
            raise contract from error

    def _caller(self, mode: str, hook: str) -> pluggy.HookCaller:
        caller = self._callers.get((mode, hook))
        if caller is None:
            self.info(mode)
            others = [plugin for other, plugin in self._plugins.items() if other != mode]
            caller = self._callers[mode, hook] = self._manager.subset_hook_caller(hook, others)
        return caller

    def _admit(self, info: DriverInfo, plugin: object) -> DriverInfo:
        self._callers.clear()
        if info.problem:
            return info
        try:
            self._manager.register(plugin, f"{info.mode} of {info.origin}")
        except ValueError:
            return replace(info, problem="the same object is registered under another name already")
        return info


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _load(point: metadata.EntryPoint) -> tuple[object, DriverInfo]:
    """What an entry point names, and what its package says of it; the import's failure is the ``problem``."""
    about = DriverInfo(mode=point.name)
    try:
        if point.dist is not None:
            about = replace(
                about,
                distribution=point.dist.name,
                version=point.dist.version,
                summary=str(point.dist.metadata.json.get("summary", "")),
                requirements=tuple(r for r in point.dist.requires or () if "extra ==" not in r),
            )
        return point.load(), about
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and SyntaxError too: it is foreign code
        return None, replace(about, problem=f"{point.value} cannot be loaded: {_one_line(error)}")


def _entry_points(group: str) -> Iterator[metadata.EntryPoint]:
    """The group's entry points, by name. ``metadata.entry_points()`` fails as a whole when one installed
    package, ours or not, has an unreadable file; this leaves out that package alone."""
    found: dict[str, list[metadata.EntryPoint]] = {}
    for dist in metadata.distributions():
        try:
            name = re.sub(r"[-_.]+", "-", dist.name).lower()
            # Of one distribution found twice on sys.path the first counts, as for imports.
            found.setdefault(name, list(dist.entry_points.select(group=group)))
        except Exception as error:
            _log.warning("package left out, its metadata cannot be read: %s", _one_line(error))
    yield from sorted((point for points in found.values() for point in points), key=lambda p: p.name)


def _examine(info: DriverInfo, plugin: object, *, wraps: bool) -> DriverInfo:
    """Fill in ``hooks``, and ``problem`` with the first reason why the plugin cannot be used."""
    if info.problem:
        return info
    if inspect.isclass(plugin):
        return replace(info, problem=f"{plugin.__qualname__} is a class; name an instance of it")
    scratch = _new_manager()  # a plugin that fails half-way leaves its mark in this one only
    try:
        hash(plugin)
        scratch.register(plugin)
        scratch.check_pending()
        impls = {
            caller.name: impl
            for caller in scratch.get_hookcallers(plugin) or ()
            for impl in caller.get_hookimpls()
        }
        for impl in impls.values():
            inspect.signature(impl.function).bind(*impl.argnames)
    except Exception as error:
        return replace(info, problem=_one_line(error))
    info = replace(info, hooks=tuple(sorted(impls)))

    asynchronous = [n for n, i in impls.items() if inspect.iscoroutinefunction(i.function)]
    if asynchronous:
        return replace(info, problem=f"hooks are synchronous, these are not: {', '.join(asynchronous)}")
    wrappers = [n for n, i in impls.items() if i.wrapper or i.hookwrapper]
    if wraps and len(wrappers) < len(impls):
        plain = ", ".join(sorted(impls.keys() - wrappers))
        return replace(info, problem=f"a plugin only wraps hooks, with hookimpl(wrapper=True): {plain}")
    if not wraps and wrappers:
        return replace(info, problem=f"a driver implements hooks, plugins wrap them: {', '.join(wrappers)}")
    missing = [name for name in REQUIRED_HOOKS if name not in impls]
    if not wraps and missing:
        return replace(info, problem=f"required hooks are missing: {', '.join(missing)}")
    return info


def _checked(mode: str, hook: str, answer: object, want: type[_T]) -> _T:
    """:raises DriverContractError: the answer is of another type; None is what a forgotten return gives."""
    if isinstance(answer, want):
        return answer
    if inspect.iscoroutine(answer):
        answer.close()  # never awaited: the warning would come later, in somebody else's work
    returned = "None" if answer is None else f"a {type(answer).__name__}"
    raise DriverContractError(mode, hook, f"returned {returned} where its contract says {want.__name__}")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
