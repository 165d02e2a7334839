"""The paper's tables and figures from one command, row by row, beside the paper's own figures; and the demo."""
