"""Several parts of the benchmark in turn, into one folder."""

from importlib import import_module

from vokens.bench import BENCHES
from vokens.bench.options import Every, Measure, split_list
from vokens.errors import ConfigError


def run(options: Every) -> int:
    """Run the parts named by `only`; the highest of their exit codes."""
    classes = {name: bench.options_class() for name, bench in BENCHES.items()}
    able = [name for name, found in classes.items() if issubclass(found, Measure) and found is not Every]
    names = able if options.only is None else split_list(options.only)
    for name in names:
        if name not in able:
            raise ConfigError(f"--only has {name!r}: there are {', '.join(able)}")
    return max(
        [import_module(BENCHES[name].module).run(options.of(classes[name])) for name in names], default=0
    )
