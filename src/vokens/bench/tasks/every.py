"""Several parts of the benchmark in turn, into one folder."""

import sys

from vokens.bench import BENCHES
from vokens.bench.options import Every, Measure, split_list
from vokens.bench.tasks.items import NoRecordings
from vokens.errors import ConfigError, NotInstalled, VokensError


def run(options: Every) -> int:
    """Run the parts of `only`, else all that data and machine allow; returns the highest of their exit codes.

    A part whose requirements are missing prints this and counts as 0, one that fails as 1; if `only` names it, or none
    can run, its error is raised.
    """
    classes = {name: bench.options_class() for name, bench in BENCHES.items()}
    able = [name for name, each in classes.items() if issubclass(each, Measure) and each is not Every]
    names = able if options.only is None else split_list(options.only)
    for name in names:
        if name not in able:
            raise ConfigError(f"--only has {name!r}: there are {', '.join(able)}")
    codes, errors = [], []
    for name in names:
        try:
            codes.append(BENCHES[name].run(options.of(classes[name])))
        except VokensError as error:
            if options.only is not None:
                raise
            errors.append(error)
            print(f"vokens: {name} was left out: {error}", file=sys.stderr)
    if errors and not codes:
        raise errors[0]
    return max([*codes, *(not isinstance(error, NoRecordings | NotInstalled) for error in errors)])
