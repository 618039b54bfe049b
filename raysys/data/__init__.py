"""From files to a checked, filtered and split data set."""
