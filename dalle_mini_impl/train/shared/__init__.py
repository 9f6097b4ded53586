"""What the training stages share: the loop, states, FSDP, EMA, optimizers."""
