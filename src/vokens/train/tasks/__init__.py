"""Training tasks, one file each: data, losses and model; named in `vokens.train.config.TASKS`."""
