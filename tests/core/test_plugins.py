"""Discovery: a broken plugin is told and never fatal, hooks are documented, lists import nothing heavy."""

from __future__ import annotations

import inspect
import json
import os
import statistics
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from recloom import hookspecs
from recloom.errors import ComponentImportError, PluginError
from recloom.plugins import GROUP, PluginHost

BROKEN = {
    "syntax": ("def register(:", "SyntaxError"),
    "imports": (
        "import a_package_that_is_not_there",
        "ModuleNotFoundError: No module named 'a_package_that_is_not_there'",
    ),
    "exits": ("raise SystemExit('licence expired')", "SystemExit: licence expired"),
    "empty": ("x = 1", "it has no register(catalog) function"),
    "raises": ("def register(catalog): catalog.models.add('GoneModel', 'm:M'); 1 / 0", "ZeroDivisionError"),
    "nopath": ("def register(catalog): catalog.models.add('M', 'just_a_name')", "'just_a_name' is no import path"),
    "nokind": ("def register(catalog): catalog.modells.add('M', 'm:M')", "no attribute 'modells'"),
    "twice": (
        "def register(catalog): catalog.models.add('New', 'm:M'); catalog.interactions.add('DotInteraction', 'm:M')",
        "interaction 'DotInteraction' is registered by plugin 'dlrm' and by plugin 'twice'",
    ),
}


def write_plugins(folder: Path, sources: dict[str, str]) -> list[EntryPoint]:
    """Write modules and a .dist-info that makes them plugins of whoever has `folder` on sys.path."""
    points = []
    for name, source in sources.items():
        (folder / f"stranger_{name}.py").write_text(f"'''Plugin {name}.'''\nfrom recloom import hookimpl\n{source}\n")
        points.append(EntryPoint(name, f"stranger_{name}", GROUP))
    info = folder / "strangers-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.2\n")
    lines = [f"{point.name} = {point.value}" for point in points]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")
    return points


def recloom(folder: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recloom.cli.main", *argv],
        env={**os.environ, "PYTHONPATH": str(folder), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_broken_plugins_are_listed_with_their_reasons_and_everything_else_works(tmp_path: Path) -> None:
    good = (
        "@hookimpl\ndef register(catalog):\n    catalog.interactions.add('Fine', 'stranger_good:Fine', summary='fine')"
    )
    write_plugins(tmp_path, {**{name: source for name, (source, _) in BROKEN.items()}, "good": good})
    listed = recloom(tmp_path, "plugins", "--json")
    assert listed.returncode == 0, listed.stderr
    found = {row["name"]: row for row in json.loads(listed.stdout)}
    for name, (_, reason) in BROKEN.items():
        assert reason in found[name]["error"], name
        assert found[name]["components"] == 0, "a plugin registers all of its components or none"
    assert found["good"] == {**found["good"], "error": "", "components": 1, "origin": "strangers 1.2"}
    assert found["good"]["summary"] == "Plugin good."
    assert found["dlrm"]["error"] == ""
    text = recloom(tmp_path, "plugins").stdout
    assert "ZeroDivisionError: division by zero" in text
    assert "Traceback" not in text
    assert "stranger_raises.py" in recloom(tmp_path, "plugins", "--verbose").stdout
    names = [row["name"] for row in json.loads(recloom(tmp_path, "components", "--json").stdout)]
    assert {"DLRM", "DotInteraction", "Fine"} <= set(names)
    assert not {"GoneModel", "New"} & set(names)


def test_plugins_can_be_left_out(tmp_path: Path) -> None:
    write_plugins(tmp_path, {"exits": BROKEN["exits"][0]})
    rows = json.loads(recloom(tmp_path, "plugins", "--json", RECLOOM_DISABLE_PLUGINS="exits, dcn").stdout)
    assert {row["name"] for row in rows if "RECLOOM_DISABLE_PLUGINS" in row["error"]} == {"exits", "dcn"}


def test_a_component_that_cannot_be_imported_says_which_extra_to_install(tmp_path: Path, monkeypatch) -> None:
    source = """
        def register(catalog):
            catalog.models.add("A", "stranger_lazy_parts:A", extra="graphs")
            catalog.models.add("B", "stranger_lazy:Missing")
    """
    points = write_plugins(tmp_path, {"lazy": textwrap.dedent(source)})
    (tmp_path / "stranger_lazy_parts.py").write_text("raise OSError('libgraph.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    catalog = PluginHost(points).catalog
    with pytest.raises(ComponentImportError, match=r"(?s)model 'A' \(plugin 'lazy'\).*libgraph.*'recloom\[graphs\]'"):
        catalog.models.load("A")
    theirs = PluginHost(entry_points(group=GROUP, name="lazy")).catalog  # found on the path, with its distribution
    with pytest.raises(ComponentImportError, match=r"pip install 'strangers\[graphs\]'"):
        theirs.models.load("A")
    with pytest.raises(ComponentImportError, match=r"(?s)model 'B'.*has no attribute 'Missing'.*stranger_lazy:Missing"):
        catalog.models.load("B")


def test_hooks_run_in_the_order_of_names(tmp_path: Path, monkeypatch) -> None:
    source = "def register(catalog): pass\n@hookimpl\ndef summarize(module): return [(__name__, '')]"
    points = write_plugins(tmp_path, {name: source for name in ("b", "c", "a")})
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = PluginHost(points).hook.summarize(module=None)
    assert [row[0][0] for row in rows] == ["stranger_a", "stranger_b", "stranger_c"]


def test_a_plugin_that_fails_in_a_hook_is_named(tmp_path: Path, monkeypatch) -> None:
    hooks = {
        "configure_module": "module",
        "configure_strategy": "strategy, module",
        "on_parameters_updated": "module, step",
        "summarize": "module",
    }
    lines = [f"@hookimpl\ndef {name}({names}): {{}}['gone']" for name, names in hooks.items()]
    fine = "def register(catalog): pass\n@hookimpl\ndef summarize(module): return [('fine', 'yes')]"
    points = write_plugins(tmp_path, {"bad": "\n".join(["def register(catalog): pass", *lines]), "good": fine})
    monkeypatch.syspath_prepend(str(tmp_path))
    hook = PluginHost(points).hook
    specs = {name for name, value in vars(hookspecs).items() if hasattr(value, "recloom_spec")}
    assert specs == {"register", *hooks}  # a new hook is to fail well, too
    for name, names in hooks.items():
        arguments = dict.fromkeys(names.split(", "))
        if name == "summarize":
            rows = [row for found in hook.summarize(**arguments) for row in found]
            assert rows == [("plugin bad", "failed in summarize: KeyError: 'gone'"), ("fine", "yes")]
        else:
            with pytest.raises(
                PluginError, match=rf"plugin 'bad' failed in {name}: KeyError(?s:.*)DISABLE_PLUGINS=bad"
            ):
                getattr(hook, name)(**arguments)


def test_every_hook_is_documented(root: Path) -> None:
    page = (root / "docs" / "write-a-plugin.md").read_text()
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "recloom_spec")]
    assert {"register", "configure_module", "summarize"} <= set(hooks)
    for hook in hooks:
        function = getattr(hookspecs, hook)
        signature = f"{hook}({', '.join(inspect.signature(function).parameters)})"
        assert f"### `{signature}`" in page, f"docs/write-a-plugin.md has no section on {signature}"
        assert len(inspect.getdoc(function) or "") > 40


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["plugins"], ["components"], ["bench", "--help"], ["reproduce", "--help"], ["new-plugin", "--help"]],
)
def test_lists_and_help_import_no_torch(argv: list[str]) -> None:
    code = (
        "import resource, sys; from recloom.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print([m for m in ('torch', 'lightning', 'numpy', 'matplotlib') if m in sys.modules], file=sys.stderr)\n"
        "print(used.ru_utime + used.ru_stime, file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
        imported, used = done.stderr.splitlines()[-2:]
        assert imported == "[]"
        seconds.append(float(used))
    print(f"recloom {' '.join(argv)}: {statistics.median(seconds):.3f} CPU seconds")  # to be below 0.2
