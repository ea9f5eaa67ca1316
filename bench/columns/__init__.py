"""The systems under test. Each builds the same shapes in its own words and says when jobs are done."""
