"""What commands share besides `arguments`: the model they run, progress, configs, workers."""
