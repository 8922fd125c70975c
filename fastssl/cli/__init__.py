"""The command line: ``fastssl train | eval | distill | augment | bench | info``."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "train": "train an encoder on unlabelled images: fastssl train simclr --data digits",
    "eval": "judge a trained encoder: kNN, linear probe, few labels, k-means, RankMe, fine-tuning",
    "distill": "fine-tune a trained encoder on some labels and let it teach a smaller one",
    "augment": "show what a recipe of views does: fastssl augment --data digits --out grid.png",
    "bench": "time the ops and losses beside their peers, interleaved: fastssl bench nt_xent",
    "info": "versions, and which implementation serves each op here and why",
}
USAGE = "usage: fastssl COMMAND [options]\n\ncommands:\n" + "".join(
    f"  {name:7} {text}\n" for name, text in COMMANDS.items()
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"fastssl: no command {command!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    # Imported only now, so that `info` and `bench` need nothing but torch.
    return import_module(f"fastssl.cli.{command}").main(rest)
