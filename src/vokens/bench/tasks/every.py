"""Several parts of the benchmark in turn, into one folder."""

import sys
from importlib import import_module

from vokens.bench import BENCHES
from vokens.bench.options import Every, Measure, split_list
from vokens.bench.tasks.items import NoRecordings
from vokens.errors import ConfigError, NotInstalled, VokensError


def run(options: Every) -> int:
    """Run the parts named by `only`, else all that the data and this machine allow; the highest of their exit codes.

    A part for which the data or this machine have not what it needs says so and counts as 0, one that fails as 1;
    where `only` names it, or none can run, its error is raised.
    """
    classes = {name: bench.options_class() for name, bench in BENCHES.items()}
    able = [name for name, found in classes.items() if issubclass(found, Measure) and found is not Every]
    names = able if options.only is None else split_list(options.only)
    for name in names:
        if name not in able:
            raise ConfigError(f"--only has {name!r}: there are {', '.join(able)}")
    codes, errors = [], []
    for name in names:
        try:
            codes.append(import_module(BENCHES[name].module).run(options.of(classes[name])))
        except VokensError as error:
            if options.only is not None:
                raise
            errors.append(error)
            print(f"vokens: {name} was left out: {error}", file=sys.stderr)
    if errors and not codes:
        raise errors[0]
    return max([*codes, *(not isinstance(error, NoRecordings | NotInstalled) for error in errors)])
