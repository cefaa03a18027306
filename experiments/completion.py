"""Shell completion of the command `metarl`: names of scripts, their options, and the values of some options.

    source <(metarl --print-completion bash)
    source <(metarl --print-completion zsh)

The options are those that `metarl NAME --help` shows.
"""

import contextlib
import io
import re
from collections.abc import Iterable, Mapping
from importlib import import_module

from metarl.envs import ENVS
from metarl.errors import check_choice
from metarl.experiments.catalogue import describe_all
from metarl.experiments.reports.reproduce.table import REFERENCES
from metarl.outer import OUTER
from metarl.rl import SURROGATES

SHELLS = ("bash", "zsh")

TEMPLATE = """{head}_metarl() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{scripts}"
  else
    case "$before" in
{values}
      *)
        case "${{COMP_WORDS[1]}}" in
{options}
        esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _metarl metarl
"""


def print_completion(shell: str, scripts: Mapping[str, str]) -> None:
    """Print the completion for `bash` or `zsh`; `scripts` are the modules of the scripts, by name.

    Raises:
        ValueError: for another shell.
    """
    check_choice("print-completion", shell, SHELLS)
    values: dict[str, Iterable[str]] = {
        "--env": ENVS,
        "--outer": OUTER,
        "--outer-step": describe_all("steps"),
        "--surrogate": SURROGATES,
    }
    rows = [f'      {option}) words="{" ".join(names)}" ;;' for option, names in values.items()]
    options = [f'          {name}) words="{" ".join(options_of(module))}" ;;' for name, module in scripts.items()]
    print(
        TEMPLATE.format(
            head="autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "",
            scripts=" ".join(scripts),
            values="\n".join(rows),
            options="\n".join(options),
        ),
        end="",
    )


def options_of(module: str) -> list[str]:
    """The options of a script, from its help."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        import_module(f"metarl.experiments.{module}").main(["--help"])
    found = re.findall(r"^[│ ]*(?:-\w, )?(--[a-z][\w-]*)", out.getvalue(), re.MULTILINE)
    if module == "catalogue":
        found += ["envs", "updates", "steps", "surrogates"]
    if module == "reports.reproduce":
        found += REFERENCES
    return list(dict.fromkeys(found))
