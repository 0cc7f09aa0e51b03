"""The service under load: how fast it takes jobs, how much it adds to each, how it grows with workers."""
