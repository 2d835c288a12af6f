"""Engineering: a solution tree over real tables, with code that runs in the sandbox and answers graded in private."""
