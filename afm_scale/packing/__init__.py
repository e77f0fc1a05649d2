"""What is done once to a data set: originals are listed, recoded, shuffled and written as checked shards."""
