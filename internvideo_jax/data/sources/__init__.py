"""Random access to clips wherever they lie: files, shards, data sets, caches."""
