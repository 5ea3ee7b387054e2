"""Completion of the command line in bash, fish and zsh, made from the argument parser itself."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["Kinds", "bash", "fish", "zsh"]

# `python` may be completed by somebody else already, who goes on with all but `-m xenpm`.
_BASH = """\
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

_FISH = """\
# Completion of `python -m xenpm` for fish; made by `python -m xenpm completion fish`.

function __xenpm_at --argument-names wanted
    set -l words (commandline -opc)
    test (count $words) -ge 3; and test "$words[2] $words[3]" = "-m xenpm"; or return 1
    set -l verb ""
    for word in $words[4..]
        if contains -- $verb/$word @VERBS@
            set verb $verb/$word
        end
    end
    test "$verb" = "$wanted"
end

function __xenpm_domains --argument-names behind
    set -l words (commandline -opc)
    for name in ($words[1] -m xenpm completion domains 2>/dev/null)
        echo $name"$behind"
    end
end

for python in python python3
@LINES@
end
"""


_ZSH = """\
# Completion of `python -m xenpm` for zsh; made by `python -m xenpm completion zsh`.
# To be sourced behind compinit.

_xenpm_others=${_xenpm_others-${_comps[python3]:-${_comps[python]}}}

_xenpm() {
    local verb= word prev=$words[CURRENT-1]
    if [[ $words[2] != -m || $words[3] != xenpm || $CURRENT -lt 4 ]]; then
        if [[ -n $_xenpm_others && $_xenpm_others != _xenpm ]]; then
            $_xenpm_others "$@"
        else
            _files
        fi
        return
    fi
    for word in "${(@)words[4,CURRENT-1]}"; do
        case $verb/$word in
            @VERBS@) verb=$verb/$word ;;
        esac
    done
    if compset -P '--*='; then
        prev=${IPREFIX%=}
    fi
    case $verb:$prev in
@VALUES@
    esac
    if [[ $PREFIX == -* ]]; then
        case $verb in
@OPTIONS@
        esac
    else
        case $verb in
@ARGUMENTS@
        esac
    fi
}

_xenpm_words() {
    local -a words_and_helps=("${(@)argv[2,-1]}")
    _describe -V "$1" words_and_helps
}

_xenpm_domains() {
    local -a names=("${(@f)$("${(Q)words[1]}" -m xenpm completion domains 2>/dev/null)}")
    compadd -S "${1:- }" -q -- "${(@)names:#}"
}

compdef _xenpm python python3
"""


class Kinds(NamedTuple):
    """The types of arguments, as argparse has them, of which something can be completed."""

    domains: Collection[Callable[[str], Any]]  #: domains' names
    rules: Collection[Callable[[str], Any]]  #: a domain's name, an equals sign and more
    files: Collection[Callable[[str], Any]]  #: files or directories

    def pick(self, action: argparse.Action, answers: Sequence[str]) -> str:
        """The answer for a domain, for a rule, for a file, and for what can only be typed."""
        for kind, answer in zip(self, answers):
            if action.type in kind:
                return answer
        return answers[-1]


def bash(parser: argparse.ArgumentParser, kinds: Kinds) -> str:
    """The script for bash to source, for a whole command line."""

    def words_of(action: argparse.Action) -> str:
        if action.choices is not None:
            return f"words={shlex.quote(_lines(action.choices))}"
        return kinds.pick(
            action,
            [
                '_xenpm_domains "$cur" ""; return',
                '_xenpm_domains "$cur" =; return',
                '_xenpm_files "$cur"; return',
                "return",
            ],
        )

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
        # which of several arguments it is does not matter: nobody takes one for the other
        taken = [
            words_of(action).removesuffix("; return")
            for action in each._actions
            if not action.option_strings
        ]
        if taken:
            arguments.append(f"            '{path}') {'; '.join(taken)} ;;")
    script = _BASH.replace("@VERBS@", "|".join(verbs))
    for mark, lines in (("@VALUES@", values), ("@OPTIONS@", options), ("@ARGUMENTS@", arguments)):
        script = script.replace(mark, "\n".join(lines))
    return script


def fish(parser: argparse.ArgumentParser, kinds: Kinds) -> str:
    """The script for fish to source, for a whole command line."""
    verbs, lines = [], []
    for path, each in _parsers(parser, ""):
        if path:
            verbs.append(path)
        for action in each._actions:
            start = f"complete -c $python -n '__xenpm_at \"{path}\"'"
            names = [
                f"-l {n[2:]}" if n[:2] == "--" else f"-s {n[1:]}" for n in action.option_strings
            ]
            if isinstance(action, argparse._SubParsersAction):
                for verb in action._choices_actions:
                    lines.append(f"{start} -f -a {verb.dest} -d {_quoted(verb.help)}")
                continue
            takes = kinds.pick(
                action,
                ["-x -a '(__xenpm_domains)'", "-x -a '(__xenpm_domains =)'", "-r -F", "-x"],
            )
            if action.choices is not None:
                takes = f"-x -a {_quoted(' '.join(action.choices))}"
            elif action.nargs == 0:
                takes = ""
            if not names:  # -x and -r are for options
                takes = takes.replace("-x", "-f").replace("-r ", "")
            text = _quoted(_help(parser, action))
            lines.append(" ".join([start, *names, takes, "-d", text]))
    return _FISH.replace("@VERBS@", " ".join(verbs)).replace("@LINES@", _indented(lines))


def zsh(parser: argparse.ArgumentParser, kinds: Kinds) -> str:
    """The script for zsh to source, for a whole command line."""

    def described(words: Iterable[tuple[str, str | None]], what: str) -> str:
        pairs = (shlex.quote(f"{word}:{text or ''}".rstrip(":")) for word, text in words)
        return " ".join([f"_xenpm_words {what}", *pairs])

    def taken_by(action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):
            return described([(verb.dest, verb.help) for verb in action._choices_actions], "verb")
        if action.choices is not None:
            return described([(word, None) for word in action.choices], "word")
        return kinds.pick(
            action, ["_xenpm_domains", "_xenpm_domains =", "_files", "_message value"]
        )

    verbs, values, options, arguments = [], [], [], []
    for path, each in _parsers(parser, ""):
        if path:
            verbs.append(path)
        named = [action for action in each._actions if action.option_strings]
        for action in named:
            if action.nargs != 0:
                spelled = "|".join(f"{path}:{name}" for name in action.option_strings)
                values.append(f"        {spelled}) {taken_by(action)}; return ;;")
        helps = [
            (name, _help(parser, action)) for action in named for name in action.option_strings
        ]
        options.append(f"            '{path}') {described(helps, 'option')} ;;")
        unnamed = [taken_by(action) for action in each._actions if not action.option_strings]
        if unnamed:
            arguments.append(f"            '{path}') {'; '.join(unnamed)} ;;")
    script = _ZSH.replace("@VERBS@", "|".join(verbs))
    for mark, lines in (("@VALUES@", values), ("@OPTIONS@", options), ("@ARGUMENTS@", arguments)):
        script = script.replace(mark, "\n".join(lines))
    return script


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return (action.help or "") % {**vars(action), "prog": parser.prog}


def _quoted(text: str | None) -> str:
    """As fish quotes: within single quotes a backslash escapes itself and the quote."""
    return "'" + (text or "").replace("\\", "\\\\").replace("'", "\\'") + "'"


def _indented(lines: list[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


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
