"""What this manual needs beyond Sphinx: pages made from the code, and checks against it."""

from __future__ import annotations

import argparse
import ast
import re
import textwrap
from functools import lru_cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import xenpm
from xenpm import cli

_log = logging.getLogger(__name__)
_COLON = "\ue000"  # stands for one where it would be misread
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)")  # would become a dash and a word
_ALIAS = re.compile(r"Alias for field number \d+")


class _Generated(SphinxDirective):
    """A directive whose content is reStructuredText made by `lines`."""

    def lines(self) -> list[str]:
        """The content."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        parent = nodes.Element()
        parent.document = self.state.document
        text = StringList(self.lines(), source=f"<{self.name}>")
        self.state.nested_parse(text, self.content_offset, parent, match_titles=True)
        return parent.children


class CommandLine(_Generated):
    """``.. command-line:: [VERB [VERB]]``: usage and options, as the argument parser has them."""

    optional_arguments = 2

    def lines(self) -> list[str]:  # noqa: D102
        parser = cli._parser()
        for verb in self.arguments:
            verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
            parser = verbs.choices[verb]
        parser.color = False  # Python 3.14 would colour the text in a terminal
        lines = [".. code-block:: text", "", *self._usage(parser), ""]
        for action in sorted(parser._actions, key=lambda action: bool(action.option_strings)):
            if isinstance(action, argparse._SubParsersAction):
                continue
            lines += [self._term(action), f"   {self._help(parser, action)}", ""]
        return lines

    @staticmethod
    def _usage(parser: argparse.ArgumentParser) -> list[str]:
        text = " ".join(parser.format_usage().removeprefix("usage: ").split())
        wrap = textwrap.TextWrapper(76, initial_indent="   ", subsequent_indent=" " * 7)
        wrap.break_on_hyphens = False
        return wrap.wrap(text)

    @staticmethod
    def _term(action: argparse.Action) -> str:
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        if not action.option_strings:
            return f"``{metavar or action.dest}``"
        names = (f"{name} {metavar}".strip() for name in action.option_strings)
        return ", ".join(f"``{name}``" for name in names)

    @staticmethod
    def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
        values: dict[str, Any] = {**vars(action), "prog": parser.prog}
        text = _OPTION.sub(r"``\1``", (action.help or "") % values)
        return text[:1].upper() + text[1:] + "."


class Changelog(_Generated):
    """``.. changelog:: FILE``: a Markdown file of headings, lists, paragraphs and code spans."""

    required_arguments = 1

    def lines(self) -> list[str]:  # noqa: D102
        path = Path(self.env.srcdir, self.arguments[0]).resolve()
        self.env.note_dependency(str(path))
        lines: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines():
            heading = re.match(r"(#+) +(.*)", line)
            if heading is None:
                lines.append(re.sub(r"`([^`]+)`", r"``\1``", line))
            elif len(heading[1]) > 1:  # the first is the page's own title
                title = heading[2]
                lines += ["", title, "-~"[len(heading[1]) - 2] * len(title), ""]
        return lines


def _public_bases(*args: Any) -> None:
    """Show the public classes behind private ones as a class's bases."""
    bases: list[Any] = args[-1]
    at = 0
    while at < len(bases):
        base = bases[at]
        if isinstance(base, type) and base.__name__.startswith("_"):
            bases[at : at + 1] = [b for b in base.__bases__ if b not in bases]
        else:
            at += 1


@lru_cache
def _stubs(module: str) -> dict[str, tuple[str, str]]:
    """The methods of a compiled module's stub, by full name: their parameters and results."""
    path = Path(xenpm.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".pyi")
    methods: dict[str, tuple[str, str]] = {}
    for kind in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(kind, ast.ClassDef):
            continue
        for method in kind.body:
            if isinstance(method, ast.FunctionDef):
                del method.args.args[0]  # self
                parts = (
                    f"({ast.unparse(method.args)})",
                    ast.unparse(method.returns or ast.Constant(None)),
                )
                name = f"{module}.{kind.name}.{method.name}"
                methods[name] = tuple(part.replace("builtins.", "") for part in parts)
    return methods


def _stub_signature(*args: Any) -> tuple[str, str] | None:
    """Give compiled methods the signatures of their stubs, which have all types."""
    what: str = args[1]
    name: str = args[2]
    if what != "method" or not name.startswith("xenpm._ext."):
        return None
    return _stubs(name.rpartition(".")[0].rpartition(".")[0]).get(name)


def _no_types(*args: Any) -> None:
    """Keep napoleon from taking an attribute's "text: more text" for "type: description"."""
    what: str = args[1]
    lines: list[str] = args[-1]
    if what in ("property", "attribute", "data") and lines:
        lines[0] = lines[0].replace(":", _COLON)


def _no_colons(*args: Any) -> None:
    """Put back what `_no_types` has hidden from napoleon."""
    lines: list[str] = args[-1]
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def _no_aliases(*args: Any) -> None:
    """Drop what Python itself says of the fields of named tuples."""
    lines: list[str] = args[-1]
    lines[:] = [line for line in lines if not _ALIAS.fullmatch(line)]


def _public_names(
    app: Sphinx, env: BuildEnvironment, node: Any, contnode: nodes.Element
) -> nodes.Node | None:
    """Lead a name of any module of xenpm to where the public one is documented."""
    target = node.get("reftarget", "")
    module, _, name = target.rpartition(".")
    if node.get("refdomain") != "py" or name not in xenpm.__all__:
        return None
    if module and not module.startswith("xenpm."):
        return None
    python = env.get_domain("py")
    return python.resolve_xref(
        env, node["refdoc"], app.builder, "obj", f"xenpm.{name}", node, contnode
    )


def _no_links(app: Sphinx, doctree: nodes.document, _docname: str) -> None:
    """Leave only the words of references in the page for man(1), which has nowhere to lead to."""
    if app.builder.name == "man":
        for reference in list(doctree.findall(nodes.reference)):
            reference.parent.replace(reference, reference.children)


def _check_complete(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that no page documents, and of exceptions without advice."""
    objects = {entry[0] for entry in env.get_domain("py").get_objects()}
    for name in xenpm.__all__:
        if not name.startswith("__") and f"xenpm.{name}" not in objects:
            _log.warning("xenpm.%s is public and documented nowhere", name)
    advice = Path(app.srcdir, "troubleshooting.rst").read_text(encoding="utf-8")
    for name in xenpm.__all__:
        kind = getattr(xenpm, name)
        if isinstance(kind, type) and issubclass(kind, Exception) and f"`{name}`" not in advice:
            _log.warning("troubleshooting.rst says nothing of %s", name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything with Sphinx."""
    app.add_directive("command-line", CommandLine)
    app.add_directive("changelog", Changelog)
    app.connect("autodoc-process-bases", _public_bases)
    app.connect("autodoc-process-signature", _stub_signature)
    app.connect("autodoc-process-docstring", _no_types, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", _no_colons, priority=600)  # behind it
    app.connect("autodoc-process-docstring", _no_aliases)
    app.connect("missing-reference", _public_names)
    app.connect("doctree-resolved", _no_links)
    app.connect("env-check-consistency", _check_complete)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
