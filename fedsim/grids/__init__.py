"""Where the nodes run, each a Flower ``Grid``: threads, a Ray cluster, and the adversary around either."""
