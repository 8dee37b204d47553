"""What more workers and partitions bring, and what it costs when workers come and go."""
