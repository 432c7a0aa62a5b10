"""What a run is: specification, rows of the tables, identity, stored runs."""
