"""Completion of the command line in bash, made from the argument parser itself."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Collection, Iterator
from typing import Any

__all__ = ["bash"]

# `python` may be completed by somebody else already, who goes on with all but `-m xenpm`.
_SCRIPT = """\
# Completion of `python -m xenpm` for bash; made by `python -m xenpm completion bash`.

_xenpm_others=${_xenpm_others-$(complete -p python3 2>/dev/null || complete -p python 2>/dev/null)}

_xenpm() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    local verb= i words= IFS=$' \\t\\n'
    COMPREPLY=()
    if [[ ${COMP_WORDS[1]} != -m || ${COMP_WORDS[2]} != xenpm || $COMP_CWORD -lt 3 ]]; then
        if [[ $_xenpm_others =~ -F\\ ([^ ]+) && ${BASH_REMATCH[1]} != _xenpm ]] &&
            declare -F "${BASH_REMATCH[1]}" >/dev/null; then
            "${BASH_REMATCH[1]}" "$@"
        else
            compopt -o default
        fi
        return
    fi
    for ((i = 3; i < COMP_CWORD; i++)); do
        case $verb/${COMP_WORDS[i]} in
            @VERBS@) verb=$verb/${COMP_WORDS[i]} ;;
        esac
    done
    if [[ $cur == = ]]; then  # bash takes the = of --option=value for a word
        cur=
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    case $verb:$prev in
@VALUES@
    esac
    if [[ $cur == -* ]]; then
        case $verb in
@OPTIONS@
        esac
    else
        case $verb in
@ARGUMENTS@
        esac
    fi
    IFS=$'\\n'
    COMPREPLY+=($(compgen -W "$words" -- "$cur"))
}

_xenpm_domains() {
    local name
    while IFS= read -r name; do  # not compgen -W, which would run what a name has in $( )
        [[ $name == "$1"* ]] && COMPREPLY+=("$(printf %q "$name")$2")
    done < <("${COMP_WORDS[0]}" -m xenpm completion domains 2>/dev/null)
    [[ -z $2 ]] || compopt -o nospace
}

_xenpm_files() {
    local IFS=$'\\n'
    compopt -o filenames
    COMPREPLY=($(compgen -f -- "$1"))
}

complete -F _xenpm python python3
"""


def bash(
    parser: argparse.ArgumentParser,
    domains: Collection[Callable[[str], Any]],
    rules: Collection[Callable[[str], Any]],
    files: Collection[Callable[[str], Any]],
) -> str:
    """The script to be sourced.

    Args:
        parser: the whole command line's.
        domains: the types of arguments that are domains' names.
        rules: of those that are a domain's name, an equals sign and more.
        files: of those that are files or directories.
    """

    def words_of(action: argparse.Action) -> str:
        if action.choices is not None:
            return f"words={shlex.quote(_lines(action.choices))}"
        if action.type in domains:
            return '_xenpm_domains "$cur" ""; return'
        if action.type in rules:
            return '_xenpm_domains "$cur" =; return'
        if action.type in files:
            return '_xenpm_files "$cur"; return'
        return "return"  # whatever it is, it can only be typed

    verbs, values, options, arguments = [], [], [], []
    for path, each in _parsers(parser, ""):
        if path:
            verbs.append(path)
        named = [action for action in each._actions if action.option_strings]
        for action in named:
            if action.nargs != 0:
                spelled = "|".join(f"{path}:{name}" for name in action.option_strings)
                values.append(f"        {spelled}) {words_of(action)} ;;")
        names = _lines(name for action in named for name in action.option_strings)
        options.append(f"            '{path}') words={shlex.quote(names)} ;;")
        for action in each._actions:
            if not action.option_strings:
                arguments.append(f"            '{path}') {words_of(action)} ;;")
    script = _SCRIPT.replace("@VERBS@", "|".join(verbs))
    for mark, lines in (("@VALUES@", values), ("@OPTIONS@", options), ("@ARGUMENTS@", arguments)):
        script = script.replace(mark, "\n".join(lines))
    return script


def _parsers(
    parser: argparse.ArgumentParser, path: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """A parser and those of its verbs, each with its path, as ``/host/plan``."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, each in action.choices.items():
                yield from _parsers(each, f"{path}/{verb}")


def _lines(words: Any) -> str:
    return "\n".join(words)
