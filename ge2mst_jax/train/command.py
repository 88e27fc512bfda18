"""What every script shares: a frozen dataclass becomes a command line; a wrong input becomes one line and status 2."""

import os
import sys

import tyro


def run_command(main, options, default=None, arguments=None) -> None:
    """Parses `options` (a dataclass) from the command line and calls `main(options)`.

    Exit status: 0, or 2 after one line about a wrong input (`GE2MST_TRACEBACK=1` shows where it was raised), or 130
    after an interruption.

    Args:
        main: from an instance of `options` to nothing.
        options: a frozen dataclass; its docstring is the script's help, its fields' docstrings theirs.
        default: makes the instance whose fields the command line changes; the dataclass's own defaults if none.
        arguments: the command line's, if not all of them.
    """
    try:
        made = {} if default is None else {"default": default()}
        main(tyro.cli(options, args=arguments, config=(tyro.conf.FlagConversionOff,), **made))
    except (ValueError, OSError) as error:
        if os.environ.get("GE2MST_TRACEBACK"):
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"{os.path.basename(sys.argv[0])}: error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr)
        sys.exit(130)
