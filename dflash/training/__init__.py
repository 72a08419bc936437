"""Lightning's side: the distillation module, callbacks, checkpoints, optimizers, pre-training of the tiny target."""
