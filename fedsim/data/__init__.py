"""Data sets, their partitions over clients, and train-time augmentation."""
