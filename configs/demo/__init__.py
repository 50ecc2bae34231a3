"""The demo's runs: two teachers and stage-1 pre-training on the synthetic world."""
