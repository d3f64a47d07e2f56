"""The parts of the accuracy suite: datasets, models and peers, cells in processes of their own, statistics, reports."""
