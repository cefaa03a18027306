"""The command `metarl` runs one of the scripts: `metarl train --env navigation`."""

import sys
from importlib import import_module

from metarl.errors import did_you_mean

SCRIPTS = {
    "train": ("train", "meta-train a policy on a distribution of environments"),
    "evaluate": ("evaluate", "adapt a trained policy to held-out tasks"),
    "compare": ("compare", "train several outer updates, settings or grids at an equal budget"),
    "baseline": ("baseline", "run a baseline of held-out evaluation"),
    "plot": ("plot", "plot any metric of runs against any other one"),
    "list": ("catalogue", "list environments, outer updates, outer steps or surrogate losses"),
    "info": ("info", "say what a run is, how far it got and how good it is"),
    "film": ("film", "draw a policy acting before and after adaptation"),
    "export": ("export", "pack a finished run into one file to share"),
    "train-supervised": ("train_supervised", "meta-train on a supervised problem"),
    "few-shot": ("few_shot", "few-shot classification against a strong baseline"),
    "theory": ("reports.theory", "check the papers' claims"),
    "certify": ("reports.certify", "check meta-gradients against exact answers"),
    "reproduce": ("reports.reproduce", "train the reference runs again and compare with the committed results"),
    "tuning": ("reports.tuning", "map the score over both step sizes"),
    "signal": ("reports.signal", "say how much of an inner gradient is signal, for ways to give credit"),
    "robustness": ("reports.robustness", "train from step sizes of four decades, fixed and adapted"),
    "benchmark": ("reports.benchmark", "measure the speed of the parts"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the script that the first argument names; exit code 2 for an unknown name."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(f"usage: metarl NAME [OPTIONS]\n\n{table()}\n\nmetarl NAME --help explains the options.")
        print("source <(metarl --print-completion bash) completes names and options in bash, likewise in zsh.")
    elif given[0] == "--print-completion":
        complete(given[1:])
    elif given[0] in SCRIPTS:
        import_module(f"metarl.experiments.{SCRIPTS[given[0]][0]}").main(given[1:])
    else:
        near = did_you_mean(given[0], SCRIPTS)
        print(f"error: the script must be one of {', '.join(SCRIPTS)}, got {given[0]!r}{near}", file=sys.stderr)
        raise SystemExit(2)


def complete(arguments: list[str]) -> None:
    """Print the completion for the shell that is the only argument; exit code 2 for another one."""
    completion = import_module("metarl.experiments.completion")
    try:
        completion.print_completion(" ".join(arguments), {name: module for name, (module, _) in SCRIPTS.items()})
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def table() -> str:
    """The names of the scripts and what they do."""
    width = max(map(len, SCRIPTS))
    return "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in SCRIPTS.items())
