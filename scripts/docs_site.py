"""What `make docs` adds to MkDocs: pages made of the code, formulas, a look for what is missing.

mkdocs.yml names this file as its hooks. Every page of the reference is made of a package's public
names, the command line's of its help, the first page of the README; and if the finished site lacks
a public name the build fails.
"""

import ast
import html
import io
import json
import logging
import pkgutil
import re
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import griffe
from as_installed import ROOT, link_package
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from natten_zoo import cli

log = logging.getLogger("mkdocs.hooks.docs_site")  # with --strict a warning fails the build

WORKER = "https://unpkg.com/iframe-worker/shim"  # what the theme would fetch

# A page for each package: the names in its __all__, then those of its modules that match.
PACKAGES = {
    "ops": "",
    "layers": "*",
    "models": "*",
    "pretrained": "*",
    "tasks": "*",
    "data": "*",
    "training": "*",
    "viz": "*",
    "export": "*",
    "compat": "v0*",
    "configs": "*",
    "metal": "",
}

# Pages that lie outside of docs/, and what they are in the site.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
}


class TupleTargets(griffe.Extension):
    """Lets griffe see the names of `a, b = ...` in a module, which it passes over."""

    def on_node(self, *, node: ast.AST, agent: griffe.Visitor, **_: Any) -> None:
        """Makes an attribute of each name."""
        if isinstance(node, ast.Assign) and agent.current.is_module:
            for target in node.targets:
                for name in target.elts if isinstance(target, ast.Tuple) else ():
                    if isinstance(name, ast.Name):
                        found = griffe.Attribute(name.id, lineno=node.lineno, endlineno=node.lineno)
                        agent.current.set_member(name.id, found)


def public_names(module: ModuleType) -> list[str]:
    """What a module offers: its `__all__`, else what it defines under a name without `_`."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return [n for n, v in own.items() if getattr(v, "__module__", None) == module.__name__]


def reference(name: str) -> dict[str, list[str]]:
    """The modules that a package's page shows, the package first, and their public names."""
    package = import_module(f"natten_zoo.{name}")
    modules = {package.__name__: public_names(package)}
    shown = {id(getattr(package, exported)) for exported in modules[package.__name__]}
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        last = info.name.rpartition(".")[2]
        if fnmatch(last, PACKAGES[name]) and not last.startswith("_"):
            module = import_module(info.name)
            modules[info.name] = [
                n for n in public_names(module) if id(getattr(module, n)) not in shown
            ]
    return modules


def reference_page(name: str) -> str:
    """The page of a package, in Markdown."""
    parts = []
    for module, names in reference(name).items():
        options = {"members": names, "heading_level": 2 if parts else 1}
        if name == "compat":  # whose switches are made in pairs, without a docstring each
            options["show_if_no_docstring"] = True
        parts.append(f"::: {module}\n    options: {json.dumps(options)}\n")
    return "\n".join(parts)


def command_page() -> str:
    """The page of the command line: the help of every verb."""
    parts = ["# Command line\n\nWhat `natten-zoo VERB --help` prints.\n"]
    for verb in cli.verbs():
        with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
            cli.main([verb, "--help"])
        parts.append(f"## {verb}\n\n```text\n{printed.getvalue()}```\n")
    return "\n".join(parts)


def moved(text: str) -> str:
    """A page from outside of docs/ with its links as they are in the site."""
    for path, page in OUTSIDE.items():
        text = text.replace(f"]({path}", f"]({page}")
    return text.replace("](docs/", "](")


def on_startup(**_: Any) -> None:
    """Lays out the package as it installs, before mkdocstrings looks for the folder."""
    folder = ROOT / "build" / "as_installed"
    shutil.rmtree(folder, ignore_errors=True)
    link_package(folder)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    made = {f"api/{name}.md": reference_page(name) for name in PACKAGES}
    made["command-line.md"] = command_page()
    made |= {page: moved((ROOT / path).read_text()) for path, page in OUTSIDE.items()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to what the site has not, such as sources, become their text."""
    return re.sub(r"\[([^]]+)\]\(\.\./[^)]+\)", r"\1", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas become MathML, which browsers draw without a script."""

    def drawn(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return convert(html.unescape(found[2]).strip(), display=display)

    pattern = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(pattern, drawn, content, flags=re.S)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Has pages that are opened as files find what lets them search beside them, not on the Web."""
    return output.replace(WORKER, get_relative_url("scripts/file_worker.js", page.url))


def on_post_template(output: str, **_: Any) -> str:
    """The same for pages that aren't made of Markdown."""
    return output.replace(WORKER, "scripts/file_worker.js")


def missing(site: Path) -> Iterator[str]:
    """The public names that no page of the finished site defines."""
    text = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    defined = set(re.findall(r'\bid="([\w.]+)"', text))
    for name in PACKAGES:
        for module, names in reference(name).items():
            yield from (f"{module}.{n}" for n in names if f"{module}.{n}" not in defined)


def on_post_build(config: MkDocsConfig) -> None:
    """Complains of public names that the reference lacks, and of pages that fetch a script."""
    site = Path(config.site_dir)
    for name in missing(site):
        log.warning("The reference lacks %s.", name)
    for page in site.rglob("*.html"):
        if found := re.search(
            r'<(?:script|link)\b[^>]*(?:src|href)="https?://[^"]+', page.read_text()
        ):
            log.warning("%s fetches from the Web: %s", page.relative_to(site), found[0])
