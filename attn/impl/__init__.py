"""One file = one row of the table; the name of the file is the name of the row."""
